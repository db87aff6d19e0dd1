"""A process beside one of several joined ones, that saves with Orbax for it.

Among joined processes Orbax writes host arrays on the first one alone, and all
must save the same. One that saves what only it has, such as its share of a
dataset, does so through a process that is not joined. That is started with the
first save and serves all of them; it ends when its pipe is closed, so also when
the process that it serves is killed, and amid a save: what came late would
surprise the run that goes on there.
"""

import multiprocessing
from multiprocessing import connection
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from etils import epath
import numpy as np

_KILLED = 'the process that saves was killed'


class SavingProcess:
  """The process and the pipe to it; one save at a time."""

  def __init__(self):
    """Starts nothing yet."""
    self._process: subprocess.Popen | None = None
    self._pipe: connection.Connection | None = None

  def start(
    self, path: epath.Path, leaves: dict[str, Any], record: dict[str, Any]
  ) -> 'SavingProcess':
    """Starts to save; `result()` ends it.

    Args:
      path: of the step.
      leaves: {name: array}; copied to the process at once.
      record: JSON object to be saved with them.

    Returns:
      Itself.
    """
    if self._pipe is None:
      self._pipe = self._connected()
    hosted = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    try:
      self._pipe.send((str(path), hosted, record))
    except ConnectionError:
      self.close()
      raise OSError(_KILLED) from None
    return self

  def result(self) -> None:
    """Waits for the end of the save.

    Raises:
      OSError: what it could not do.
    """
    assert self._pipe is not None
    try:
      problem = self._pipe.recv()
    except (EOFError, ConnectionError):
      self.close()
      problem = _KILLED
    if problem:
      raise OSError(problem)

  def close(self) -> None:
    """Ends the process, where there is one."""
    if self._pipe is not None and self._process is not None:
      self._pipe.close()
      self._process.wait()
    self._pipe = self._process = None

  def _connected(self) -> connection.Connection:
    ours, its = multiprocessing.Pipe()
    with its:
      self._process = subprocess.Popen(
        [sys.executable, '-m', __name__, str(its.fileno())],
        pass_fds=[its.fileno()],
        # Signals to all of a group ask the process that is served alone.
        start_new_session=True,
      )
    return ours


def serve(pipe: connection.Connection) -> None:
  """Saves what comes, and answers with what went wrong, or with nothing.

  Args:
    pipe: to the process that is served.
  """
  import jax

  # The accelerator belongs to the process that is served.
  jax.config.update('jax_platforms', 'cpu')
  from tract_jax.data import orbax_saving

  jobs: queue.SimpleQueue = queue.SimpleQueue()

  def receive() -> None:
    try:
      while True:
        jobs.put(pipe.recv())
    except (EOFError, OSError):
      os._exit(0)

  threading.Thread(target=receive, daemon=True).start()
  while True:
    path, leaves, record = jobs.get()
    pipe.send(orbax_saving.problem_of_save(epath.Path(path), leaves, record))


if __name__ == '__main__':
  serve(connection.Connection(int(sys.argv[1])))
