"""The folder of a run: can it be written, and is nobody else writing there?"""

from collections.abc import Iterator
import contextlib
import fcntl

from etils import epath
import jax

from tract_jax import types

_LOCK = '.lock'


@contextlib.contextmanager
def use(folder: epath.Path) -> Iterator[None]:
  """Makes the folder, tries to write in it, and keeps others out of it.

  A local lock ends with the process, however it ends; on gs:// there is none.

  Args:
    folder: the workdir.

  Yields:
    Nothing; the folder is this run's until the block ends.

  Raises:
    types.InputError: it cannot be written, or another run is in it.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.probe{jax.process_index()}'
    probe.write_text('')
    probe.unlink()
  except (OSError, ImportError) as error:
    raise types.InputError(f'workdir {folder}: {error}') from error
  if '://' in str(folder) or jax.process_index() != 0:
    yield
    return
  with _opened(folder / _LOCK) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise types.InputError(
        f'workdir {folder}: another run is in it; wait for it, or give another '
        '--workdir'
      ) from error
    except OSError as error:
      raise types.InputError(f'workdir {folder}: {error}') from error
    yield


def _opened(path):
  try:
    return open(path, 'w')
  except OSError as error:
    raise types.InputError(f'{path}: {error}') from error
