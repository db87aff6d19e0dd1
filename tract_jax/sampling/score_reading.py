"""Reading the score's distribution: after sampled CoTs, or after given tokens.

Scores of one token are read from the logits of the place before them, which
decoding has anyway. Scores of several tokens are read in one pass over all
nodes of their tree, from the cache of what stands before them.

Axes: B rows, V vocabulary, Y score grid.
"""

from collections.abc import Callable
import dataclasses

import jax.numpy as jnp

from tract_jax import numerics, types
from tract_jax.objectives import predictors, score_tree
from tract_jax.sampling import cot_end


def score_distribution(
  logits: types.Array,
  score_ids: tuple[int, ...],
  num_valid_tokens: int,
) -> tuple[types.Array, types.Array, types.Array]:
  """The score's distribution if the next token were the score.

  Args:
    logits: [B, V] float32, raw.
    score_ids: Y score tokens.
    num_valid_tokens: tokens that the tokenizer knows.

  Returns:
    score_probs [B, Y] float32, softmax over the whole vocabulary; the score
    that is the likeliest valid token [B] int32, -1 where that is no score;
    whether the valid tokens' logits are finite [B].
  """
  ids = jnp.asarray(score_ids, jnp.int32)
  # Padded rows of the vocabulary included: what training sees.
  score_probs = predictors.score_probs(logits, ids)
  valid = logits[:, :num_valid_tokens]
  # A maximum and comparisons are ten times as fast as an argmax on a CPU.
  largest = valid.max(axis=-1, keepdims=True)
  places = jnp.arange(num_valid_tokens)[None]
  first = jnp.where(valid == largest, places, num_valid_tokens).min(axis=-1)
  numbers = jnp.arange(1, len(score_ids) + 1, dtype=jnp.int32)[None]
  is_greedy = first[:, None] == ids[None]
  greedy_indices = jnp.sum(jnp.where(is_greedy, numbers, 0), axis=-1) - 1
  return score_probs, greedy_indices, jnp.isfinite(valid).all(axis=-1)


def make_score(
  fns: types.ModelFns, cot_format: cot_end.CotFormat, num_valid_tokens: int
) -> Callable[..., tuple[types.Array, types.Array, types.Array]]:
  """The function that reads the distribution after given tokens.

  Args:
    fns: the model.
    cot_format: gives the score tokens.
    num_valid_tokens: tokens that the tokenizer knows.

  Returns:
    (params, tokens [B, L], lengths [B]) -> see `score_distribution`.
  """
  if cot_format.score_tree is not None:
    read_tree = make_read_tree(fns, cot_format.score_tree, num_valid_tokens)

  def score(params, tokens, lengths):
    hidden, cache = fns.prefill(params, tokens, lengths, tokens.shape[1])
    if cot_format.score_tree is not None:
      last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
      return read_tree(params, cache, last, lengths)
    logits = fns.project(params, hidden)
    return score_distribution(logits, cot_format.score_ids, num_valid_tokens)

  return score


def make_read_tree(
  fns: types.ModelFns, tree: types.TokenTree, num_valid_tokens: int
) -> Callable[..., tuple[types.Array, types.Array, types.Array]]:
  """The function that reads the distribution over scores of several tokens.

  One pass over all nodes of the tree, from the cache of what stands before
  them; that is neither copied nor changed.

  Args:
    fns: the model.
    tree: the scores, each with the end token.
    num_valid_tokens: tokens that the tokenizer knows.

  Returns:
    (params, cache, last tokens [B], lengths [B]) -> as `score_distribution`,
    for rows of `lengths` tokens that end in `last`.
  """

  def read_tree(params, cache, last, lengths):
    # The last token is read anew: a row may have gone on, and only its keys
    # and values are left, not its hidden state.
    past = dataclasses.replace(cache, lengths=lengths - 1)
    hidden = fns.decode_tree(params, last, tree, past)
    tiled = numerics.tiled_rows(hidden)
    logits = fns.project(params, tiled)[: len(hidden)]
    valid = logits[..., :num_valid_tokens]
    greedy_tokens = jnp.argmax(valid, axis=-1).astype(jnp.int32)
    return (
      jnp.exp(score_tree.log_probs(logits, tree)),
      score_tree.greedy_index(greedy_tokens, tree),
      jnp.isfinite(valid).all(axis=(-2, -1)),
    )

  return read_tree
