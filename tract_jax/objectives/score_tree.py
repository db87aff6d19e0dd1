"""The score's distribution where a score is several tokens.

p(str(y) | context) is the product of the probabilities of y's tokens and of the
end token after them, each read at a node of a token tree (`types.TokenTree`).
Since every sequence ends with the end token, none is the beginning of another,
and the grid's mass is at most 1. Axes: M nodes, Y score grid, V vocabulary,
E examples per row, J tokens of the longest sequence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import types


def log_probs(logits: types.Array, tree: types.TokenTree) -> types.Array:
  """Log-probability of each of a tree's sequences.

    log p(str(y) | context) = sum over j of log p(t_j | context, t_1 .. t_j-1)

  over the tokens t of y, the end token last (TRACT, arXiv:2503.04381, writes
  p(str(y) | x, s) and has one token for each score).

  Args:
    logits: [..., M, V] next-token logits at the nodes.
    tree: the token tree.

  Returns:
    [..., Y] float32, each factor under the whole vocabulary's softmax.
  """
  # bfloat16 has 8 bits of mantissa, and the errors of the factors add up.
  logits = logits.astype(jnp.float32)
  normaliser = jax.nn.logsumexp(logits, axis=-1)
  nodes, tokens, is_token = _reads(tree)
  steps = logits[..., nodes, tokens] - normaliser[..., nodes]
  mask = is_token.reshape((1,) * (steps.ndim - 2) + is_token.shape)
  return jnp.sum(jnp.where(mask, steps, 0.0), axis=-1)


def projected(
  project: Callable[[types.Array], types.Array],
  hidden: types.Array,
  tree: types.TokenTree,
) -> types.Array:
  """`log_probs` of hidden states, whose logits are not kept for backward.

  Args:
    project: hidden [..., M, D] -> logits [..., M, V].
    hidden: [..., M, D] at the nodes.
    tree: the token tree.

  Returns:
    [..., Y] float32.
  """
  return jax.checkpoint(lambda x: log_probs(project(x), tree))(hidden)


def greedy_index(
  greedy_tokens: types.Array, tree: types.TokenTree
) -> types.Array:
  """Which sequence greedy decoding writes: standard decoding of the score.

  It writes the likeliest token, then the likeliest one after it, up to the end
  token. That need not be the likeliest sequence, which `log_probs` names.

  Args:
    greedy_tokens: [..., M] int32, the likeliest next token at each node.
    tree: the token tree.

  Returns:
    [...] int32, the sequence's index; -1 where greedy decoding leaves the tree.
  """
  nodes, tokens, is_token = _reads(tree)
  shape = (1,) * (greedy_tokens.ndim - 1) + tokens.shape
  agrees = greedy_tokens[..., nodes] == tokens.reshape(shape)
  is_written = jnp.all(agrees | ~is_token.reshape(shape), axis=-1)
  index = jnp.argmax(is_written, axis=-1).astype(jnp.int32)
  return jnp.where(jnp.any(is_written, axis=-1), index, -1)


def score_starts(score_mask: types.Array) -> types.Array:
  """The first position of every score.

  Args:
    score_mask: [..., L] bool, the target is a token of a score. Two scores
      never follow each other at once: an end token is between them.

  Returns:
    [..., L] bool; `score_mask` itself where every score is one token.
  """
  before = jnp.pad(
    score_mask[..., :-1], [(0, 0)] * (score_mask.ndim - 1) + [(1, 0)]
  )
  return score_mask & ~before


def start_indices(batch: types.Batch) -> types.Array:
  """Where the score of each example starts in its row.

  Args:
    batch: the rows; `target_probs` says how many examples a row may have.

  Returns:
    [B, E] int32; 0 where there is no such example.
  """
  segments = 1 + jnp.arange(batch.target_probs.shape[1])[None, :, None]
  starts = score_starts(batch.score_mask)[:, None]
  is_start = starts & (batch.segment_ids[:, None] == segments)
  return jnp.argmax(is_start, axis=-1).astype(jnp.int32)


def _reads(tree: types.TokenTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """[Y, J] nodes and tokens, padded with 0, and which of them count."""
  lengths = np.array([len(sequence) for sequence in tree.sequences])
  is_token = np.arange(lengths.max())[None] < lengths[:, None]
  nodes = np.zeros(is_token.shape, np.int32)
  tokens = np.zeros(is_token.shape, np.int32)
  nodes[is_token] = np.concatenate(tree.read_at)
  tokens[is_token] = np.concatenate(tree.sequences)
  return nodes, tokens, is_token
