"""Objectives: CE, RAFT and CoT-RAFT as sums and counts.

All three are one weighted sum of two terms, so they are rows of numbers here
(`Objective`) and one function (`loss_terms`). The model is seen as a function
from hidden states to logits; it is called at target positions only, in chunks,
in float32: logits of shape [B, L, V] never exist.

Axes: B rows, L length, P target positions per row, D width, V vocabulary,
Y score grid.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp

from tract_jax import numerics, types
from tract_jax.objectives import predictors


@dataclasses.dataclass(frozen=True)
class Objective:
  """Weights of the two terms of a training objective.

    loss = ce_weight * mean CE + score_weight * mean squared error

  with both means over the whole global batch: over its target tokens, and
  over its scores. CoT-RAFT is TRACT's loss (arXiv:2503.04381, section 3):
  lambda (sum_y p(str(y) | x, s) y - y*)^2 - log p([s, y*] | x); RAFT (ICLR
  2025) is its squared error alone.

  Deviations from the PyTorch release: its squared error was divided by the
  batch size twice; here lambda multiplies a plain mean over examples.

  Attributes:
    ce_weight: weight of the mean cross-entropy per token.
    score_weight: lambda, weight of the mean squared error per example.
    ce_includes_score: whether the score token is in the cross-entropy. The
      paper's formula has it there; the release leaves it out for CoT-RAFT.
  """

  ce_weight: float
  score_weight: float
  ce_includes_score: bool


@dataclasses.dataclass(frozen=True)
class ScoreTarget:
  """What the squared error needs to know of the score grid.

  Attributes:
    token_ids: [Y] token of each score at the score position.
    values: [Y] the scores.
  """

  token_ids: tuple[int, ...]
  values: tuple[float, ...]


def ce_mask(
  cot_mask: types.Array, score_mask: types.Array, objective: Objective
) -> types.Array:
  """Which targets the cross-entropy is taken over, [B, L] bool."""
  if objective.ce_weight == 0:
    return jnp.zeros_like(cot_mask)
  return cot_mask | score_mask if objective.ce_includes_score else cot_mask


def target_counts(
  batch: types.Batch, objective: Objective
) -> tuple[types.Array, types.Array]:
  """Number of cross-entropy tokens and of scores in a (global) batch.

  Args:
    batch: fields [..., B, L]; any leading axes are counted, too.
    objective: decides what is counted.

  Returns:
    (ce_count, score_count), float32 scalars.
  """
  tokens = ce_mask(batch.cot_mask, batch.score_mask, objective)
  return numerics.count(tokens), numerics.count(batch.score_mask)


def loss_terms(
  project: Callable[[types.Array], types.Array],
  hidden: types.Array,
  batch: types.Batch,
  objective: Objective,
  score_target: ScoreTarget,
  *,
  num_targets: int,
  chunk_size: int,
) -> types.LossTerms:
  """Sums and counts of CE and of the expected score's squared error.

  Args:
    project: hidden [B, P, D] -> logits [B, P, V] float32.
    hidden: [B, L, D] hidden states; position i predicts `batch.targets[i]`.
    batch: the rows, [B, L].
    objective: decides which targets the cross-entropy is taken over.
    score_target: the grid's tokens and values.
    num_targets: the most target positions that any row has (static). Rows
      with more would lose targets: the loader checks them.
    chunk_size: target positions per row whose logits exist at a time.

  Returns:
    LossTerms of this batch alone.
  """
  tokens = ce_mask(batch.cot_mask, batch.score_mask, objective)
  num_chunks = max(1, math.ceil(min(num_targets, hidden.shape[1]) / chunk_size))
  chunk = math.ceil(min(num_targets, hidden.shape[1]) / num_chunks)
  # The wanted positions of each row first, in order; what follows is masked.
  wanted = tokens | batch.score_mask
  order = jnp.argsort(~wanted, axis=1, stable=True)
  order = _pad_columns(order, num_chunks * chunk)[:, : num_chunks * chunk]
  in_row = jnp.arange(num_chunks * chunk) < hidden.shape[1]

  def gather(field):
    return jnp.take_along_axis(field, order, axis=1)

  rows = (
    jnp.take_along_axis(hidden, order[..., None], axis=1),
    (
      gather(batch.targets),
      gather(tokens) & in_row[None],
      gather(batch.score_mask) & in_row[None],
      gather(batch.score_values),
    ),
  )

  @jax.checkpoint
  def add_chunk(terms, chunk_rows):
    chunk_hidden, labels = chunk_rows
    new = _chunk_terms(project(chunk_hidden), labels, score_target)
    return numerics.tree_add(terms, new), None

  if num_chunks == 1:
    return add_chunk(no_terms(), rows)[0]
  chunks = jax.tree.map(lambda x: _to_chunks(x, num_chunks), rows)
  return jax.lax.scan(add_chunk, no_terms(), chunks)[0]


def objective_loss(
  terms: types.LossTerms,
  objective: Objective,
  ce_count: types.Array,
  score_count: types.Array,
) -> types.Array:
  """The weighted loss of some rows, with the counts of the global batch.

  Summed over any split of the batch it gives the batch's loss, and so do the
  gradients.

  Args:
    terms: of the rows at hand.
    objective: the weights.
    ce_count: number of cross-entropy tokens in the global batch.
    score_count: number of scores in the global batch.

  Returns:
    A float32 scalar.
  """
  ce = numerics.mean(terms.ce_sum, ce_count)
  squared_error = numerics.mean(terms.score_sq_sum, score_count)
  return objective.ce_weight * ce + objective.score_weight * squared_error


def _chunk_terms(logits, labels, score_target) -> types.LossTerms:
  """LossTerms of one chunk of target positions; logits [B, P, V]."""
  targets, tokens, score_mask, score_values = labels
  logits = logits.astype(jnp.float32)
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  nll = jax.nn.logsumexp(logits, axis=-1) - target_logits[..., 0]
  probs = predictors.score_probs(logits, jnp.array(score_target.token_ids))
  grid = jnp.array(score_target.values, jnp.float32)
  error = predictors.rail(probs, grid) - score_values
  return types.LossTerms(
    ce_sum=numerics.masked_sum(nll, tokens),
    ce_count=numerics.count(tokens),
    score_sq_sum=numerics.masked_sum(jnp.square(error), score_mask),
    score_count=numerics.count(score_mask),
    grid_mass_sum=numerics.masked_sum(jnp.sum(probs, -1), score_mask),
  )


def no_terms() -> types.LossTerms:
  """LossTerms of no rows at all: zeros, float32."""
  return types.LossTerms(*[jnp.zeros((), jnp.float32)] * 5)


def _pad_columns(x, width):
  return jnp.pad(x, ((0, 0), (0, max(0, width - x.shape[1]))))


def _to_chunks(x, num_chunks):
  """[B, P, ...] -> [chunks, B, P / chunks, ...]."""
  split = x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:])
  return jnp.moveaxis(split, 1, 0)
