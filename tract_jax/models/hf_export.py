"""A Hugging Face folder out of a parameter tree: weights and configuration.

In: the tree of models/transformer, without adapters. Out: a folder that
`transformers` and models/hf_weights read: `model.safetensors`, or numbered
shards and then `model.safetensors.index.json`; `config.json` and
`generation_config.json`. Names and layout are those of models/hf_weights.

What goes into which shard is planned from shapes alone. Then one tensor after
another, a single layer of a stacked leaf, is sliced, transposed and cast on
the devices and fetched; the host holds one shard at most. Each file is written
under another name and renamed when it is whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import tempfile
from typing import Any, NamedTuple

from etils import epath
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import hf_config, hf_weights, lora, remote_files

MAX_SHARD_BYTES = 5 * 10**9
CONFIG_FILE = 'config.json'
GENERATION_FILE = 'generation_config.json'

_FILE_PATTERN = 'model{suffix}.safetensors'
_WEIGHT_FILE = re.compile(
  r'model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?'
)
_ORDER = ('embed_tokens', 'layers', 'norm', 'lm_head')
_DTYPES = ('float32', 'bfloat16', 'float16')
# What describes how a base was stored, and is no longer so.
_STORAGE_FIELDS = ('quantization_config', 'compression_config')


@dataclasses.dataclass(frozen=True)
class TokenIds:
  """Special tokens, as configuration files name them.

  Attributes:
    bos: starts a text; None where there is none.
    eos: each ends the judge's text: that of the chat template's turn and, where
      it is another, that of the tokenizer. One at least.
    pad: filler; None where there is none.
  """

  bos: int | None
  eos: tuple[int, ...]
  pad: int | None


class _Tensor(NamedTuple):
  """One tensor of the folder: a leaf of params, or one layer of it."""

  leaf: Any
  layer: int | None
  transposed: bool

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.leaf.shape[0 if self.layer is None else 1 :])


def write_weights(
  folder: epath.PathLike,
  params: types.PyTree,
  *,
  dtype: Any,
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
  """Writes parameters as safetensors, bit-equal where the dtype is theirs.

  In a run of several processes all of them must call this, for gathering a
  tensor takes them all; the first one writes.

  Args:
    folder: local or gs://; made where it is missing. An earlier, unfinished
      call's files are replaced.
    params: nested dict of arrays, of any sharding; without adapters.
    dtype: of every tensor written: float32, bfloat16 or float16.
    max_shard_bytes: largest file; a tensor that is larger has its own.

  Returns:
    Names of the files, the index last.

  Raises:
    types.InputError: another dtype, or weights under other file names in the
      folder, which a reader could take for these.
    OSError: a file cannot be written; no index then names it.
  """
  dtype = jnp.dtype(dtype)
  if dtype.name not in _DTYPES:
    raise types.InputError(
      f'export dtype {dtype.name!r}: must be one of {", ".join(_DTYPES)}'
    )
  tensors = dict(_tensors(params))
  plan = huggingface_hub.split_state_dict_into_shards_factory(
    tensors,
    get_storage_size=lambda tensor: tensor.size * dtype.itemsize,
    filename_pattern=_FILE_PATTERN,
    max_shard_size=max_shard_bytes,
  )
  names = list(plan.filename_to_tensors)
  if plan.is_sharded:
    names.append(hf_weights.INDEX_FILE)
  folder = epath.Path(folder)
  is_writer = jax.process_index() == 0
  if is_writer:
    _prepare(folder, names)
  for file_name, members in plan.filename_to_tensors.items():
    shard = {}
    for name in members:
      # Gathered by every process, kept by the one that writes.
      tensor = host_tensor(**tensors[name]._asdict(), dtype=dtype)
      if is_writer:
        shard[name] = tensor
    if is_writer:
      write_tensors(folder / file_name, shard)
  if is_writer and plan.is_sharded:
    index = {'metadata': plan.metadata, 'weight_map': plan.tensor_to_filename}
    write_json(folder / hf_weights.INDEX_FILE, index)
  return names


def write_tensors(
  path: epath.PathLike, tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes one safetensors file that transformers reads; renamed when whole.

  Args:
    path: where to; a file of that name is replaced.
    tensors: arrays by name, in Hugging Face's layout.
  """
  # save_file takes an array's memory as it lies, whatever its strides.
  contiguous = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  _write_file(
    epath.Path(path),
    lambda local: safetensors.numpy.save_file(
      contiguous, local, metadata={'format': 'pt'}
    ),
  )


def write_config(
  folder: epath.PathLike,
  model_config: config_lib.ModelConfig,
  *,
  dtype: Any,
  tokens: TokenIds,
  base_config: Mapping[str, Any] | None = None,
  base_generation: Mapping[str, Any] | None = None,
) -> None:
  """Writes config.json and generation_config.json.

  Args:
    folder: local or gs://; made where it is missing.
    model_config: the architecture; written where there is no base.
    dtype: of the weights in the folder.
    tokens: ids that the files name. Those of a base stay, but generation also
      ends at every one of `tokens.eos`.
    base_config: config.json of the seed model; all of it is kept but how its
      weights were stored. None for a model from scratch.
    base_generation: generation_config.json of the seed model, where it has one.

  Raises:
    types.InputError: an architecture that no config.json describes, or a base
      whose config.json describes another one.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  own_ids = {
    'bos_token_id': tokens.bos,
    'eos_token_id': _one_or_list(tokens.eos),
    'pad_token_id': tokens.pad,
  }
  if base_config is None:
    fields = {**hf_config.config_to_hf(model_config), **own_ids}
  else:
    fields = {k: v for k, v in base_config.items() if k not in _STORAGE_FIELDS}
    if hf_config.config_from_hf(fields) != model_config:
      raise types.InputError(
        f'{CONFIG_FILE} of the seed model is not that of the exported weights'
      )
  # The spellings of transformers 5 and 4.
  fields |= dict.fromkeys(('dtype', 'torch_dtype'), jnp.dtype(dtype).name)
  generation = {k: v for k, v in own_ids.items() if v is not None}
  generation |= base_generation or {}
  ends = [*_as_ids(generation.get('eos_token_id')), *tokens.eos]
  generation['eos_token_id'] = _one_or_list(list(dict.fromkeys(ends)))
  write_json(folder / CONFIG_FILE, fields)
  write_json(folder / GENERATION_FILE, generation)


def write_json(path: epath.PathLike, value: Mapping[str, Any]) -> None:
  """Writes a JSON file, its keys sorted; renamed when it is whole."""
  text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + '\n'
  _write_file(epath.Path(path), lambda local: local.write_bytes(text.encode()))


def host_tensor(
  leaf: Any, layer: int | None, *, transposed: bool, dtype: Any
) -> np.ndarray:
  """One tensor of the folder, gathered from wherever its parts are.

  Sliced, transposed and cast on the devices. In a run of several processes all
  of them must call this.

  Args:
    leaf: an array, or a stack of num_layers of them; of any sharding.
    layer: which of the stack; None for a leaf that is not stacked.
    transposed: whether the tensor is the leaf's transpose.
    dtype: of the tensor.

  Returns:
    The tensor, in C order.
  """
  sharding = getattr(leaf, 'sharding', None)
  whole = None
  if isinstance(sharding, jax.sharding.NamedSharding):
    spec = jax.sharding.PartitionSpec()
    whole = jax.sharding.NamedSharding(sharding.mesh, spec)
  fetch = _fetcher(layer is not None, transposed, jnp.dtype(dtype), whole)
  return np.asarray(fetch(leaf, layer or 0).addressable_data(0))


@functools.cache
def _fetcher(stacked: bool, transposed: bool, dtype: Any, sharding: Any) -> Any:
  """(leaf, layer) -> tensor, compiled once for every shape of leaf."""

  def fetch(leaf, layer):
    if stacked:
      leaf = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    return (leaf.T if transposed else leaf).astype(dtype)

  return jax.jit(fetch, out_shardings=sharding)


def _tensors(params: types.PyTree) -> Iterator[tuple[str, _Tensor]]:
  """Every tensor by its Hugging Face name, one layer after another."""
  leaves = [
    (tuple(key.key for key in key_path), leaf)
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
  found = []
  for path, leaf in leaves:
    if path[-1] in lora.LEAVES:
      raise ValueError(f'{"/".join(path)}: merge adapters before the export')
    stacked = path[0] == 'layers'
    for i, name in enumerate(hf_weights.hf_names(path, leaf.shape)):
      layer = i if stacked else None
      tensor = _Tensor(leaf, layer, hf_weights.is_transposed(path))
      found.append(((_ORDER.index(path[0]), i), name, tensor))
  for _, name, tensor in sorted(found, key=lambda entry: entry[0]):
    yield name, tensor


def _prepare(folder: epath.Path, names: Sequence[str]) -> None:
  """Makes the folder, and sees that nothing in it passes for what comes."""
  folder.mkdir(parents=True, exist_ok=True)
  # A bucket has no empty folders.
  there = folder.iterdir() if folder.exists() else ()
  foreign = sorted(
    path.name
    for path in there
    if _WEIGHT_FILE.fullmatch(path.name) and path.name not in names
  )
  if foreign:
    raise types.InputError(
      f'{folder}: {foreign[0]} is in the way: weights that this export does not'
      ' replace; export to another folder'
    )
  # An index that is there would vouch for shards both old and new.
  (folder / hf_weights.INDEX_FILE).unlink(missing_ok=True)


def _write_file(path: epath.Path, write: Callable[[pathlib.Path], Any]) -> None:
  """Lets `write` make a local file, and puts it in its place when whole."""
  if remote_files.is_remote(path):
    with tempfile.TemporaryDirectory() as scratch:
      local = pathlib.Path(scratch, path.name)
      write(local)
      remote_files.put(local, path)
    return
  temporary = pathlib.Path(path).with_name(f'.{path.name}.tmp')
  try:
    temporary.touch()
    mode = temporary.stat().st_mode
    write(temporary)
    # safetensors leaves a file that its owner alone may read.
    temporary.chmod(mode)
    os.replace(temporary, path)
  except safetensors.SafetensorError as error:
    raise OSError(f'{path}: {error}') from error
  finally:
    temporary.unlink(missing_ok=True)


def _one_or_list(ids: Sequence[int]) -> int | list[int]:
  return ids[0] if len(ids) == 1 else list(ids)


def _as_ids(value: Any) -> list[int]:
  """The token ids of a field that holds none, one or a list."""
  ids = [] if value is None else value if isinstance(value, list) else [value]
  if not all(type(i) is int for i in ids):
    raise types.InputError(
      f'{GENERATION_FILE}: eos_token_id={value!r}: must be a token id, or a '
      'list of them'
    )
  return ids
