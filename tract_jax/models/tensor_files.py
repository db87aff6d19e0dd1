"""The safetensors files of a folder, local or remote, as one set of tensors.

In: a folder with `model.safetensors`, or with `model.safetensors.index.json`
and the shards it names. Out: every tensor by name, see safetensors_file. No
name in an index leads out of the folder; pickles (`*.bin`) are never opened.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import re

from tract_jax import types
from tract_jax.models import remote_files, safetensors_file

SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'

_SHARD_NAME = re.compile(r'[A-Za-z0-9._-]+\.safetensors')
_MAX_INDEX_BYTES = 64 * 2**20
# Of a model, a wrong one may have hundreds.
MAX_PROBLEMS = 10

_Tensors = dict[str, safetensors_file.Tensor]


def open_folder(
  folder: str | os.PathLike[str], stack: contextlib.ExitStack
) -> _Tensors:
  """Opens the weights of a model.

  Args:
    folder: local, or remote such as gs://bucket/model. `model.safetensors` is
      used where both it and an index stand there, as transformers does;
      `consolidated.safetensors` is ignored.
    stack: closes the files.

  Returns:
    Every tensor by name.

  Raises:
    types.InputError: the folder or a file of it is missing or no safetensors;
      or index and files disagree.
  """
  files = _open(folder)
  names = files.names()
  if SINGLE_FILE in names:
    return files.open(SINGLE_FILE, stack)
  if INDEX_FILE not in names:
    raise types.InputError(f'{folder}: {_nothing_to_read(names)}')
  weight_map = _weight_map(f'{folder}/{INDEX_FILE}', files.read(INDEX_FILE))
  tensors: _Tensors = {}
  problems = []
  for shard in sorted(set(weight_map.values())):
    for name, tensor in files.open(shard, stack).items():
      place = weight_map.get(name)
      if place == shard:
        tensors[name] = tensor
      else:
        where = f'places it in {place}' if place else 'does not name it'
        problems.append(f'{folder}/{shard}: {name}: {INDEX_FILE} {where}')
  for name in sorted(weight_map.keys() - tensors.keys()):
    problems.append(
      f'{folder}/{weight_map[name]}: {name}: named by {INDEX_FILE}, and not'
      ' there'
    )
  types.raise_problems(problems, 'more of the kind', most=MAX_PROBLEMS)
  return tensors


def open_file(
  folder: str | os.PathLike[str], name: str, stack: contextlib.ExitStack
) -> _Tensors:
  """Opens one safetensors file of a folder, such as an adapter's.

  Args:
    folder: local or remote.
    name: of the file.
    stack: closes it.

  Returns:
    Every tensor by name.

  Raises:
    types.InputError: as `open_folder`.
  """
  return _open(folder).open(name, stack)


@dataclasses.dataclass(frozen=True)
class _Local:
  """A folder on a local disk."""

  folder: pathlib.Path

  def names(self) -> list[str]:
    """A link whose target is gone is named, too, and fails when opened."""
    if not self.folder.is_dir():
      raise types.InputError(f'{self.folder}: no such local folder')
    return sorted(entry.name for entry in self.folder.iterdir())

  def read(self, name: str) -> bytes:
    path = self._path(name)
    _check_index_size(str(path), path.stat().st_size)
    return path.read_bytes()

  def open(self, name: str, stack: contextlib.ExitStack) -> _Tensors:
    return safetensors_file.open_local(self._path(name), stack)

  def _path(self, name: str) -> pathlib.Path:
    """The path of a file; it may be a link, as in the hub's cache."""
    path = self.folder / name
    if not path.is_file():
      raise types.InputError(f'{path}: no such file')
    return path


@dataclasses.dataclass(frozen=True)
class _Remote:
  """A folder that is read by byte ranges."""

  folder: remote_files.RemoteFolder

  def names(self) -> list[str]:
    return sorted(self.folder.sizes)

  def read(self, name: str) -> bytes:
    size = self.folder.sizes[name]
    _check_index_size(f'{self.folder.address}/{name}', size)
    return self.folder.read(name, 0, size)

  def open(self, name: str, stack: contextlib.ExitStack) -> _Tensors:
    del stack  # Nothing stays open between two requests.
    if name not in self.folder.sizes:
      raise types.InputError(f'{self.folder.address}/{name}: no such file')
    return safetensors_file.open_remote(self.folder, name)


def _open(folder: str | os.PathLike[str]) -> _Local | _Remote:
  if remote_files.is_remote(folder):
    return _Remote(remote_files.open_folder(folder))
  return _Local(pathlib.Path(folder))


def _nothing_to_read(names: Sequence[str]) -> str:
  line = f'neither {SINGLE_FILE} nor {INDEX_FILE} is there'
  pickles = [name for name in names if name.endswith(('.bin', '.pt', '.pth'))]
  others = [name for name in names if name.endswith('.safetensors')]
  if pickles:
    line += (
      f'; {pickles[0]} is a pickle and is not read: convert the model to'
      ' safetensors'
    )
  elif others:
    line += f'; {others[0]} is not read'
  return line


def _check_index_size(place: str, size: int) -> None:
  if size > _MAX_INDEX_BYTES:
    raise types.InputError(
      f'{place}: {size} bytes, and an index has at most {_MAX_INDEX_BYTES}'
    )


def _weight_map(place: str, content: bytes) -> dict[str, str]:
  """The index file's map from tensor to shard, its file names checked."""
  try:
    index = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise types.InputError(f'{place}: not JSON ({error})') from error
  weight_map = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(weight_map, dict) or not weight_map:
    raise types.InputError(f'{place}: weight_map: no map of tensors to files')
  for name, shard in weight_map.items():
    if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
      raise types.InputError(
        f'{place}: {name}: {shard!r} is not the name of a safetensors file'
      )
  return weight_map
