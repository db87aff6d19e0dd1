"""Files of a remote folder such as gs://bucket/model.

In: an address with a scheme that fsspec knows. Out: the names and sizes of the
folder's files, and bytes of them by ranges. A file is written as a whole.
"""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from typing import Any

from etils import epath
import fsspec

from tract_jax import types

# gcsfs would keep what it once listed for good, and see neither the files of
# other hosts nor those that TensorStore writes for this one.
fsspec.config.conf.setdefault('gs', {})['use_listings_cache'] = False

# What brings the library of a scheme, where it is not there.
_LIBRARIES = {
  'gs': 'tract_jax[gcs]',
  's3': 's3fs',
  'az': 'adlfs',
}
_MAX_REASON_CHARS = 300
_COPY_BYTES = 2**24


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path is an address, such as gs://bucket/model."""
  return '://' in os.fspath(path)


def names_below(address: epath.PathLike) -> list[str]:
  """Names of all files below a remote folder, such as "a/b.txt".

  Args:
    address: such as gs://bucket/run; one that is not there has none.

  Returns:
    The names.
  """
  filesystem, folder = fsspec.core.url_to_fs(os.fspath(address))
  return [name.removeprefix(f'{folder}/') for name in filesystem.find(folder)]


def fetch(
  address: epath.PathLike, names: Iterable[str], folder: pathlib.Path
) -> None:
  """Copies files of a remote folder, many at a time.

  Args:
    address: such as gs://bucket/run.
    names: of the files, as `names_below` gives them.
    folder: they are written below it, under the same names.
  """
  filesystem, top = fsspec.core.url_to_fs(os.fspath(address))
  pairs = [(f'{top}/{name}', str(folder / name)) for name in names]
  if pairs:
    filesystem.get(*map(list, zip(*pairs, strict=True)))


def put(local: pathlib.Path, address: epath.Path) -> None:
  """Copies a local file; an object of a bucket appears when all of it came.

  Args:
    local: the file.
    address: its new place, such as gs://bucket/run/report.html.

  Raises:
    OSError: it cannot be written.
  """
  with local.open('rb') as source, address.open('wb') as target:
    shutil.copyfileobj(source, target, _COPY_BYTES)


@dataclasses.dataclass(frozen=True)
class RemoteFolder:
  """An open remote folder.

  Attributes:
    address: such as gs://bucket/model.
    sizes: bytes of each file that lies directly in it, by name.
  """

  address: str
  sizes: dict[str, int]
  _filesystem: Any

  def read(self, name: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file.

    Args:
      name: of the file, one of `sizes`.
      start: first byte.
      stop: the byte after the last.

    Returns:
      stop - start bytes.

    Raises:
      types.InputError: they cannot be had.
    """
    place = f'{self.address}/{name}'
    if start == stop:
      return b''
    with _reporting(place):
      data = self._filesystem.cat_file(place, start, stop)
    if len(data) != stop - start:
      raise types.InputError(
        f'{place}: bytes {start} to {stop}: {len(data)} came; the file has'
        ' changed since it was listed'
      )
    return data


def open_folder(address: str | os.PathLike[str]) -> RemoteFolder:
  """Lists a remote folder.

  Args:
    address: such as gs://bucket/model.

  Returns:
    The folder.

  Raises:
    types.InputError: no such folder, no permission, no network, or the library
      of this kind of address is not installed.
  """
  address = os.fspath(address).rstrip('/')
  # gcsfs logs a traceback of every error that is reported here in one line.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  with _reporting(address):
    filesystem, _ = fsspec.core.url_to_fs(address)
    entries = filesystem.ls(address, detail=True)
  sizes = {
    os.path.basename(entry['name']): entry['size']
    for entry in entries
    if entry['type'] == 'file'
  }
  return RemoteFolder(address, sizes, filesystem)


@contextlib.contextmanager
def _reporting(place: str) -> Iterator[None]:
  """Turns whatever a file system raises into one line."""
  try:
    yield
  except FileNotFoundError as error:
    raise types.InputError(f'{place}: not there') from error
  except ImportError as error:
    library = _LIBRARIES.get(place.partition('://')[0])
    advice = f'pip install {library}' if library else str(error)
    raise types.InputError(
      f'{place}: a library is missing that reads such addresses: {advice}'
    ) from error
  # Each library has errors of its own: of HTTP, of credentials, of the network.
  except Exception as error:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise types.InputError(
      f'{place}: cannot be read ({reason[:_MAX_REASON_CHARS]})'
    ) from error
