"""Disks that are full or read-only: a line that says so, with the room left."""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil

from etils import epath

from tract_jax import types
from tract_jax.models import remote_files


def free_space(path: epath.PathLike) -> str:
  """How much room there is where a file lies, for the end of a message.

  Args:
    path: a file or folder, there or not.

  Returns:
    "; 1.5 MB are free there"; empty where nobody knows, as in a bucket.
  """
  if remote_files.is_remote(path):
    return ''
  place = pathlib.Path(path).absolute()
  for folder in (place, *place.parents):
    with contextlib.suppress(OSError):
      num_bytes = shutil.disk_usage(folder).free
      return f'; {num_bytes / 1e6:,.1f} MB are free there'
  return ''


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
  """Makes a user's problem of files that cannot be written.

  Args:
    path: the file or folder that is written in the block.

  Yields:
    Nothing.

  Raises:
    types.InputError: in place of an OSError; names the path, the reason and the
      room that is left there.
  """
  try:
    yield
  except OSError as error:
    raise types.InputError(
      f'{path}: cannot be written: {error}{free_space(path)}'
    ) from error
