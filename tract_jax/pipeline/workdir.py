"""The folder of a run: can it be written, and is nobody else writing there?

A run holds the folder alone. Hosts that share a job hold it together, each by
a lock of its own beside the common one:

  .lock           one run, or every host
  .lock_host2of3  the second of three hosts
"""

from collections.abc import Iterator
import contextlib
import fcntl
from typing import IO

from etils import epath
import jax

from tract_jax import types
from tract_jax.parallel import distributed

_LOCK = '.lock'


@contextlib.contextmanager
def use(
  folder: epath.Path, host: distributed.Host = distributed.ONLY_HOST
) -> Iterator[None]:
  """Makes the folder, tries to write in it, and keeps others out of it.

  A local lock ends with the process, however it ends; on gs:// there is none.

  Args:
    folder: the workdir.
    host: which of the hosts that share it this is.

  Yields:
    Nothing; the folder is this run's until the block ends.

  Raises:
    types.InputError: it cannot be written, or another run, or another process
      of the same host's number, is in it.
  """
  index = host.index if host.count > 1 else jax.process_index()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.probe{index}'
    probe.write_text('')
    probe.unlink(missing_ok=True)
  except (OSError, ImportError) as error:
    raise types.InputError(f'workdir {folder}: {error}') from error
  with contextlib.ExitStack() as locks:
    if '://' in str(folder):
      pass
    elif host.count > 1:
      name = f'{_LOCK}_host{host.index + 1}of{host.count}'
      locks.enter_context(_locked(folder, _LOCK, fcntl.LOCK_SH))
      locks.enter_context(_locked(folder, name, fcntl.LOCK_EX))
    elif index == 0:
      locks.enter_context(_locked(folder, _LOCK, fcntl.LOCK_EX))
    yield


def _locked(folder: epath.Path, name: str, kind: int) -> IO[str]:
  """A lock file, locked until it is closed."""
  try:
    # On NFS a shared lock is one for reading, an exclusive one for writing.
    file = open(folder / name, 'a+')
  except OSError as error:
    raise types.InputError(f'{folder / name}: {error}') from error
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except OSError as error:
    file.close()
    problem = str(error)
    if isinstance(error, BlockingIOError):
      problem = (
        f'another run is in it ({name}); wait for it, or give another --workdir'
      )
    raise types.InputError(f'workdir {folder}: {problem}') from error
  return file
