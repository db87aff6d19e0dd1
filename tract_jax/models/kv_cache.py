"""The cache of keys and values: making one, reading it, adding tokens.

    keys[:, row]:  k0 k1 k2 .. k(n-1) | garbage ..      n = lengths[row]

Entries at or past a row's length are never attended to, so a row is rewound by
making its length smaller. Garbage must be finite: it is multiplied by zero.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from tract_jax import types

# How entries are held: as they are, or in 8 bits.
KINDS = ('', 'int8')


def block_length(cache_length: int, most: int) -> int:
  """Entries of the cache that are read at a time.

  Args:
    cache_length: T.
    most: a power of two.

  Returns:
    The largest power of two up to `most` that divides T.
  """
  return math.gcd(cache_length, most)


def read(
  cache: types.KVCache,
  layer: types.Array,
  start: types.Array,
  length: int,
  dtype: Any,
) -> tuple[types.Array, types.Array]:
  """A block of one layer's keys and values.

  Args:
    cache: of T entries.
    layer: int32.
    start: int32, a multiple of `length`.
    length: of `block_length`.
    dtype: of the result.

  Returns:
    ([B, K, length, W], the same).
  """

  def block(leaf):
    starts = (layer, 0, 0, start) + (0,) * (leaf.ndim - 4)
    sizes = (1, *leaf.shape[1:3], length, *leaf.shape[4:])
    return jax.lax.dynamic_slice(leaf, starts, sizes)[0]

  def decoded(entries):
    entries = jax.tree.map(block, entries)
    if isinstance(entries, types.Int8Entries):
      entries = entries.codes.astype(jnp.float32) * entries.scales[..., None]
    return entries.astype(dtype)

  return decoded(cache.keys), decoded(cache.values)


def encoded(entries: types.Array, kind: str) -> types.Array | types.Int8Entries:
  """Keys or values as they are cached.

  Each token's head has a scale of its own, its largest magnitude over 127.

  Args:
    entries: [..., H] floats.
    kind: of `KINDS`.

  Returns:
    The entries as they are, or in 8 bits.
  """
  if not kind:
    return entries
  wide = entries.astype(jnp.float32)
  largest = jnp.abs(wide).max(axis=-1)
  scales = jnp.where(largest > 0, largest, 1) / 127
  codes = jnp.round(wide / scales[..., None]).astype(jnp.int8)
  return types.Int8Entries(codes, scales)


def widened(entries: types.Array, width: int) -> types.Array:
  """[..., H] -> [..., W], zeros behind each head."""
  padding = [(0, 0)] * entries.ndim
  padding[-1] = (0, width - entries.shape[-1])
  return jnp.pad(entries, padding)


def from_prefill(
  keys: types.Array,
  values: types.Array,
  lengths: types.Array,
  cache_length: int,
  kind: str = '',
  multiple: int = 1,
) -> types.KVCache:
  """A cache that holds prompts, with room for more.

  Args:
    keys, values: [layers, B, K, L, H] of the prompts, padded on the right.
    lengths: [B] int32, tokens of each prompt.
    cache_length: T, at least L.
    kind: of `KINDS`.
    multiple: of which W, the width of a cached head, is one.

  Returns:
    The cache; what the padding left in it is past the rows' lengths.
  """
  room = cache_length - keys.shape[3]
  if room < 0:
    raise ValueError(
      f'cache_length={cache_length}: shorter than the {keys.shape[3]} tokens'
      ' of the padded prompts'
    )

  def roomy(leaf):
    padding = [(0, 0)] * leaf.ndim
    padding[3] = (0, room)
    return jnp.pad(leaf, padding)

  width = -(-keys.shape[-1] // multiple) * multiple
  keys, values = (encoded(widened(x, width), kind) for x in (keys, values))
  return types.KVCache(
    keys=jax.tree.map(roomy, keys),
    values=jax.tree.map(roomy, values),
    lengths=lengths.astype(jnp.int32),
  )


def appended(
  cache: types.KVCache, keys: types.Array, values: types.Array
) -> types.KVCache:
  """The cache with one more token in each row.

  One scatter writes all layers: an update inside the layer loop would copy the
  whole cache in every layer. It gives all indices but the last: with layers or
  heads left whole, the TPU compiler lays the cache out in another way for it,
  and copies it there and back in each step.

  Args:
    cache: lengths below T; the token of a full row is dropped.
    keys, values: [layers, B, K, H] of the new tokens.

  Returns:
    The cache, each row one longer.
  """
  kind = 'int8' if isinstance(cache.keys, types.Int8Entries) else ''
  keys, values = (widened(x, cache.width) for x in (keys, values))

  def written(old, new):
    layers, rows, heads = jnp.indices(old.shape[:3], sparse=True)
    places = cache.lengths[None, :, None]
    return old.at[layers, rows, heads, places].set(
      new.astype(old.dtype), mode='drop', unique_indices=True
    )

  return types.KVCache(
    keys=jax.tree.map(written, cache.keys, encoded(keys, kind)),
    values=jax.tree.map(written, cache.values, encoded(values, kind)),
    lengths=cache.lengths + 1,
  )
