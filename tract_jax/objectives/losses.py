"""Objectives: CE, RAFT and CoT-RAFT as sums and counts.

All three are one weighted sum of the same terms, so they are rows of numbers
and names here (`Objective`) and one function (`loss_terms`). The model is seen
as a function from hidden states to logits; it is called at target positions
only, in chunks, in float32 (`cross_entropy`), and where scores start: logits of
shape [B, L, V] never exist.

Axes: B rows, L length, P target positions per row, D width, V vocabulary,
Y score grid, E examples per row.
"""

from collections.abc import Callable
import dataclasses

import jax.numpy as jnp
import numpy as np

from tract_jax import numerics, types
from tract_jax.objectives import (
  cross_entropy,
  predictors,
  score_losses,
  score_tree,
)

SCORE_SCALES = ('mean', 'release')


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised: the weights of its terms, and which terms they are.

    loss = ce_weight * mean CE + score_weight * mean score loss
      + off_grid_weight * mean off-grid penalty

  with all means over the whole global batch: over its target tokens, and over
  its scores. CoT-RAFT is TRACT's loss (arXiv:2503.04381, eq. 4):
  lambda (sum_y p(str(y) | x, s) y - y*)^2 - log p([s, y*] | x); RAFT (ICLR
  2025) is its squared error alone. The defaults are theirs.

  Deviations from the PyTorch release: its squared error was divided by the
  batch size twice; here lambda multiplies a plain mean over examples, unless
  `score_weight` says otherwise.

  Attributes:
    ce_weight: weight of the mean cross-entropy per token.
    score_weight: lambda, weight of the mean score loss per example.
    ce_includes_score: whether the score token is in the cross-entropy. The
      paper's formula has it there; the release leaves it out for CoT-RAFT.
    score_loss: a name of score_losses.SCORE_LOSSES.
    expectation: "full" or "grid", the distribution that the score loss sees;
      see score_losses.on_grid.
    off_grid_weight: weight of - log sum_y p(str(y) | x, s), per example.
  """

  ce_weight: float
  score_weight: float
  ce_includes_score: bool
  score_loss: str = 'squared_error'
  expectation: str = 'full'
  off_grid_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class GridTokens:
  """What the score losses need to know of the score grid.

  Attributes:
    token_ids: [Y] token of each score at the score position; () where a
      score is several tokens.
    values: [Y] the scores.
  """

  token_ids: tuple[int, ...]
  values: tuple[float, ...]


def score_weight(
  scale: str,
  lambda_value: float,
  release_device_batch: int,
  release_accumulation: int,
) -> float:
  """What a lambda is worth beside a plain mean over examples.

  "mean" (the default): lambda itself, whatever the batch. "release": what the
  PyTorch release makes of it. For each micro-batch of a device it divides the
  mean squared error by the number of rows once more, and it adds up micro-
  batches without dividing by their number, while the cross-entropy is a mean
  over the tokens of all of them:

    weight = lambda * accumulation / device batch

  so that its lambda of 1 is .125 at 8 rows in one go, and .5 at twice 4.
  Gradients are averaged over devices: their number does not matter.

  Args:
    scale: one of SCORE_SCALES.
    lambda_value: lambda.
    release_device_batch: the release's rows per device and micro-batch.
    release_accumulation: the release's micro-batches per update.

  Returns:
    Objective.score_weight.

  Raises:
    ValueError: the scale is not one of SCORE_SCALES.
  """
  if scale not in SCORE_SCALES:
    raise ValueError(f'score scale {scale!r} is not one of {SCORE_SCALES}')
  if scale == 'mean':
    return lambda_value
  return lambda_value * release_accumulation / release_device_batch


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
  scores = score_tree.score_starts(batch.score_mask)
  return numerics.count(tokens), numerics.count(scores)


def loss_terms(
  project: Callable[[types.Array], types.Array],
  hidden: types.Array,
  batch: types.Batch,
  objective: Objective,
  grid_tokens: GridTokens,
  *,
  num_targets: int,
  chunk_size: int,
  grid_log_probs: types.Array | None = None,
) -> types.LossTerms:
  """Sums and counts of CE, of the score loss and of what goes with it.

  Args:
    project: hidden [B, P, D] -> logits [B, P, V] float32.
    hidden: [B, L, D] hidden states; position i predicts `batch.targets[i]`.
    batch: the rows, [B, L]; target_probs [B, E, Y].
    objective: names the terms, and the targets of the cross-entropy.
    grid_tokens: the grid's tokens and values.
    num_targets: the most target positions that any row has (static). Rows
      with more would lose targets: the loader knows the most.
    chunk_size: target positions per row whose logits exist at a time.
    grid_log_probs: [B, E, Y] log p(str(y) | ...) of each example; None where
      they are read off the logits, a score being one token.

  Returns:
    LossTerms of this batch alone. Those of scores are NaN where a row has more
    than E of them.
  """
  if grid_log_probs is None:
    grid_log_probs = _grid_log_probs(project, hidden, batch, grid_tokens)
  terms = _score_terms(grid_log_probs, batch, objective, grid_tokens)
  if objective.ce_weight == 0:
    return terms
  tokens = ce_mask(batch.cot_mask, batch.score_mask, objective)
  return dataclasses.replace(
    terms,
    ce_sum=cross_entropy.at_targets(
      project,
      hidden,
      batch.targets,
      tokens,
      num_targets=num_targets,
      chunk_size=chunk_size,
    ),
    ce_count=numerics.count(tokens),
  )


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
  score = numerics.mean(terms.score_loss_sum, score_count)
  off_grid = numerics.mean(terms.off_grid_sum, score_count)
  return (
    objective.ce_weight * ce
    + objective.score_weight * score
    + objective.off_grid_weight * off_grid
  )


def _grid_log_probs(project, hidden, batch, grid_tokens):
  """[B, E, Y], read off the logits where each example's score starts."""
  starts = score_tree.start_indices(batch)
  at_starts = jnp.take_along_axis(hidden, starts[..., None], axis=1)
  return predictors.score_log_probs(
    project(at_starts), jnp.array(grid_tokens.token_ids)
  )


def _score_terms(log_probs, batch, objective, grid_tokens) -> types.LossTerms:
  """LossTerms of the scores alone; log_probs [B, E, Y] of the examples."""
  is_start = score_tree.score_starts(batch.score_mask)
  starts = score_tree.start_indices(batch)
  segments = 1 + jnp.arange(starts.shape[1])[None]

  def at_starts(field):
    return jnp.take_along_axis(field, starts, axis=1)

  has_score = at_starts(is_start) & (at_starts(batch.segment_ids) == segments)
  number = numerics.count(is_start)
  # A score without a place among the examples must not get lost in silence.
  complete = jnp.where(numerics.count(has_score) == number, 1.0, jnp.nan)
  seen = score_losses.on_grid(log_probs, objective.expectation)
  grid = np.array(grid_tokens.values, np.float32)
  rated = grid, at_starts(batch.score_values), batch.target_probs
  score_loss = score_losses.SCORE_LOSSES[objective.score_loss]

  def total(values):
    return complete * numerics.masked_sum(values, has_score)

  return dataclasses.replace(
    no_terms(),
    score_sq_sum=total(score_losses.squared_error(seen, *rated)),
    score_loss_sum=total(score_loss(seen, *rated)),
    off_grid_sum=total(score_losses.off_grid_penalty(log_probs)),
    score_count=number,
    grid_mass_sum=total(jnp.sum(jnp.exp(log_probs), axis=-1)),
  )


def no_terms() -> types.LossTerms:
  """LossTerms of no rows at all: zeros, float32."""
  number = len(dataclasses.fields(types.LossTerms))
  return types.LossTerms(*[jnp.zeros((), jnp.float32)] * number)
