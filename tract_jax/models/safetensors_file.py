"""One safetensors file, local or remote: opened and checked, not yet read.

In: a path, or a name in a remote folder. Out: every tensor by name, with its
shape, its dtype and slices of it. The safetensors library checks every header.
That of a remote file is fetched first, and put at the beginning of a local
file of the same size that is otherwise empty and takes no room on the disk.

A file that is no safetensors is a types.InputError; a pickle is never loaded.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import tempfile
from typing import NamedTuple, NoReturn, Protocol

import ml_dtypes
import numpy as np
import safetensors

from tract_jax import types
from tract_jax.models import remote_files

FLOAT_DTYPES: dict[str, np.dtype] = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}

# The library's own limit; a longer header is not even fetched.
_MAX_HEADER_BYTES = 100_000_000
# Most headers come with the first request.
_FIRST_BYTES = 2**17


class View(Protocol):
  """A tensor in a file."""

  def get_shape(self) -> list[int]:
    """Its shape."""

  def get_dtype(self) -> str:
    """Its dtype, in the words of safetensors: "BF16"."""

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part: a slice with start and stop for each dimension."""


class Tensor(NamedTuple):
  """A tensor, and the file it lies in, for messages."""

  file: str
  view: View


def open_local(
  path: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, Tensor]:
  """Opens a file on a local disk.

  Args:
    path: a regular file.
    stack: closes it.

  Returns:
    Every tensor by name.

  Raises:
    types.InputError: no safetensors.
  """
  try:
    file = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
  except (safetensors.SafetensorError, OSError) as error:
    head = b''
    with contextlib.suppress(OSError), path.open('rb') as damaged:
      head = damaged.read(32)
    _raise_damaged(str(path), head, error)
  return {n: Tensor(str(path), file.get_slice(n)) for n in file.keys()}


def open_remote(
  folder: remote_files.RemoteFolder, name: str
) -> dict[str, Tensor]:
  """Opens a file of a remote folder; rows of its tensors are fetched whole.

  Args:
    folder: where it lies.
    name: one of `folder.sizes`.

  Returns:
    Every tensor by name.

  Raises:
    types.InputError: no safetensors, or it cannot be fetched.
  """
  size = folder.sizes[name]
  head = folder.read(name, 0, min(size, _FIRST_BYTES))
  data_start = 8 + int.from_bytes(head[:8], 'little')
  if len(head) < data_start <= min(size, 8 + _MAX_HEADER_BYTES):
    head += folder.read(name, len(head), data_start)
  place = f'{folder.address}/{name}'
  try:
    facts = _checked_header(head, size)
  except (safetensors.SafetensorError, OSError) as error:
    _raise_damaged(place, head, error)
  header = json.loads(head[8:data_start])
  read = functools.partial(folder.read, name)
  tensors = {}
  for key, (shape, dtype) in facts.items():
    start = data_start + header[key]['data_offsets'][0]
    tensors[key] = Tensor(place, _RemoteView(shape, dtype, start, read))
  return tensors


@dataclasses.dataclass(frozen=True)
class _RemoteView:
  """A `View` of a remote file; reading is one request.

  Attributes:
    shape, dtype: of the tensor.
    start: its first byte in the file.
    read: (start, stop) -> bytes of the file.
  """

  shape: tuple[int, ...]
  dtype: str
  start: int
  read: Callable[[int, int], bytes]

  def get_shape(self) -> list[int]:
    return list(self.shape)

  def get_dtype(self) -> str:
    return self.dtype

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    rows, *rest = index
    dtype = FLOAT_DTYPES[self.dtype]
    row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
    data = self.read(
      self.start + rows.start * row_bytes, self.start + rows.stop * row_bytes
    )
    array = np.frombuffer(data, dtype).reshape(-1, *self.shape[1:])
    return array[(slice(None), *rest)]


def _checked_header(
  head: bytes, size: int
) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shape and dtype of each tensor, once the library took the header."""
  with tempfile.NamedTemporaryFile() as file:
    file.write(head)
    file.truncate(size)
    file.flush()
    with safetensors.safe_open(file.name, framework='numpy') as checked:
      views = {name: checked.get_slice(name) for name in checked.keys()}
      return {
        name: (tuple(view.get_shape()), view.get_dtype())
        for name, view in views.items()
      }


def _raise_damaged(place: str, head: bytes, error: Exception) -> NoReturn:
  """Says what a file that is no safetensors looks like."""
  if isinstance(error, OSError):
    line = f'cannot be read ({error})'
  elif head.startswith(b'version https://git-lfs'):
    line = 'a git-lfs pointer, not the weights: run "git lfs pull" there'
  # A pickle's protocol mark, and the zip archive that torch.save writes. A
  # header's length may begin like the former, but then there is its "{".
  elif head.startswith((b'\x80', b'PK\x03\x04')) and head[8:9] != b'{':
    line = 'a pickle, not safetensors: pickles are not read'
  else:
    line = f'truncated, damaged or no safetensors ({error})'
  raise types.InputError(f'{place}: {line}') from error
