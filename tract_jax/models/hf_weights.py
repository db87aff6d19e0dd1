"""Weights in and out of a Hugging Face folder, as safetensors.

In: a folder with `model.safetensors`, or with `model.safetensors.index.json`
and the shards it names. Out: the parameter tree of models/transformer, every
leaf with the dtype and the sharding the caller asks for. A process reads only
the slices that its own devices hold.

Layers are stacked and kernels transposed on the way (Hugging Face keeps
kernels as [out, in] and each layer apart):

  leaf                             tensors                             shape
  embed_tokens.weight       [V, D] model.embed_tokens.weight           [V, D]
  layers.mlp.up_proj.weight        model.layers.0.mlp.up_proj.weight   [F, D]
               [num_layers, D, F]  model.layers.1.mlp.up_proj.weight   [F, D]
  norm.weight                  [D] model.norm.weight                   [D]
  lm_head.weight            [D, V] lm_head.weight                      [V, D]

Everything that can be wrong with a folder is looked for before the first
number is read, and is a types.InputError. Pickles (`*.bin`) are never opened.
"""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from tract_jax import types
from tract_jax.models import lora

SINGLE_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'

_SHARD_NAME = re.compile(r'[A-Za-z0-9._-]+\.safetensors')
_FLOAT_DTYPES = ('F32', 'F16', 'BF16')
# Rotary frequencies that old checkpoints carry as a buffer; computed here.
_COMPUTED_TENSOR = re.compile(r'.*\.rotary_emb\.inv_freq')
_MAX_LINES = 10
_STRIP_ROWS = 64

_Path = tuple[str, ...]
_Range = tuple[int, int]


class _Tensor(NamedTuple):
  """A tensor in an open file: `view` has get_shape, get_dtype and slicing."""

  file: pathlib.Path
  view: Any


def load_params(
  folder: str | os.PathLike[str], abstract_params: types.PyTree
) -> types.PyTree:
  """Reads a Hugging Face folder into a parameter tree, shard by shard.

  Args:
    folder: local folder with safetensors. `model.safetensors` is used where
      both it and an index stand there, as transformers does;
      `consolidated.safetensors` is ignored.
    abstract_params: nested dict of jax.ShapeDtypeStruct: the shapes that the
      model's config gives, the dtype to cast to, and the sharding. A leaf
      without sharding goes to the default device. Leaves named `lora_a` and
      `lora_b` are not in such a folder and are returned as they were given.

  Returns:
    A tree like `abstract_params`, with arrays.

  Raises:
    types.InputError: the folder or a file is missing, damaged or no
      safetensors; or its tensors are not those of `abstract_params`. A
      `lm_head.weight` beside tied embeddings is no error: tying wins.
  """
  folder = pathlib.Path(folder)
  with contextlib.ExitStack() as stack:
    tensors = _open_folder(folder, stack)
    _check_tensors(folder, tensors, abstract_params)

    def load_leaf(key_path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
      path = _leaf_path(key_path)
      if path[-1] in lora.LEAVES:
        return leaf
      sources = [tensors[name].view for name in hf_names(path, leaf.shape)]
      return _load_leaf(path, leaf, sources)

    return jax.tree_util.tree_map_with_path(load_leaf, abstract_params)


def hf_names(path: _Path, shape: tuple[int, ...]) -> list[str]:
  """Names of the Hugging Face tensors that make up one leaf.

  Args:
    path: the leaf's keys, such as ('layers', 'mlp', 'up_proj', 'weight').
    shape: the leaf's shape; that of a stacked leaf begins with num_layers.

  Returns:
    One name, or one per layer.
  """
  if path[0] == 'layers':
    tail = '.'.join(path[1:])
    return [f'model.layers.{layer}.{tail}' for layer in range(shape[0])]
  name = '.'.join(path)
  return [name if path[0] == 'lm_head' else f'model.{name}']


def is_transposed(path: _Path) -> bool:
  """Whether a leaf is the transpose of its tensor: all but the embedding.

  (The transpose of a norm's vector is the vector itself.)
  """
  return path[0] != 'embed_tokens'


def write_tensors(
  path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes one safetensors file that transformers reads; renamed when whole.

  Args:
    path: where to; a file of that name is replaced.
    tensors: arrays by name, in Hugging Face's layout.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.tmp')
  temporary.touch()
  mode = temporary.stat().st_mode
  # save_file takes an array's memory as it lies, whatever its strides.
  contiguous = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  safetensors.numpy.save_file(contiguous, temporary, metadata={'format': 'pt'})
  # save_file leaves a file that its owner alone may read.
  temporary.chmod(mode)
  os.replace(temporary, path)


def _leaf_path(key_path: Any) -> _Path:
  return tuple(key.key for key in key_path)


def _leaves(
  abstract_params: types.PyTree,
) -> Iterator[tuple[_Path, jax.ShapeDtypeStruct]]:
  """The leaves that a folder must hold, with their paths."""
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params):
    path = _leaf_path(key_path)
    if path[-1] not in lora.LEAVES:
      yield path, leaf


def _load_leaf(
  path: _Path, leaf: jax.ShapeDtypeStruct, sources: list[Any]
) -> jax.Array:
  """One leaf from its tensors, each device's shard apart."""

  # Devices that hold the same shard share one read.
  @functools.cache
  def read(ranges: tuple[_Range, ...]) -> np.ndarray:
    shard = np.empty([stop - start for start, stop in ranges], leaf.dtype)
    if path[0] != 'layers':
      _read_slice(shard, sources[0], ranges, is_transposed(path))
      return shard
    (first, last), *rest = ranges
    for layer, source in zip(shard, sources[first:last], strict=True):
      _read_slice(layer, source, tuple(rest), is_transposed(path))
    return shard

  def read_shard(index: Any) -> np.ndarray:
    ranges = zip(index, leaf.shape, strict=True)
    return read(tuple(part.indices(size)[:2] for part, size in ranges))

  if leaf.sharding is None:
    return jax.device_put(read_shard((slice(None),) * len(leaf.shape)))
  return jax.make_array_from_callback(
    leaf.shape, leaf.sharding, read_shard, dtype=leaf.dtype
  )


def _read_slice(
  target: np.ndarray, source: Any, ranges: tuple[_Range, ...], transposed: bool
) -> None:
  """Fills `target` with the part of a tensor at `ranges`, in leaf's layout."""
  if not transposed or target.ndim < 2:
    target[...] = source[tuple(slice(*part) for part in ranges)]
    return
  part = source[tuple(slice(*part) for part in ranges[::-1])]
  # In strips, a transposed copy misses the cache far less: 4 times as fast.
  for start in range(0, len(part), _STRIP_ROWS):
    stop = start + _STRIP_ROWS
    target[:, start:stop] = part[start:stop].T


def _open_folder(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, _Tensor]:
  """Opens the folder's safetensors; every tensor of it by name."""
  if not folder.is_dir():
    raise types.InputError(f'{folder}: no such local folder')
  # A link whose target is gone counts: it is then named as the missing file.
  if os.path.lexists(folder / SINGLE_FILE):
    return _open_file(folder / SINGLE_FILE, stack)
  if not (folder / INDEX_FILE).exists():
    raise types.InputError(_nothing_to_read(folder))
  weight_map = _read_index(folder / INDEX_FILE)
  tensors: dict[str, _Tensor] = {}
  problems = []
  for shard in sorted(set(weight_map.values())):
    for name, tensor in _open_file(folder / shard, stack).items():
      place = weight_map.get(name)
      if place == shard:
        tensors[name] = tensor
      else:
        where = f'places it in {place}' if place else 'does not name it'
        problems.append(f'{folder / shard}: {name}: {INDEX_FILE} {where}')
  for name in sorted(weight_map.keys() - tensors.keys()):
    problems.append(
      f'{folder / weight_map[name]}: {name}: named by {INDEX_FILE}, and'
      ' not there'
    )
  _raise_problems(problems)
  return tensors


def _nothing_to_read(folder: pathlib.Path) -> str:
  names = sorted(entry.name for entry in folder.iterdir())
  line = f'{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there'
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


def _read_index(path: pathlib.Path) -> dict[str, str]:
  """The index file's map from tensor to shard, its file names checked."""
  try:
    index = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise types.InputError(f'{path}: not JSON ({error})') from error
  weight_map = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(weight_map, dict) or not weight_map:
    raise types.InputError(f'{path}: weight_map: no map of tensors to files')
  for name, shard in weight_map.items():
    if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
      raise types.InputError(
        f'{path}: {name}: {shard!r} is not the name of a safetensors file'
      )
  return weight_map


def _open_file(
  path: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, _Tensor]:
  """Opens one safetensors file and reads its header, no numbers."""
  if not path.is_file():
    raise types.InputError(f'{path}: no such file')
  try:
    file = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
  except (safetensors.SafetensorError, OSError) as error:
    raise types.InputError(f'{path}: {_diagnosis(path, error)}') from error
  return {name: _Tensor(path, file.get_slice(name)) for name in file.keys()}


def _diagnosis(path: pathlib.Path, error: Exception) -> str:
  """Says what a file that is no safetensors looks like."""
  if isinstance(error, OSError):
    return f'cannot be read ({error})'
  with path.open('rb') as file:
    head = file.read(32)
  if head.startswith(b'version https://git-lfs'):
    return 'a git-lfs pointer, not the weights: run "git lfs pull" there'
  # A pickle's protocol mark, and the zip archive that torch.save writes.
  if head.startswith((b'\x80', b'PK\x03\x04')):
    return 'a pickle, not safetensors: pickles are not read'
  return f'truncated, damaged or no safetensors ({error})'


def _check_tensors(
  folder: pathlib.Path,
  tensors: Mapping[str, _Tensor],
  abstract_params: types.PyTree,
) -> None:
  """Compares names, shapes and dtypes with what the model needs."""
  tied = 'lm_head' not in abstract_params
  problems = []
  expected = set()
  for path, leaf in _leaves(abstract_params):
    shape = leaf.shape[1:] if path[0] == 'layers' else leaf.shape
    shape = list(shape[::-1] if is_transposed(path) else shape)
    for name in hf_names(path, leaf.shape):
      expected.add(name)
      if name not in tensors:
        problems.append(f'{folder}: {name}: missing, expected {shape}')
        continue
      file, view = tensors[name]
      if view.get_shape() != shape:
        problems.append(
          f'{file}: {name}: shape {view.get_shape()}, but the config gives'
          f' {shape}'
        )
      if view.get_dtype() not in _FLOAT_DTYPES:
        problems.append(
          f'{file}: {name}: dtype {view.get_dtype()}, which is none of'
          f' {", ".join(_FLOAT_DTYPES)}'
        )
  for name in sorted(tensors.keys() - expected):
    if _COMPUTED_TENSOR.fullmatch(name) or (tied and name == 'lm_head.weight'):
      continue
    problems.append(
      f'{tensors[name].file}: {name}: the model has no such parameter'
    )
  _raise_problems(problems)


def _raise_problems(problems: list[str]) -> None:
  if len(problems) > _MAX_LINES:
    rest = len(problems) - _MAX_LINES
    problems = [*problems[:_MAX_LINES], f'and {rest} more of the kind']
  if problems:
    raise types.InputError('\n'.join(problems))
