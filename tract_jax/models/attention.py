"""Scaled dot-product attention with grouped heads: rows, one token, or trees.

Axes as in types.py. A token sees itself and earlier tokens of its own segment,
at most `window` of them counting itself. Scores and softmax are float32: a
bfloat16 sum over thousands of keys loses the small ones.

Query heads are viewed as [K, G], so that keys and values are never repeated.
"""

from collections.abc import Callable
import functools
import math

import jax
from jax import ad_checkpoint
import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.models import kv_cache

# The fewest queries handled together, and the most blocks of a row. Scores of
# one block are [B, K, G, block, S]; only one block's exist at a time. More
# blocks skip more of what causality excludes, and make the program longer.
QUERY_BLOCK = 128
_MAX_BLOCKS = 8

# Name under which rematerialisation may keep attention's output.
OUTPUT_NAME = 'attention_output'

# Large and finite: the softmax of a masked score is exactly 0 in float32, and
# no infinity minus infinity can arise.
_MASKED = -1e30


def causal_attention(
  queries: types.Array,
  keys: types.Array,
  values: types.Array,
  segment_ids: types.Array,
  window: int | None,
) -> types.Array:
  """Attention of whole rows, for training and for reading prompts.

  Runs over blocks of queries and gives each block only the keys that causality
  and the window leave it:

      keys ->    . . . . . . . .
      block 0    x x
      block 1    x x x x            (window: the left ones drop out)
      block 2    x x x x x x

  Padding (segment 0) attends within itself: its results are of no use, but
  they and their gradients are finite.

  Args:
    queries: [B, L, N, H].
    keys, values: [B, L, K, H].
    segment_ids: [B, L] int32.
    window: key j is seen by query i if 0 <= i - j < window; None: if j <= i.

  Returns:
    [B, L, N, H].
  """
  num_rows, length, num_heads, head_dim = queries.shape
  queries = _grouped(queries, keys.shape[2])  # [B, K, G, L, H]
  keys = jnp.swapaxes(keys, 1, 2)  # [B, K, S, H]
  values = jnp.swapaxes(values, 1, 2)

  size = QUERY_BLOCK * max(1, math.ceil(length / (QUERY_BLOCK * _MAX_BLOCKS)))
  outputs = []
  for start in range(0, length, size):
    stop = min(start + size, length)
    first = 0 if window is None else max(0, start - window + 1)
    block = jax.checkpoint(
      functools.partial(_block, start - first, window), prevent_cse=False
    )
    outputs.append(
      block(
        queries[:, :, :, start:stop],
        keys[:, :, first:stop],
        values[:, :, first:stop],
        segment_ids[:, start:stop],
        segment_ids[:, first:stop],
      )
    )
  output = jnp.concatenate(outputs, axis=3)
  output = jnp.moveaxis(output, 3, 1)
  output = output.reshape(num_rows, length, num_heads, head_dim)
  return ad_checkpoint.checkpoint_name(output, OUTPUT_NAME)


def _block(
  offset: int,
  window: int | None,
  queries: types.Array,
  keys: types.Array,
  values: types.Array,
  query_segments: types.Array,
  key_segments: types.Array,
) -> types.Array:
  """[B, K, G, L, H] for the queries that start `offset` after the keys.

  Rematerialised by the caller: the backward pass recomputes one block's
  probabilities at a time instead of keeping those of all blocks.
  """
  distance = (
    offset
    + jnp.arange(queries.shape[3])[:, None]
    - jnp.arange(keys.shape[2])[None, :]
  )
  seen = distance >= 0
  if window is not None:
    seen &= distance < window
  seen = seen[None] & (query_segments[:, :, None] == key_segments[:, None, :])
  scores = jnp.einsum(
    'bkglh,bksh->bkgls', queries, keys, preferred_element_type=jnp.float32
  )
  scores *= queries.shape[-1] ** -0.5
  scores = jnp.where(seen[:, None, None], scores, _MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  return jnp.einsum('bkgls,bksh->bkglh', probs, values)


def seen_entries(
  length: int, starts: types.Array, depths: np.ndarray, window: int | None
) -> types.Array:
  """Which entries of the cache new tokens see; the same in all layers.

  Args:
    length: T.
    starts, window: as for `cached_attention`.
    depths: [M] or [1, M] int32, new token m stands at `starts` + depths[m].

  Returns:
    [B, M, T] bool; [B, 1, T] without a window.
  """
  places = jnp.arange(length)[None, None]
  starts = starts[:, None, None]
  seen = places < starts
  if window is None:
    return seen
  return seen & (starts + depths.reshape(1, -1, 1) - places < window)


def cached_attention(
  queries: types.Array,
  keys: types.Array,
  values: types.Array,
  *,
  read_block: Callable[[types.Array], tuple[types.Array, types.Array]],
  block: int,
  width: int,
  starts: types.Array,
  seen: types.Array,
  sees_own: np.ndarray,
  window: int | None,
) -> types.Array:
  """Attention of new tokens over the cache, their ancestors and themselves.

  Runs over blocks of the cache, up to the end of the longest row, with the
  softmax of what was read so far (Milakov and Gimelshein, arXiv:1805.02867).
  So a result does not depend, bit for bit, on the room that the cache has, nor
  on how long the other rows are: a block that is not seen changes nothing.

  The new keys and values are not in the cache yet: they enter beside it, and
  all layers' are written at once after the layer loop (kv_cache.appended).

  Args:
    queries: [B, M, N, H].
    keys, values: [B, M, K, H] of the new tokens.
    read_block: (place int32) -> keys, values [B, K, block, W] of one layer's
      cache, from that place on.
    block: entries that it gives; divides the cache's length.
    width: W, at least H; zeros follow a head of H.
    starts: [B] int32; entries at or past them are not seen.
    seen: of `seen_entries`.
    sees_own: [M, M] bool, whether new token i sees new token j.
    window: as for `causal_attention`.

  Returns:
    [B, M, N, H].
  """
  shape = queries.shape
  queries, keys, values = (
    kv_cache.widened(x, width) for x in (queries, keys, values)
  )
  queries = _grouped(queries, keys.shape[2])  # [B, K, G, M, W]
  attend = functools.partial(_with_block, shape[-1] ** -0.5, queries)

  def read(i, so_far):
    in_block = jax.lax.dynamic_slice_in_dim(seen, i * block, block, axis=2)
    return attend(*read_block(i * block), in_block, so_far)

  # Before anything is read.
  empty = jnp.zeros(queries.shape[:-1] + (1,), jnp.float32)
  so_far = empty + _MASKED, empty, jnp.zeros(queries.shape, jnp.float32)
  own_keys, own_values = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
  so_far = attend(own_keys, own_values, sees_own[None], so_far)
  bounds = _blocks_seen(starts, block, window)
  _, mass, output = jax.lax.fori_loop(*bounds, read, so_far)
  output = jnp.moveaxis(output / mass, 3, 1)[..., : shape[-1]]
  return output.astype(values.dtype).reshape(shape)


def _blocks_seen(
  starts: types.Array, block: int, window: int | None
) -> tuple[types.Array | int, types.Array]:
  """The first block of the cache that any row sees, and where they end."""
  stop = (starts.max() + block - 1) // block
  if window is None:
    return 0, stop
  # Idle slots and the padding of a tile hold nothing.
  shortest = jnp.where(starts > 0, starts, starts.max()).min()
  return jnp.maximum(shortest - window + 1, 0) // block, stop


def _with_block(
  scale: float,
  queries: types.Array,
  keys: types.Array,
  values: types.Array,
  seen: types.Array,
  so_far: tuple[types.Array, types.Array, types.Array],
) -> tuple[types.Array, types.Array, types.Array]:
  """Attention over what was read so far and one more block.

  Args:
    scale: of scores.
    queries: [B, K, G, M, W].
    keys, values: [B, K, S, W] of the block.
    seen: [B, M, S] bool.
    so_far: the largest score [B, K, G, M, 1], the sum of exp(score - largest),
      and that of exp(score - largest) value [B, K, G, M, W]; float32.

  Returns:
    What was read so far, with the block: the same three.
  """
  largest, mass, output = so_far
  product = functools.partial(
    jnp.einsum,
    preferred_element_type=jnp.float32,
    # Says something of float32 alone: where fewer digits do for its products,
    # a TPU's compiler rounds the whole cache to bfloat16 in each step.
    precision=jax.lax.Precision.HIGHEST,
  )
  scores = product('bkgmh,bksh->bkgms', queries, keys)
  scores = jnp.where(seen[:, None, None], scores * scale, _MASKED)
  new_largest = jnp.maximum(largest, scores.max(axis=-1, keepdims=True))
  probs = jnp.exp(scores - new_largest)
  # Made once: to make it twice, a TPU's compiler would copy `largest`.
  shrunk = jax.lax.optimization_barrier(jnp.exp(largest - new_largest))
  weighted = product('bkgms,bksh->bkgmh', probs.astype(values.dtype), values)
  mass = mass * shrunk + probs.sum(axis=-1, keepdims=True)
  return new_largest, mass, output * shrunk + weighted


def tree_attention(
  queries: types.Array,
  keys: types.Array,
  values: types.Array,
  past_keys: types.Array,
  past_values: types.Array,
  sees_past: types.Array,
  sees_own: types.Array,
) -> types.Array:
  """Attention of a tree's nodes over one past, and over their ancestors.

  All nodes read the same keys and values of the past: they are not copied for
  each way through the tree.

  Args:
    queries: [B, M, N, H].
    keys, values: [B, M, K, H] of the nodes.
    past_keys, past_values: [B, K, S, H] of what stands before the tree.
    sees_past: [B, M, S] bool.
    sees_own: [M, M] bool, whether node i sees node j; it sees itself.

  Returns:
    [B, M, N, H].
  """
  num_rows, num_nodes, num_heads, head_dim = queries.shape
  queries = _grouped(queries, keys.shape[2])  # [B, K, G, M, H]

  def masked_scores(equation, some_keys, seen):
    scores = jnp.einsum(
      equation, queries, some_keys, preferred_element_type=jnp.float32
    )
    return jnp.where(seen, scores * head_dim**-0.5, _MASKED)

  past = masked_scores('bkgmh,bksh->bkgms', past_keys, sees_past[:, None, None])
  own = masked_scores('bkgmh,bjkh->bkgmj', keys, sees_own[None, None, None])
  probs = jax.nn.softmax(jnp.concatenate([past, own], axis=-1), axis=-1)
  probs = probs.astype(values.dtype)
  length = past_keys.shape[2]
  output = jnp.einsum('bkgms,bksh->bmkgh', probs[..., :length], past_values)
  output += jnp.einsum('bkgmj,bjkh->bmkgh', probs[..., length:], values)
  output = output.reshape(num_rows, num_nodes, num_heads, head_dim)
  return ad_checkpoint.checkpoint_name(output, OUTPUT_NAME)


def _grouped(queries: types.Array, num_kv_heads: int) -> types.Array:
  """[B, L, N, H] -> [B, K, G, L, H]."""
  num_rows, length, num_heads, head_dim = queries.shape
  shape = (
    num_rows,
    length,
    num_kv_heads,
    num_heads // num_kv_heads,
    head_dim,
  )
  return jnp.moveaxis(queries.reshape(shape), 1, 3)
