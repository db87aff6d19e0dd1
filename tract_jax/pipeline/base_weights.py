"""The weights of a base model: read or drawn, cast, merged, quantised.

    safetensors -> leaf by leaf: read own shards, merge the path's adapter,
      quantise -> params, with fresh adapters where the run trains them

Arrays lie on the model's mesh from the start.
"""

from collections.abc import Callable
import functools
import operator
import time
from typing import Any

import jax
import jax.numpy as jnp

from tract_jax import types
from tract_jax.models import (
  hf_weights,
  lora,
  peft_adapter,
  quantization,
  remote_files,
  transformer,
)
from tract_jax.parallel import partition
from tract_jax.pipeline import base_model, progress

# (path of a leaf, the leaf as it is stored) -> the leaf as it is used.
_Finish = Callable[[tuple[str, ...], jax.Array], types.PyTree]


def init_params(
  model: base_model.BaseModel, seed: int, dtype: Any = None
) -> tuple[types.PyTree, types.PyTree]:
  """Reads or draws all parameters, sharded from the start.

  Args:
    model: of `base_model.from_source` or `from_scratch`.
    seed: draws random weights and adapters.
    dtype: of weights that are read, as for `read_weights`.

  Returns:
    (trainable, frozen), each with None where the other has a leaf.
  """
  key = jax.random.fold_in(jax.random.key(seed), 0)
  if model.sources is None:
    params = jax.jit(
      lambda k: jax.tree.map(
        lambda x, like: x.astype(like.dtype), model.fns.init(k), model.abstract
      ),
      out_shardings=_shardings(model.abstract),
    )(key)
    return lora.split_trainable(params, model.train_base)
  weights = read_weights(model, dtype)
  adapters, _ = lora.split_trainable(model.abstract, train_base=False)
  if not jax.tree.leaves(adapters):
    return lora.split_trainable(weights, model.train_base)
  # Only the adapters are drawn: the compiler drops the unused base.
  init = jax.jit(
    lambda k: lora.split_trainable(model.fns.init(k), train_base=False)[0],
    out_shardings=_shardings(adapters),
  )
  return lora.split_trainable(lora.merge(init(key), weights), model.train_base)


def read_weights(
  model: base_model.BaseModel, dtype: Any = None
) -> types.PyTree:
  """The weights as they are stored, without fresh adapters.

  Args:
    model: of `base_model.from_source`.
    dtype: in which they are kept; None: as those of a run that may train them.

  Returns:
    Params on the mesh: the folder's, with the path's adapter merged into them,
    quantised where the model says so.

  Raises:
    types.InputError: files that are damaged, or not of this model.
  """
  merge = _source_merge(model)

  def finish(path, leaf):
    leaf = merge(path, leaf)
    if model.quantization:
      like = functools.reduce(operator.getitem, path, model.abstract)
      return quantization.quantize_leaf(path, leaf, model.quantization, like)
    return leaf

  return _read(model, finish, dtype)


def for_sampling(
  model: base_model.BaseModel, params: types.PyTree
) -> types.PyTree:
  """The params to sample with: in the dtype in which the model computes.

  Args:
    model: of the run.
    params: the whole model, or shapes in its place.

  Returns:
    The params themselves, or others where they are kept in float32 to be
    trained.
  """
  if not model.train_base:
    return params

  def cast(x):
    if isinstance(x, jax.ShapeDtypeStruct):
      return x.update(dtype=model.dtype)
    return x.astype(model.dtype)

  return jax.tree.map(cast, params)


def cot_params(
  model: base_model.BaseModel, params: types.PyTree, kind: str
) -> types.PyTree:
  """The params with which CoTs are written, and their scores read.

  Args:
    model: of the run.
    params: of `for_sampling`.
    kind: config.sampling.weights.

  Returns:
    The params themselves, or new ones with linear layers in 8 bits. Weights
    that are quantised already stay as they are.
  """
  if not kind or model.quantization:
    return params
  return jax.jit(functools.partial(quantization.quantize, kind=kind))(params)


def cot_shapes(model: base_model.BaseModel, kind: str) -> types.PyTree:
  """Shapes and shardings of what `cot_params` gives.

  Args:
    model: of the run, on the mesh to sample on.
    kind: config.sampling.weights.

  Returns:
    Tree of jax.ShapeDtypeStruct.
  """
  params = for_sampling(model, model.abstract)
  if not kind or model.quantization:
    return params
  shapes = quantization.abstract(params, kind)
  axes = quantization.logical_axes(model.fns.logical_axes, shapes)
  shardings = partition.tree_shardings(model.mesh, axes, shapes)
  return jax.tree.map(
    lambda x, sharding: x.update(sharding=sharding), shapes, shardings
  )


def bytes_beside(model: base_model.BaseModel, kind: str) -> int:
  """Bytes of each device of weights that lie beside those of `cot_params`.

  Args:
    model: of the run, on the mesh to sample on.
    kind: config.sampling.weights.

  Returns:
    Where new ones in 8 bits are made, those of the ones that they are made of,
    which stay for what is not CoTs; else 0.
  """
  if not kind or model.quantization:
    return 0
  return partition.device_bytes(for_sampling(model, model.abstract))


def load_memory(model: base_model.BaseModel) -> hf_weights.LoadMemory | None:
  """What reading the weights takes of this process; nothing is read.

  Args:
    model: of `base_model.from_source` or `from_scratch`.

  Returns:
    The numbers; None for a model from scratch.
  """
  if model.sources is None:
    return None
  _, base = lora.split_trainable(model.stored, train_base=False)
  remote = remote_files.is_remote(model.sources.base.weights)
  return hf_weights.host_memory(base, remote=remote)


def trained_weights(
  model: base_model.BaseModel,
  trained: types.PyTree,
  adapters: lora.LoraConfig,
  dtype: str,
) -> types.PyTree:
  """The whole model after training, without adapters, never quantised.

  Args:
    model: that was trained.
    trained: its trained leaves.
    adapters: theirs.
    dtype: of the weights that adapters are merged into.

  Returns:
    Params on the mesh. Adapters are merged into the weights as they are
    stored, also where they were trained on quantised ones.

  Raises:
    types.InputError: files that are damaged, or not of this model.
  """
  if model.train_base:
    return trained
  merges = [_source_merge(model), _merge(trained, adapters.scaling)]

  def finish(path, leaf):
    for merge in merges:
      leaf = merge(path, leaf)
    return leaf

  return _read(model, finish, jnp.dtype(dtype))


def _read(
  model: base_model.BaseModel, finish: _Finish, dtype=None
) -> types.PyTree:
  """Reads leaf by leaf, each finished before the next one is read."""
  if model.sources is None:
    raise ValueError('a model from scratch has no weights to read')
  begin = time.perf_counter()
  _, base = lora.split_trainable(model.stored, train_base=False)
  if dtype is not None:
    base = jax.tree.map(lambda x: x.update(dtype=dtype), base)
  source = model.sources.base
  weights = hf_weights.load_params(source.weights, base, finish=finish)
  progress.say(
    f'seed model: {model.sources.name} read in '
    f'{progress.duration(time.perf_counter() - begin)}'
  )
  return weights


def _source_merge(model: base_model.BaseModel) -> _Finish:
  """Merges the adapter of the model's sources, where there is one."""
  source = model.sources.adapter if model.sources else None
  if source is None:
    return lambda path, leaf: leaf
  adapter = peft_adapter.read_config(source.folder)
  fns = transformer.make_model(
    model.config, lora_rank=adapter.rank, lora_targets=adapter.targets
  )
  shapes = transformer.abstract_params(fns)
  abstract = base_model.placed(model.mesh, fns.logical_axes, shapes)
  leaves = peft_adapter.load_adapter(source.weights, abstract)
  return _merge(leaves, adapter.scaling)


def _merge(adapters: types.PyTree, scaling: float) -> _Finish:
  """(path, leaf) -> the leaf with its adapter merged into it."""

  @functools.partial(jax.jit, donate_argnums=1)
  def merge(adapter, weight):
    layer = {**adapter, 'weight': weight}
    return lora.merge_adapters(layer, scaling)['weight']

  def finish(path, leaf):
    layer = adapters
    for name in path[:-1]:
      layer = layer.get(name) or {}
    adapter = {name: layer.get(name) for name in lora.LEAVES}
    if path[-1] != 'weight' or None in adapter.values():
      return leaf
    return merge(adapter, leaf)

  return finish


def _shardings(abstract: types.PyTree) -> types.PyTree:
  return jax.tree.map(lambda x: x.sharding, abstract)
