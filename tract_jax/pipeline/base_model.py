"""The model that a run starts from: architecture, functions, mesh, weights.

    model.path -> config.json -> ModelConfig -> ModelFns, shardings
      -> safetensors, leaf by leaf: read own shards, merge the path's adapter,
         quantise -> params, with fresh adapters where the run trains them

No weight is read or made before `init_params`.
"""

from collections.abc import Callable
import dataclasses
import functools
import operator
import time

import jax
import jax.numpy as jnp
import ml_collections

from tract_jax import types
from tract_jax.models import config as model_config_lib
from tract_jax.models import (
  hf_config,
  hf_weights,
  json_file,
  lora,
  peft_adapter,
  quantization,
  remote_files,
  transformer,
)
from tract_jax.parallel import partition
from tract_jax.pipeline import model_source, on_mesh, progress

# Of a model from scratch; its rotary angles would serve any length.
_LONGEST_ROW = 1 << 15

# (path of a leaf, the leaf as it is stored) -> the leaf as it is used.
_Finish = Callable[[tuple[str, ...], jax.Array], types.PyTree]


@dataclasses.dataclass(frozen=True)
class BaseModel:
  """A seed model or a judge, as functions; nothing in it changes.

  Attributes:
    config: the architecture.
    fns: the model as pure functions.
    cot_fns: the same, keeping keys and values as config.sampling.kv_cache says.
    mesh: the devices.
    stored: tree like params: shape, dtype and sharding of every array, before
      anything is quantised.
    abstract: the same of the params themselves.
    sources: where the weights are; None for a model from scratch.
    quantization: of the frozen weights: "", "int8" or "nf4".
    train_base: whether training changes the weights, not only adapters.
  """

  config: model_config_lib.ModelConfig
  fns: types.ModelFns
  cot_fns: types.ModelFns
  mesh: jax.sharding.Mesh
  stored: types.PyTree
  abstract: types.PyTree
  sources: model_source.Sources | None
  quantization: str
  train_base: bool


def from_source(
  sources: model_source.Sources,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> BaseModel:
  """A model whose weights are in a Hugging Face folder.

  Args:
    sources: of `model_source.find_model`.
    config: checked, with every key.
    mesh: where it lies.

  Returns:
    The model.

  Raises:
    types.InputError: an architecture that is not supported, or that the mesh
      cannot split.
  """
  fields = json_file.read(sources.folder / 'config.json')
  try:
    architecture = hf_config.config_from_hf(fields)
  except types.InputError as error:
    lines = str(error).splitlines()
    raise types.InputError(
      '\n'.join(f'{sources.base.name}: {line}' for line in lines)
    ) from error
  return _make(architecture, sources, config, mesh)


def from_scratch(
  config: ml_collections.ConfigDict,
  vocab_size: int,
  mesh: jax.sharding.Mesh,
) -> BaseModel:
  """A model with random weights, of the numbers in config.model.

  Args:
    config: checked, with every key.
    vocab_size: V.
    mesh: where it lies.

  Returns:
    The model.

  Raises:
    types.InputError: the mesh cannot split it.
  """
  model = config.model
  architecture = model_config_lib.ModelConfig(
    vocab_size=vocab_size,
    hidden_size=model.hidden_size,
    intermediate_size=model.intermediate_size,
    num_layers=model.num_layers,
    num_heads=model.num_heads,
    num_kv_heads=model.num_kv_heads,
    head_dim=model.hidden_size // model.num_heads,
    rope_theta=model.rope_theta,
    initializer_range=model.initializer_range,
    max_position_embeddings=_LONGEST_ROW,
    tie_word_embeddings=True,
  )
  return _make(architecture, None, config, mesh)


def elsewhere(
  model: BaseModel, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> BaseModel:
  """The same model on another mesh, such as one host's, to sample there.

  Args:
    model: of `from_source` or `from_scratch`.
    config: that it was made with.
    mesh: where it is to lie.

  Returns:
    The model.

  Raises:
    types.InputError: the mesh cannot split it.
  """
  return _make(model.config, model.sources, config, mesh)


def from_architecture(
  architecture: model_config_lib.ModelConfig,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> BaseModel:
  """A model without weights to read, for what works on shapes alone.

  Args:
    architecture: its numbers.
    config: checked, with every key.
    mesh: where it lies.

  Returns:
    The model.

  Raises:
    types.InputError: the mesh cannot split it.
  """
  return _make(architecture, None, config, mesh)


def init_params(
  model: BaseModel, seed: int
) -> tuple[types.PyTree, types.PyTree]:
  """Reads or draws all parameters, sharded from the start.

  Args:
    model: of `from_source` or `from_scratch`.
    seed: draws random weights and adapters.

  Returns:
    (trainable, frozen), each with None where the other has a leaf.
  """
  key = jax.random.fold_in(jax.random.key(seed), 0)
  if model.sources is None:
    params = jax.jit(model.fns.init, out_shardings=_shardings(model.abstract))(
      key
    )
    return lora.split_trainable(params, model.train_base)
  weights = read_weights(model)
  adapters, _ = lora.split_trainable(model.abstract, train_base=False)
  if not jax.tree.leaves(adapters):
    return lora.split_trainable(weights, model.train_base)
  # Only the adapters are drawn: the compiler drops the unused base.
  init = jax.jit(
    lambda k: lora.split_trainable(model.fns.init(k), train_base=False)[0],
    out_shardings=_shardings(adapters),
  )
  return lora.split_trainable(lora.merge(init(key), weights), model.train_base)


def read_weights(model: BaseModel) -> types.PyTree:
  """The weights as they are stored, without fresh adapters.

  Args:
    model: of `from_source`.

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

  return _read(model, finish)


def cot_params(
  model: BaseModel, params: types.PyTree, kind: str
) -> types.PyTree:
  """The params with which CoTs are written, and their scores read.

  Args:
    model: of the run.
    params: the whole model.
    kind: config.sampling.weights.

  Returns:
    The params themselves, or new ones with linear layers in 8 bits. Weights
    that are quantised already stay as they are.
  """
  if not kind or model.quantization:
    return params
  return jax.jit(functools.partial(quantization.quantize, kind=kind))(params)


def load_memory(model: BaseModel) -> hf_weights.LoadMemory | None:
  """What reading the weights takes of this process; nothing is read.

  Args:
    model: of `from_source` or `from_scratch`.

  Returns:
    The numbers; None for a model from scratch.
  """
  if model.sources is None:
    return None
  _, base = lora.split_trainable(model.stored, train_base=False)
  remote = remote_files.is_remote(model.sources.base.weights)
  return hf_weights.host_memory(base, remote=remote)


def trained_weights(
  model: BaseModel,
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


def _read(model: BaseModel, finish: _Finish, dtype=None) -> types.PyTree:
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


def _make(architecture, sources, config, mesh) -> BaseModel:
  model = config.model
  make_model = functools.partial(
    transformer.make_model,
    architecture,
    dtype=jnp.dtype(model.dtype),
    lora_rank=model.lora_rank,
    lora_alpha=model.lora_alpha,
    lora_targets=model.lora_targets,
    remat=model.remat,
    placement=on_mesh.make_placement(
      model.attention, mesh, architecture.num_heads
    ),
  )
  fns = make_model()
  stored = _placed(mesh, fns.logical_axes, transformer.abstract_params(fns))
  abstract = stored
  if model.base_quantization:
    shapes = quantization.abstract(stored, model.base_quantization)
    axes = quantization.logical_axes(fns.logical_axes, shapes)
    abstract = _placed(mesh, axes, shapes)
  return BaseModel(
    config=architecture,
    fns=fns,
    cot_fns=make_model(cache_quantization=config.sampling.kv_cache),
    mesh=mesh,
    stored=stored,
    abstract=abstract,
    sources=sources,
    quantization=model.base_quantization,
    train_base=model.lora_rank == 0,
  )


def _placed(mesh, logical_axes, shapes) -> types.PyTree:
  """Shapes and dtypes with their shardings."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    partition.tree_shardings(mesh, logical_axes, shapes),
  )


def _shardings(abstract: types.PyTree) -> types.PyTree:
  return jax.tree.map(lambda x: x.sharding, abstract)


def _source_merge(model: BaseModel) -> _Finish:
  """Merges the adapter of the model's sources, where there is one."""
  source = model.sources.adapter if model.sources else None
  if source is None:
    return lambda path, leaf: leaf
  adapter = peft_adapter.read_config(source.folder)
  fns = transformer.make_model(
    model.config, lora_rank=adapter.rank, lora_targets=adapter.targets
  )
  shapes = transformer.abstract_params(fns)
  abstract = _placed(model.mesh, fns.logical_axes, shapes)
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
