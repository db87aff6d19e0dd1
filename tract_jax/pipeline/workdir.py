"""The folder of a run: can it be written, and is nobody else writing there?

A run holds the folder alone; of joined hosts, the first one does. Others that
share a job hold it together, each by a lock of its own beside the common one:

  .lock           one run, or every host
  .lock_host2of3  the second of three hosts

In a bucket a run on one host does not see the locks of several.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import secrets
from typing import IO

from etils import epath

from tract_jax import types
from tract_jax.data import disk, orbax_store
from tract_jax.models import remote_files
from tract_jax.parallel import agreement, distributed
from tract_jax.pipeline import bucket_lock, hosts

_LOCK = '.lock'
# On a full disk an empty file can still be made.
_PROBE_BYTES = 2**16


@contextlib.contextmanager
def use(
  folder: epath.Path, host: distributed.Host = distributed.ONLY_HOST
) -> Iterator[None]:
  """Makes the folder, tries to write in it, and keeps others out of it.

  A local lock ends with the process, however it ends. In a bucket a file takes
  its place that is written anew all the time.

  Args:
    folder: the workdir.
    host: which of the hosts that share it this is.

  Yields:
    Nothing; the folder is this run's until the block ends.

  Raises:
    types.InputError: it cannot be written, or another run, or another process
      of the same host's number, is in it.
    types.UnreachableError: it is in a bucket that does not answer.
  """
  if remote_files.is_remote(folder) and not str(folder).startswith('gs://'):
    raise types.InputError(f'workdir {folder}: give a local folder, or gs://')
  probe = folder / f'.probe{host.index}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(bytes(_PROBE_BYTES))
    orbax_store.check_bucket(folder)
    probe.unlink(missing_ok=True)
  except Exception as error:  # A bucket's library raises errors of its own.
    with contextlib.suppress(Exception):
      probe.unlink(missing_ok=True)
    if remote_files.is_remote(folder) and remote_files.is_unanswered(error):
      raise types.UnreachableError(f'workdir {folder}: {error}') from error
    raise types.InputError(
      f'workdir {folder}: {error}{disk.free_space(folder)}'
    ) from error
  with contextlib.ExitStack() as locks:
    own = f'{_LOCK}_host{host.index + 1}of{host.count}'
    if remote_files.is_remote(folder):
      if host.writes:
        name = own if host.is_alone else _LOCK
        locks.enter_context(bucket_lock.held(folder / name))
    elif host.is_alone:
      locks.enter_context(_locked(folder, _LOCK, fcntl.LOCK_SH))
      locks.enter_context(_locked(folder, own, fcntl.LOCK_EX))
    elif host.writes:
      locks.enter_context(_locked(folder, _LOCK, fcntl.LOCK_EX))
    yield


def check_shared(
  folder: epath.Path, host: distributed.Host, stop: agreement.Agreement
) -> None:
  """Finds out whether joined hosts see one folder under this name.

  Args:
    folder: the workdir.
    host: this one.
    stop: what joined ones agree on; all of them make this call.

  Raises:
    types.InputError: the first host's folder is not this one.
  """
  if not host.joined:
    return
  where = 'before anything was done'
  # The first one may have left already, which is told at such points alone.
  hosts.meet(stop, where)
  mark = folder / f'.shared_{stop.tell(secrets.token_hex(8))}'
  try:
    if host.writes:
      mark.write_text('')
    hosts.meet(stop, where)
    is_shared = mark.exists()
    hosts.meet(stop, where)
  finally:
    if host.writes:
      mark.unlink(missing_ok=True)
  if not is_shared:
    raise types.InputError(
      f'workdir {folder}: {host} does not see what the first host wrote there;'
      ' give all hosts one folder, shared or gs://'
    )


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
