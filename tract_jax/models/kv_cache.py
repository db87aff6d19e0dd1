"""The cache of keys and values: making one, reading it, adding tokens.

    keys[:, row]:  k0 k1 k2 .. k(n-1) | garbage ..      n = lengths[row]

Entries at or past a row's length are never attended to, so a row is rewound by
making its length smaller. Garbage must be finite: it is multiplied by zero.
"""

import math

import jax
import jax.numpy as jnp

from tract_jax import types

# Entries of the cache that attention reads at a time, at most: so many are held
# by a CPU core's own cache for 16 rows.
_LONGEST_BLOCK = 256


def block_length(cache_length: int) -> int:
  """Entries of the cache that are read at a time.

  Args:
    cache_length: T.

  Returns:
    The largest power of two up to 256 that divides T.
  """
  return math.gcd(cache_length, _LONGEST_BLOCK)


def read(
  cache: types.KVCache, layer: types.Array, start: types.Array
) -> tuple[types.Array, types.Array]:
  """A block of one layer's keys and values.

  Args:
    cache: of T entries.
    layer: int32.
    start: int32, a multiple of `block_length(T)`.

  Returns:
    ([B, K, block, H], the same).
  """
  length = block_length(cache.length)

  def block(entries):
    starts = (layer, 0, 0, start, 0)
    _, *sizes = entries.shape
    sizes[2] = length
    return jax.lax.dynamic_slice(entries, starts, (1, *sizes))[0]

  return block(cache.keys), block(cache.values)


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
