"""The cache of keys and values: making one, and adding a token to each row.

    keys[:, row]:  k0 k1 k2 .. k(n-1) | garbage ..      n = lengths[row]

Entries at or past a row's length are never attended to, so a row is rewound by
making its length smaller. Garbage must be finite: it is multiplied by zero.
"""

import jax.numpy as jnp

from tract_jax import types
from tract_jax.models import config as config_lib


def init_cache(
  config: config_lib.ModelConfig,
  num_rows: int,
  cache_length: int,
  dtype: jnp.dtype,
) -> types.KVCache:
  """An empty cache.

  Args:
    config: gives the layers, K and H.
    num_rows: B.
    cache_length: T, tokens that a row has room for.
    dtype: of keys and values.

  Returns:
    A cache of zeros with every length 0.
  """
  shape = (
    config.num_layers,
    num_rows,
    config.num_kv_heads,
    cache_length,
    config.head_dim,
  )
  return types.KVCache(
    keys=jnp.zeros(shape, dtype),
    values=jnp.zeros(shape, dtype),
    lengths=jnp.zeros((num_rows,), jnp.int32),
  )


def from_prefill(
  keys: types.Array,
  values: types.Array,
  lengths: types.Array,
  cache_length: int,
) -> types.KVCache:
  """A cache that holds prompts, with room for more.

  Args:
    keys, values: [layers, B, K, L, H] of the prompts, padded on the right.
    lengths: [B] int32, tokens of each prompt.
    cache_length: T, at least L.

  Returns:
    The cache; what the padding left in it is past the rows' lengths.
  """
  room = cache_length - keys.shape[3]
  if room < 0:
    raise ValueError(
      f'cache_length={cache_length}: shorter than the {keys.shape[3]} tokens'
      ' of the padded prompts'
    )
  padding = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
  return types.KVCache(
    keys=jnp.pad(keys, padding),
    values=jnp.pad(values, padding),
    lengths=lengths.astype(jnp.int32),
  )


def appended(
  cache: types.KVCache, keys: types.Array, values: types.Array
) -> types.KVCache:
  """The cache with one more token in each row.

  One scatter writes all layers: an update inside the layer loop would copy the
  whole cache in every layer.

  Args:
    cache: lengths below T; the token of a full row is dropped.
    keys, values: [layers, B, K, H] of the new tokens.

  Returns:
    The cache, each row one longer.
  """
  rows = jnp.arange(cache.lengths.shape[0])

  def written(old, new):
    # Two index arrays apart from each other put their axis first: [B, layers,
    # K, H].
    new = jnp.swapaxes(new, 0, 1).astype(old.dtype)
    return old.at[:, rows, :, cache.lengths].set(
      new, mode='drop', unique_indices=True
    )

  return types.KVCache(
    keys=written(cache.keys, keys),
    values=written(cache.values, values),
    lengths=cache.lengths + 1,
  )
