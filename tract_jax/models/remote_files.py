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
import re
import shutil
from typing import Any

from etils import epath
import fsspec

from tract_jax import types

# What gcsfs asks by gRPC about zonal and hierarchical buckets costs up to a
# minute where it gets no answer, and flat ones are what is tested.
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
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
# As TensorStore and the names of others' errors say it; first the refusals.
_REFUSED = re.compile(r'Forbidden|PERMISSION_DENIED:|UNAUTHENTICATED:')
_UNANSWERED = re.compile(
  'UNAVAILABLE:|DEADLINE_EXCEEDED:|RESOURCE_EXHAUSTED:|HttpError|Client.*Error|'
  'ServerDisconnectedError|TransportError|RefreshError'
)


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path is an address, such as gs://bucket/model."""
  return '://' in os.fspath(path)


def is_refused(error: BaseException) -> bool:
  """Whether a remote place does not let us in."""
  return _code(error) in (401, 403) or bool(_REFUSED.search(str(error)))


def is_unanswered(error: BaseException) -> bool:
  """Whether a remote place did not answer, which tells nothing of its files."""
  code, text = _code(error), f'{type(error).__name__}: {error}'
  return (
    isinstance(error, ConnectionError | TimeoutError)
    or code in (408, 429)
    or code >= 500
    or (not code and bool(_UNANSWERED.search(text)))
  )


def has_no_answer(error: BaseException) -> bool:
  """Whether it is one of both, of which neither tells of what lies there."""
  return is_refused(error) or is_unanswered(error)


def _code(error: BaseException) -> int:
  """The HTTP status of an error; 0 where it has none."""
  code = str(getattr(error, 'code', None) or getattr(error, 'status', ''))
  return int(code) if code.isdecimal() else 0


@contextlib.contextmanager
def answering(place: epath.PathLike) -> Iterator[None]:
  """Tells apart what a remote place does not answer.

  Args:
    place: what the block reads or writes.

  Yields:
    Nothing.

  Raises:
    types.UnreachableError: in place of errors that tell of no answer.
  """
  try:
    yield
  except Exception as error:
    if has_no_answer(error):
      raise types.UnreachableError(f'{place}: {_reason(error)}') from error
    raise


def _reason(error: BaseException) -> str:
  """An error of any library in a line."""
  reason = ' '.join(f'{type(error).__name__}: {error}'.split())
  return reason[:_MAX_REASON_CHARS]


def names_below(address: epath.PathLike) -> list[str]:
  """Names of all files below a remote folder, such as "a/b.txt".

  Args:
    address: such as gs://bucket/run; one that is not there has none.

  Returns:
    The names.

  Raises:
    types.UnreachableError: there is no answer.
  """
  filesystem, folder = fsspec.core.url_to_fs(os.fspath(address))
  with answering(address):
    names = filesystem.find(folder)
  return [name.removeprefix(f'{folder}/') for name in names]


def fetch(
  address: epath.PathLike, names: Iterable[str], folder: pathlib.Path
) -> None:
  """Copies files of a remote folder, many at a time.

  Args:
    address: such as gs://bucket/run.
    names: of the files, as `names_below` gives them.
    folder: they are written below it, under the same names.

  Raises:
    types.UnreachableError: there is no answer.
  """
  filesystem, top = fsspec.core.url_to_fs(os.fspath(address))
  pairs = [(f'{top}/{name}', str(folder / name)) for name in names]
  if pairs:
    with answering(address):
      filesystem.get(*map(list, zip(*pairs, strict=True)))


def put(local: pathlib.Path, address: epath.PathLike) -> None:
  """Copies a local file; an object of a bucket appears when all of it came.

  Args:
    local: the file.
    address: its new place, such as gs://bucket/run/report.html.

  Raises:
    types.UnreachableError: there is no answer.
    OSError: it cannot be written.
  """
  with answering(address), local.open('rb') as source:
    target = epath.Path(address).open('wb')
    try:
      shutil.copyfileobj(source, target, _COPY_BYTES)
    except BaseException:
      # To close it would make a whole file of what came.
      target.closed = True
      with contextlib.suppress(Exception):
        target.discard()
      raise
    target.close()


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
    raise types.InputError(
      f'{place}: cannot be read ({_reason(error)})'
    ) from error
