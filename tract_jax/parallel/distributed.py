"""Start of a run's processes: one, or one for each host of a TPU pod.

The distributed service is started for a single process, too, so that one is
many of one.

Processes that train are joined (`initialize`): what one of them computes, all
do, and when one dies the service ends the others. Hosts that only sample may
stay apart (`initialize_alone`): each knows which it is and takes its share;
they do not know of each other, so that each may start, end, die and return when
it will. A joined process could not: at its end it waits for all others, and the
death of any, or the end of the first, ends the rest.
"""

import contextlib
import dataclasses
import os
import socket
import sys
import threading

import jax

from tract_jax import types

# Where no cluster manager tells it, these name the processes of a run.
_ADDRESS = 'JAX_COORDINATOR_ADDRESS'
_NUM_PROCESSES = 'JAX_NUM_PROCESSES'
_PROCESS_ID = 'JAX_PROCESS_ID'

# jax ends the process by itself, without a readable word, when its own limit
# is over; ours comes first.
_JAX_MARGIN_SECS = 60


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  timeout_secs: int = 300,
  notice_secs: int = 30,
  heartbeat_secs: int = 100,
) -> None:
  """Joins the processes of a run; to be called before any device is used.

  The processes are found, in this order: by the arguments; by the environment
  (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); by jax itself
  on TPU pods, Slurm, Open MPI and Kubernetes. Where none of these speaks, the
  run has one process. A second call does nothing.

  Args:
    coordinator_address: "host:port" of process 0. The three are given
      together, or not at all.
    num_processes: of the whole run.
    process_id: of this one, from 0.
    timeout_secs: when processes are missing for so long, this one ends with a
      message and exit code 75.
    notice_secs: when processes are missing for so long, it says so.
    heartbeat_secs: when a process is silent for so long, the others end.

  Raises:
    types.InputError: only some of the three are given, or a number that is
      none.
  """
  if jax.distributed.is_initialized():
    return
  processes = _processes(coordinator_address, num_processes, process_id)
  with _watch(notice_secs, timeout_secs):
    if processes is None:
      try:
        _initialize(timeout_secs, heartbeat_secs)
      except ValueError as error:
        if 'coordinator_address' not in str(error):
          raise
        # jax knows of no cluster: this is the only process.
        _initialize_only(timeout_secs, heartbeat_secs)
    else:
      _initialize(timeout_secs, heartbeat_secs, processes)


@dataclasses.dataclass(frozen=True)
class Host:
  """Which of the hosts that share a job this one is.

  Attributes:
    index: of this one, from 0.
    count: of them all.
    joined: whether jax has joined their processes, so that they can train.
  """

  index: int = 0
  count: int = 1
  joined: bool = False

  @property
  def is_alone(self) -> bool:
    """Whether it is one of several that do not know of each other."""
    return self.count > 1 and not self.joined

  @property
  def writes(self) -> bool:
    """Whether it writes what is made of all hosts' shares."""
    return not self.joined or self.index == 0

  def __str__(self) -> str:
    return f'host {self.index + 1} of {self.count}'


ONLY_HOST = Host()


def joined_host() -> Host:
  """Which host this is, once `initialize` has joined the processes."""
  return Host(
    jax.process_index(), jax.process_count(), joined=jax.process_count() > 1
  )


def find_alone() -> Host:
  """Which host this is, of several that are not joined; nothing is started.

  Returns:
    What the environment says: JAX_NUM_PROCESSES and JAX_PROCESS_ID, without
    the JAX_COORDINATOR_ADDRESS of hosts that join; else the only one.

  Raises:
    types.InputError: only one of the two is set, or a number that is none.
  """
  names = (_NUM_PROCESSES, _PROCESS_ID)
  count, index = (os.environ.get(name) or None for name in names)
  if os.environ.get(_ADDRESS) or count is index is None:
    return ONLY_HOST
  shown = f'environment: {_NUM_PROCESSES}={count}, {_PROCESS_ID}={index}'
  if count is None or index is None:
    raise types.InputError(f'{shown}: both are needed, or none')
  num_processes, process_id = _numbers(shown, count, index)
  return Host(process_id, num_processes)


def initialize_alone() -> None:
  """As `initialize`, for a host that shares a job but not jax with others.

  To this process jax has one process, whatever the environment says.
  """
  if not jax.distributed.is_initialized():
    _initialize_only()


def is_main_process() -> bool:
  """Whether this process is the one that logs and writes what all share."""
  return jax.process_index() == 0


def _initialize(
  timeout_secs: int,
  heartbeat_secs: int,
  processes: tuple[str, int, int] | None = None,
  bind_address: str | None = None,
) -> None:
  address, num_processes, process_id = processes or (None, None, None)
  jax.distributed.initialize(
    address,
    num_processes,
    process_id,
    cluster_detection_method='deactivate' if processes else None,
    initialization_timeout=timeout_secs + _JAX_MARGIN_SECS,
    heartbeat_timeout_seconds=heartbeat_secs,
    # One that fails waits at its end for the others, who may wait for it.
    shutdown_timeout_seconds=heartbeat_secs,
    coordinator_bind_address=bind_address,
  )


def _initialize_only(
  timeout_secs: int = 300, heartbeat_secs: int = 100
) -> None:
  """Starts the service for this process alone."""
  address = f'127.0.0.1:{_free_port()}'
  _initialize(timeout_secs, heartbeat_secs, (address, 1, 0), address)


def _processes(
  address: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int] | None:
  """What arguments or environment say; None where they are silent."""
  names = (_ADDRESS, _NUM_PROCESSES, _PROCESS_ID)
  place = 'distributed.initialize'
  given: list[str | int | None] = [address, num_processes, process_id]
  if given == [None] * 3:
    place = 'environment'
    given = [os.environ.get(name) or None for name in names]
  if given == [None] * 3:
    return None
  shown = ', '.join(f'{n}={v}' for n, v in zip(names, given, strict=True))
  where, count, index = given
  if where is None or count is None or index is None:
    raise types.InputError(f'{place}: {shown}: all three are needed, or none')
  return str(where), *_numbers(f'{place}: {shown}', count, index)


def _numbers(shown: str, count: str | int, index: str | int) -> tuple[int, int]:
  """The number of processes and this one's, checked."""
  try:
    count, index = int(count), int(index)
  except ValueError:
    raise types.InputError(f'{shown}: not a whole number') from None
  if not 0 <= index < count:
    raise types.InputError(
      f'{shown}: the process must be one of 0 .. {count - 1}'
    )
  return count, index


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@contextlib.contextmanager
def _watch(notice_secs: int, timeout_secs: int):
  """Speaks up while the body waits for other processes, and ends it in time.

  The body waits inside jax, where no exception reaches it: past the limit the
  process is ended from here.
  """
  done = threading.Event()

  def watch():
    if done.wait(min(notice_secs, timeout_secs)):
      return
    _say(
      f'Waiting for the other processes of this run since {notice_secs} s: is'
      ' the same command running on every host?'
    )
    if done.wait(max(0, timeout_secs - notice_secs)):
      return
    _say(
      f'Not all processes of this run came within {timeout_secs} s. Start the'
      ' same command on every host at the same time (on a TPU pod: on all'
      ' workers, not on one).'
    )
    # Interrupted, 75: what began this one may begin them all again.
    os._exit(os.EX_TEMPFAIL)

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    done.set()


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
