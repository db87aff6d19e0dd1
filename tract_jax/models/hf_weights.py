"""The weights of a Hugging Face folder, read from safetensors.

In: a folder, local or remote, see models/tensor_files. Out: the parameter tree
of models/transformer, every leaf with the dtype and the sharding the caller
asks for. A process reads only what its own devices hold, a shard of one leaf
at a time: see models/shard_reads.

Layers are stacked and kernels transposed on the way (Hugging Face keeps
kernels as [out, in] and each layer apart):

  leaf                             tensors                             shape
  embed_tokens.weight       [V, D] model.embed_tokens.weight           [V, D]
  layers.mlp.up_proj.weight        model.layers.0.mlp.up_proj.weight   [F, D]
               [num_layers, D, F]  model.layers.1.mlp.up_proj.weight   [F, D]
  norm.weight                  [D] model.norm.weight                   [D]
  lm_head.weight            [D, V] lm_head.weight                      [V, D]

Everything that can be wrong with a folder is looked for before the first
number is read, and is a types.InputError.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import os
import re
from typing import Any, TypeAlias

import jax
import numpy as np

from tract_jax import types
from tract_jax.models import (
  lora,
  remote_files,
  safetensors_file,
  shard_reads,
  tensor_files,
)

SINGLE_FILE = tensor_files.SINGLE_FILE
INDEX_FILE = tensor_files.INDEX_FILE

# Rotary frequencies that old checkpoints carry as a buffer; computed here.
_COMPUTED_TENSOR = re.compile(r'.*\.rotary_emb\.inv_freq')

# A leaf's keys, such as ('layers', 'mlp', 'up_proj', 'weight').
Path: TypeAlias = tuple[str, ...]
Names: TypeAlias = Callable[[Path, tuple[int, ...]], list[str]]
Finish: TypeAlias = Callable[[Path, jax.Array], types.PyTree]


@dataclasses.dataclass(frozen=True)
class LoadMemory:
  """What `load_params` takes of one process.

  Attributes:
    device_bytes: of the leaves on the process's devices, copies counted.
    host_bytes: at most, beside them: the shards that are read at a time, and
      strips of their tensors.
    host_leaf: the leaf that takes so much, as "layers.mlp.up_proj.weight".
    read_bytes: of the files, where these have the leaves' dtypes.
  """

  device_bytes: int
  host_bytes: int
  host_leaf: str
  read_bytes: int


def load_params(
  folder: str | os.PathLike[str],
  abstract_params: types.PyTree,
  finish: Finish | None = None,
) -> types.PyTree:
  """Reads a Hugging Face folder into a parameter tree, shard by shard.

  Each distinct shard is read once, cast, stacked, and put on the devices that
  hold it before the next is read. A remote folder is read by ranges of whole
  rows: where columns are split, the process's shards of a leaf that differ in
  their columns alone are read together, so that each row comes once.

  Args:
    folder: local, or remote such as gs://bucket/model; see
      tensor_files.open_folder.
    abstract_params: nested dict of jax.ShapeDtypeStruct: the shapes that the
      model's config gives, the dtype to cast to, and the sharding. A leaf
      without sharding goes to the default device. Leaves named `lora_a` and
      `lora_b` are not in such a folder and are returned as they were given.
    finish: (path, array) -> what stands in the leaf's place, such as the
      quantised leaf. It is called as soon as a leaf is read, and its result
      awaited before the next, so that the unfinished leaves never exist all
      at once.

  Returns:
    A tree like `abstract_params`, with arrays, or with what `finish` gave.

  Raises:
    types.InputError: the folder or a file is missing, damaged or no
      safetensors; or its tensors are not those of `abstract_params`. A
      `lm_head.weight` beside tied embeddings is no error: tying wins.

  Example:
    >>> params = load_params('/models/mistral', abstract_params)
    >>> params['norm']['weight'].shape
    (4096,)
  """
  with contextlib.ExitStack() as stack:
    tensors = tensor_files.open_folder(folder, stack)
    return load_tensors(folder, tensors, abstract_params, hf_names, finish)


def load_tensors(
  folder: str | os.PathLike[str],
  tensors: Mapping[str, safetensors_file.Tensor],
  abstract_params: types.PyTree,
  names: Names,
  finish: Finish | None = None,
) -> types.PyTree:
  """Reads tensors that are open already; `load_params` for other names.

  Args:
    folder: where they come from.
    tensors: every tensor that is there, by name.
    abstract_params, finish: as for `load_params`.
    names: (path, shape) -> the tensors of a leaf, as `hf_names`; [] for a leaf
      that is not among them and is returned as it was given.

  Returns:
    A tree like `abstract_params`.

  Raises:
    types.InputError: the tensors are not those of `abstract_params`.
  """
  _check_tensors(str(folder), tensors, abstract_params, names)
  whole_rows = remote_files.is_remote(folder)

  def load_leaf(key_path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
    path = _leaf_path(key_path)
    sources = [tensors[name].view for name in names(path, leaf.shape)]
    if not sources:
      return leaf
    array = _load_leaf(path, leaf, sources, whole_rows)
    return jax.block_until_ready(finish(path, array)) if finish else array

  return jax.tree_util.tree_map_with_path(load_leaf, abstract_params)


def host_memory(
  abstract_params: types.PyTree,
  *,
  remote: bool = False,
  process_index: int | None = None,
  num_processes: int = 1,
) -> LoadMemory:
  """What `load_params` will take of one process; nothing is read or allocated.

  Args:
    abstract_params: as for `load_params`. The shardings may be over devices
      that are not there: of a TPU topology, or of an AbstractMesh.
    remote: whether the folder is.
    process_index: of the process; None is this one.
    num_processes: of an AbstractMesh; see shard_reads.process_shards.

  Returns:
    The numbers. With `finish`, the devices hold what it makes of the leaves,
    and one leaf unfinished.
  """
  device_bytes = read_bytes = host_bytes = 0
  host_leaf = ''
  for path, leaf in _leaves(abstract_params, hf_names):
    item_bytes = np.dtype(leaf.dtype).itemsize
    shards = shard_reads.process_shards(leaf, process_index, num_processes)
    for read in shard_reads.plan(
      leaf, _layout(path), shards, whole_rows=remote
    ):
      sizes = [math.prod(shard.shape) * item_bytes for shard in read.shards]
      copies = [len(shard.devices) for shard in read.shards]
      device_bytes += sum(map(math.prod, zip(sizes, copies, strict=True)))
      read_bytes += read.num_elements * item_bytes
      if sum(sizes) + read.strips_bytes > host_bytes:
        host_bytes = sum(sizes) + read.strips_bytes
        host_leaf = '.'.join(path)
  return LoadMemory(device_bytes, host_bytes, host_leaf, read_bytes)


def hf_names(path: Path, shape: tuple[int, ...]) -> list[str]:
  """Names of the Hugging Face tensors that make up one leaf.

  Args:
    path: the leaf's keys, such as ('layers', 'mlp', 'up_proj', 'weight').
    shape: the leaf's shape; that of a stacked leaf begins with num_layers.

  Returns:
    One name, or one per layer; none for an adapter, which has its own file.
  """
  if path[-1] in lora.LEAVES:
    return []
  if path[0] == 'layers':
    tail = '.'.join(path[1:])
    return [f'model.layers.{layer}.{tail}' for layer in range(shape[0])]
  name = '.'.join(path)
  return [name if path[0] == 'lm_head' else f'model.{name}']


def is_transposed(path: Path) -> bool:
  """Whether a leaf is the transpose of its tensor: all but the embedding.

  (The transpose of a norm's vector is the vector itself.)
  """
  return path[0] != 'embed_tokens'


def _layout(path: Path) -> shard_reads.Layout:
  return shard_reads.Layout(path[0] == 'layers', is_transposed(path))


def _leaf_path(key_path: Any) -> Path:
  return tuple(key.key for key in key_path)


def _leaves(
  abstract_params: types.PyTree, names: Names
) -> Iterator[tuple[Path, jax.ShapeDtypeStruct]]:
  """The leaves that a folder must hold, with their paths."""
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params):
    path = _leaf_path(key_path)
    if names(path, leaf.shape):
      yield path, leaf


def _load_leaf(
  path: Path,
  leaf: jax.ShapeDtypeStruct,
  sources: Sequence[safetensors_file.View],
  whole_rows: bool,
) -> jax.Array:
  """One leaf from its tensors; what is read is placed and freed in turn."""
  shards = shard_reads.process_shards(leaf)
  arrays: list[jax.Array] = []
  for read in shard_reads.plan(
    leaf, _layout(path), shards, whole_rows=whole_rows
  ):
    buffers = [np.empty(shard.shape, leaf.dtype) for shard in read.shards]
    read.fill(buffers, sources)
    for shard in read.shards:
      buffer = buffers.pop(0)
      arrays += [_put(buffer, device, leaf) for device in shard.devices]
      # Until then a device may still be reading the buffer.
      jax.block_until_ready(arrays)
      del buffer
  if leaf.sharding is None:
    return arrays[0]
  return jax.make_array_from_single_device_arrays(
    leaf.shape, leaf.sharding, arrays, dtype=leaf.dtype
  )


def _put(buffer: np.ndarray, device: Any, leaf: Any) -> jax.Array:
  if leaf.sharding is None:
    return jax.device_put(buffer)
  kind = leaf.sharding.memory_kind
  return jax.device_put(
    buffer, jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
  )


def _check_tensors(
  folder: str,
  tensors: Mapping[str, safetensors_file.Tensor],
  abstract_params: types.PyTree,
  names: Names,
) -> None:
  """Compares names, shapes and dtypes with what the model needs."""
  tied = 'lm_head' not in abstract_params
  allowed = safetensors_file.FLOAT_DTYPES
  problems = []
  expected = set()
  for path, leaf in _leaves(abstract_params, names):
    shape = _layout(path).tensor_shape(leaf.shape)
    for name in names(path, leaf.shape):
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
      if view.get_dtype() not in allowed:
        problems.append(
          f'{file}: {name}: dtype {view.get_dtype()}, which is none of'
          f' {", ".join(allowed)}'
        )
  for name in sorted(tensors.keys() - expected):
    if _COMPUTED_TENSOR.fullmatch(name) or (tied and name == 'lm_head.weight'):
      continue
    problems.append(
      f'{tensors[name].file}: {name}: the model has no such parameter'
    )
  types.raise_problems(
    problems, 'more of the kind', most=tensor_files.MAX_PROBLEMS
  )
