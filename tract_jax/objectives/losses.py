"""Objectives: CE, RAFT and CoT-RAFT as sums and counts.

All three are one weighted sum of the same terms, so they are rows of numbers
and names here (`Objective`) and one function (`loss_terms`). The model is seen
as a function from hidden states to logits; it is called at target positions
only, in chunks, in float32: logits of shape [B, L, V] never exist.

Axes: B rows, L length, P target positions per row, D width, V vocabulary,
Y score grid, E examples per row.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import numerics, types
from tract_jax.objectives import predictors, score_losses, score_tree

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
class ScoreTarget:
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
  score_target: ScoreTarget,
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
    score_target: the grid's tokens and values.
    num_targets: the most target positions that any row has (static). Rows
      with more would lose targets: the loader knows the most.
    chunk_size: target positions per row whose logits exist at a time.
    grid_log_probs: [B, E, Y] log p(str(y) | ...) of each example; None where
      they are read off the logits, a score being one token.

  Returns:
    LossTerms of this batch alone.
  """
  num_chunks = max(1, math.ceil(min(num_targets, hidden.shape[1]) / chunk_size))
  chunk = math.ceil(min(num_targets, hidden.shape[1]) / num_chunks)
  rows = _target_rows(hidden, batch, objective, num_chunks * chunk)

  def add_chunk(terms, chunk_rows):
    chunk_hidden, (*labels, segment_ids) = chunk_rows
    for per_example in (batch.target_probs, grid_log_probs):
      labels.append(_at_examples(per_example, segment_ids))
    new = _chunk_terms(project(chunk_hidden), labels, objective, score_target)
    return numerics.tree_add(terms, new), None

  if num_chunks == 1:
    return add_chunk(no_terms(), rows)[0]
  chunks = jax.tree.map(lambda x: _to_chunks(x, num_chunks), rows)
  # Computed again in the backward pass, so that one chunk's logits exist.
  return jax.lax.scan(jax.checkpoint(add_chunk), no_terms(), chunks)[0]


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


def _target_rows(hidden, batch, objective, size: int):
  """Hidden states [B, size, D] and labels [B, size] at target positions.

  The wanted positions of each row stand first, in order; what follows is
  masked.
  """
  tokens = ce_mask(batch.cot_mask, batch.score_mask, objective)
  starts = score_tree.score_starts(batch.score_mask)
  order = jnp.argsort(~(tokens | starts), axis=1, stable=True)
  order = _pad_columns(order, size)[:, :size]
  in_row = jnp.arange(size) < hidden.shape[1]

  def gather(field):
    return jnp.take_along_axis(field, order, axis=1)

  labels = (
    gather(batch.targets),
    gather(tokens) & in_row[None],
    gather(starts) & in_row[None],
    gather(batch.score_values),
    gather(batch.segment_ids),
  )
  return jnp.take_along_axis(hidden, order[..., None], axis=1), labels


def _chunk_terms(logits, labels, objective, score_target) -> types.LossTerms:
  """LossTerms of one chunk of target positions; logits [B, P, V]."""
  targets, tokens, score_mask, scores, target_probs, log_probs = labels
  logits = logits.astype(jnp.float32)
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  nll = jax.nn.logsumexp(logits, axis=-1) - target_logits[..., 0]
  if log_probs is None:
    log_probs = predictors.score_log_probs(
      logits, jnp.array(score_target.token_ids)
    )
  seen = score_losses.on_grid(log_probs, objective.expectation)
  grid = np.array(score_target.values, np.float32)
  score_loss = score_losses.SCORE_LOSSES[objective.score_loss]

  def total(values):
    return numerics.masked_sum(values, score_mask)

  return types.LossTerms(
    ce_sum=numerics.masked_sum(nll, tokens),
    ce_count=numerics.count(tokens),
    score_sq_sum=total(
      score_losses.squared_error(seen, grid, scores, target_probs)
    ),
    score_loss_sum=total(score_loss(seen, grid, scores, target_probs)),
    off_grid_sum=total(score_losses.off_grid_penalty(log_probs)),
    score_count=numerics.count(score_mask),
    grid_mass_sum=total(jnp.sum(jnp.exp(log_probs), axis=-1)),
  )


def no_terms() -> types.LossTerms:
  """LossTerms of no rows at all: zeros, float32."""
  number = len(dataclasses.fields(types.LossTerms))
  return types.LossTerms(*[jnp.zeros((), jnp.float32)] * number)


def _at_examples(per_example, segment_ids):
  """[B, E, Y] of segments 1..E -> [B, P, Y] at positions; any for padding."""
  if per_example is None:
    return None
  return jnp.take_along_axis(
    per_example, jnp.maximum(segment_ids - 1, 0)[..., None], axis=1
  )


def _pad_columns(x, width):
  return jnp.pad(x, ((0, 0), (0, max(0, width - x.shape[1]))))


def _to_chunks(x, num_chunks):
  """[B, P, ...] -> [chunks, B, P / chunks, ...]."""
  split = x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:])
  return jnp.moveaxis(split, 1, 0)
