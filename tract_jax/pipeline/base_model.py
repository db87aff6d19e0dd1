"""The model that a run starts from: architecture, functions, mesh, weights.

    model.path -> config.json -> ModelConfig -> ModelFns, shapes, shardings

No weight is read or made here: `base_weights` does that.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections

from tract_jax import types
from tract_jax.models import config as model_config_lib
from tract_jax.models import (
  hf_config,
  json_file,
  quantization,
  transformer,
)
from tract_jax.parallel import partition
from tract_jax.pipeline import model_source, on_mesh

# Of a model from scratch; its rotary angles would serve any length.
_LONGEST_ROW = 1 << 15


@dataclasses.dataclass(frozen=True)
class BaseModel:
  """A seed model or a judge, as functions; nothing in it changes.

  Attributes:
    config: the architecture.
    fns: the model as pure functions.
    cot_fns: the same, keeping keys and values as config.sampling.kv_cache says.
    mesh: the devices.
    dtype: in which it computes. Weights that are trained are kept in float32
      whatever it is: bfloat16 would round the steps of a small learning rate
      away.
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
  dtype: jnp.dtype
  stored: types.PyTree
  abstract: types.PyTree
  sources: model_source.Sources | None
  quantization: str
  train_base: bool


def read_architecture(
  source: model_source.Source,
) -> model_config_lib.ModelConfig:
  """The numbers in a model's config.json.

  Args:
    source: of `model_source.find`.

  Returns:
    The architecture.

  Raises:
    types.InputError: no such file, or an architecture that is not supported.
  """
  fields = json_file.read(source.folder / 'config.json')
  try:
    return hf_config.config_from_hf(fields)
  except types.InputError as error:
    lines = str(error).splitlines()
    raise types.InputError(
      '\n'.join(f'{source.name}: {line}' for line in lines)
    ) from error


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
  return from_architecture(
    read_architecture(sources.base), sources, config, mesh
  )


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
  return from_architecture(architecture, None, config, mesh)


def from_architecture(
  architecture: model_config_lib.ModelConfig,
  sources: model_source.Sources | None,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> BaseModel:
  """A model of these numbers.

  Args:
    architecture: its numbers.
    sources: where its weights are; None: random ones, or shapes alone.
    config: checked, with every key.
    mesh: where it lies.

  Returns:
    The model.

  Raises:
    types.InputError: the mesh cannot split it.
  """
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
  train_base = model.lora_rank == 0
  shapes = transformer.abstract_params(fns)
  if train_base:
    shapes = jax.tree.map(lambda x: x.update(dtype=jnp.float32), shapes)
  stored = placed(mesh, fns.logical_axes, shapes)
  abstract = stored
  if model.base_quantization:
    shapes = quantization.abstract(stored, model.base_quantization)
    axes = quantization.logical_axes(fns.logical_axes, shapes)
    abstract = placed(mesh, axes, shapes)
  return BaseModel(
    config=architecture,
    fns=fns,
    cot_fns=make_model(cache_quantization=config.sampling.kv_cache),
    mesh=mesh,
    dtype=jnp.dtype(model.dtype),
    stored=stored,
    abstract=abstract,
    sources=sources,
    quantization=model.base_quantization,
    train_base=train_base,
  )


def placed(
  mesh: jax.sharding.Mesh, logical_axes: types.PyTree, shapes: types.PyTree
) -> types.PyTree:
  """Shapes and dtypes with their shardings."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    partition.tree_shardings(mesh, logical_axes, shapes),
  )
