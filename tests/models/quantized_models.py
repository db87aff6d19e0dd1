"""A tiny model with random weights, and its quantised form on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax.models import config as config_lib
from tract_jax.models import quantization, transformer
from tract_jax.parallel import partition

# Input axes of 128 and 192 have two and three blocks of nf4.
CONFIG = config_lib.ModelConfig(
  vocab_size=64,
  hidden_size=128,
  intermediate_size=192,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=32,
  max_position_embeddings=64,
  qkv_bias=True,
)


@functools.cache
def model(lora_rank=0, dtype='float32'):
  """A model, and random params drawn by numpy: compiling `init` is slow."""
  fns = transformer.make_model(CONFIG, lora_rank=lora_rank, dtype=dtype)
  rng = np.random.default_rng(0)

  def leaf(path, shape):
    if 'norm' in jax.tree_util.keystr(path):
      return jnp.ones(shape.shape, shape.dtype)
    if path[-1].key == 'lora_b':
      return jnp.zeros(shape.shape, shape.dtype)
    return jnp.array(rng.normal(0, 0.05, shape.shape), shape.dtype)

  abstract = transformer.abstract_params(fns)
  return fns, jax.tree_util.tree_map_with_path(leaf, abstract)


def tokens(num_rows=8, length=16, seed=0):
  """Random tokens [num_rows, length]."""
  rng = np.random.default_rng(seed)
  return jnp.array(rng.integers(0, 64, (num_rows, length)), jnp.int32)


def sharded(mesh, fns, params, kind):
  """Quantised params on a mesh, leaf by leaf, as a run loads them."""
  abstract = quantization.abstract(transformer.abstract_params(fns), kind)
  shardings = partition.tree_shardings(
    mesh, quantization.logical_axes(fns.logical_axes, abstract), abstract
  )
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
  )

  def leaf(path, array, like):
    whole = like.qvalue if quantization.is_quantized(like) else like
    placed = jax.device_put(array, whole.sharding)
    path = tuple(key.key for key in path)
    return quantization.quantize_leaf(path, placed, kind, like)

  return jax.tree_util.tree_map_with_path(leaf, params, like), like
