"""Work on many rows in several processes, as if it were done in one.

A process is started anew ("spawn"), since a fork of one that runs JAX may hang.
It imports what the work itself needs and nothing of the command line's module.
Results come in the order of the work, whichever process is done first.

In: a function of the module's top level, what it needs for all chunks, and
chunks of rows. Out: its results.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import multiprocessing
from multiprocessing import connection
import os
import signal
import sys
import threading
import types as python_types
from typing import Any

from tract_jax import types

# Characters that a process tokenises in about 5 seconds: 2,000 rows of Feedback
# Collection. Its start takes 2, so less is not worth a process.
CHARS_PER_PROCESS = 10_000_000
CHUNK_ROWS = 256

# What a process of the pool was given at its start.
_context: Any = None


def is_large(num_chars: int) -> bool:
  """Whether so much text is worth processes, or keeping what came of it."""
  return num_chars >= CHARS_PER_PROCESS


def num_processes(configured: int, num_chars: int) -> int:
  """How many processes some text is worth.

  Args:
    configured: the most; config.data.encode_processes. 0: as many as cores.
    num_chars: of all rows together.

  Returns:
    At least 1, which means this process.
  """
  most = configured or len(os.sched_getaffinity(0))
  return max(1, min(most, num_chars // CHARS_PER_PROCESS))


def map_chunks(
  function: Callable[[Any, Any], Any],
  context: Any,
  chunks: Sequence[Any],
  num_processes: int,
) -> Generator[Any, None, None]:
  """Yields function(context, chunk) for each chunk, in order.

  Args:
    function: of a module's top level.
    context: given to every process once.
    chunks: the work; small in comparison with `context` or not, each goes to
      one process.
    num_processes: 1 works in this one.

  Yields:
    The results. Where the caller stops early, no process is left.

  Raises:
    types.InputError: a process was killed.
  """
  if num_processes == 1:
    for chunk in chunks:
      yield function(context, chunk)
    return
  pool = futures.ProcessPoolExecutor(
    num_processes,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start,
    initargs=(context,),
  )
  try:
    with _without_main_module():
      pending = [pool.submit(_work, function, chunk) for chunk in chunks]
    pending.reverse()
    while pending:
      # Taken off the list, so that a result that was read can be let go.
      yield pending.pop().result()
  except process.BrokenProcessPool as error:
    raise types.InputError(
      f'config.data.encode_processes: one of {num_processes} processes was '
      'killed, perhaps for want of memory; set fewer'
    ) from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
  """Keeps new processes from importing the program's main module.

  They need nothing of it, and it imports all of the project: 5 seconds and 0.5
  GB for each. Processes are started by the submit that needs them.
  """
  main = sys.modules['__main__']
  sys.modules['__main__'] = python_types.ModuleType('__main__')
  try:
    yield
  finally:
    sys.modules['__main__'] = main


def _start(context: Any) -> None:
  """The start of a process: signals are its parent's business."""
  global _context
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  _context = context


def _end_with_parent() -> None:
  """A process whose parent was killed would wait for work forever."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(function: Callable[[Any, Any], Any], chunk: Any) -> Any:
  return function(_context, chunk)
