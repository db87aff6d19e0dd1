"""Scaled dot-product attention with grouped heads: rows, one token, or trees.

Axes as in types.py. A token sees itself and earlier tokens of its own segment,
at most `window` of them counting itself. Scores and softmax are float32: a
bfloat16 sum over thousands of keys loses the small ones.

Query heads are viewed as [K, G], so that keys and values are never repeated.
"""

import functools

import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from tract_jax import types

# Queries handled together. Scores of one block are [B, K, G, block, S]; only
# one block's exist at a time.
QUERY_BLOCK = 512

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

  outputs = []
  for start in range(0, length, QUERY_BLOCK):
    stop = min(start + QUERY_BLOCK, length)
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


def cached_attention(
  queries: types.Array,
  keys: types.Array,
  values: types.Array,
  cached_keys: types.Array,
  cached_values: types.Array,
  lengths: types.Array,
  window: int | None,
) -> types.Array:
  """Attention of one new token per row over the cache and itself.

  The new key and value are not in the cache yet: they enter beside it, and all
  layers' are written at once after the layer loop (kv_cache.appended).

  Args:
    queries: [B, 1, N, H].
    keys, values: [B, 1, K, H] of the new token, which stands at `lengths`.
    cached_keys, cached_values: [B, K, T, H] of one layer.
    lengths: [B] int32; entries at or past them are not seen.
    window: as for `causal_attention`.

  Returns:
    [B, 1, N, H].
  """
  num_rows, _, num_heads, head_dim = queries.shape
  queries = _grouped(queries, keys.shape[2])[:, :, :, 0]  # [B, K, G, H]
  slots = jnp.arange(cached_keys.shape[2])[None, :]
  seen = slots < lengths[:, None]
  if window is not None:
    seen &= lengths[:, None] - slots < window

  scores = jnp.einsum(
    'bkgh,bkth->bkgt',
    queries,
    cached_keys,
    preferred_element_type=jnp.float32,
  )
  own_score = jnp.einsum(
    'bkgh,bkh->bkg', queries, keys[:, 0], preferred_element_type=jnp.float32
  )
  scores = jnp.where(seen[:, None, None], scores, _MASKED)
  scores = jnp.concatenate([scores, own_score[..., None]], axis=-1)
  probs = jax.nn.softmax(scores * head_dim**-0.5, axis=-1)
  probs = probs.astype(values.dtype)
  output = jnp.einsum('bkgt,bkth->bkgh', probs[..., :-1], cached_values)
  output += probs[..., -1:] * values[:, 0, :, None]
  return output.reshape(num_rows, 1, num_heads, head_dim)


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
