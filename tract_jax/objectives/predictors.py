"""Predictors: from the distribution over the score grid to one number.

RAIL (arXiv:2403.04182) predicts the expectation instead of the likeliest
score; CoT-RAIL (TRACT, arXiv:2503.04381) takes it after a sampled chain of
thought and averages over several. All functions are pure and in float32;
Y is the score grid, C the CoTs of an input.
"""

import jax
import jax.numpy as jnp

from tract_jax import types


def score_log_probs(logits: types.Array, score_ids: types.Array) -> types.Array:
  """Log-probability of each score's token: log p(str(y) | x, s).

  Args:
    logits: [..., V] next-token logits at the score position.
    score_ids: [Y] int32 token of each score.

  Returns:
    [..., Y] float32, under the whole vocabulary's softmax.
  """
  # bfloat16 has 8 bits of mantissa: an expectation in it is off by .01.
  logits = logits.astype(jnp.float32)
  normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  return jnp.take(logits, score_ids, axis=-1) - normaliser


def score_probs(logits: types.Array, score_ids: types.Array) -> types.Array:
  """Probability of each score's token under the whole vocabulary's softmax.

  p(str(y) | x, s) for every y of the grid. The mass on the grid need not be 1.

  Args:
    logits: [..., V] next-token logits at the score position.
    score_ids: [Y] int32 token of each score.

  Returns:
    [..., Y] float32.
  """
  return jnp.exp(score_log_probs(logits, score_ids))


def rail(probs: types.Array, grid: types.Array) -> types.Array:
  """Regression-aware prediction, the expectation over the grid.

  y_RAIL(x) = sum over y in Y of p(str(y) | x) y (arXiv:2403.04182; with a
  CoT in the condition it is CoT-RAIL of arXiv:2503.04381). Mass off the grid
  counts as a score of 0, as in the paper; `rail_normalized` removes it.

  Args:
    probs: [..., Y] probabilities at the score tokens.
    grid: [Y] the scores.

  Returns:
    [...] float32.

  Example:
    >>> rail(jnp.array([0.25, 0.5]), jnp.array([2.0, 4.0]))
    Array(2.5, dtype=float32)
  """
  return jnp.einsum('...y,y->...', probs, grid, precision='highest')


def rail_normalized(probs: types.Array, grid: types.Array) -> types.Array:
  """RAIL with the probabilities renormalised on the grid.

  sum_y p_y y / sum_y p_y, which lies within the grid whatever leaks off it.

  Args:
    probs: [..., Y] probabilities at the score tokens.
    grid: [Y] the scores.

  Returns:
    [...] float32; NaN where the grid has no mass at all.
  """
  mass = jnp.sum(probs, axis=-1)
  return jnp.where(mass > 0, rail(probs, grid) / mass, jnp.nan)


def median(probs: types.Array, grid: types.Array) -> types.Array:
  """The grid's (lower) median under the renormalised distribution.

  Args:
    probs: [..., Y] probabilities at the score tokens.
    grid: [Y] the scores, ascending.

  Returns:
    [...] float32; NaN where the grid has no mass at all.
  """
  cumulative = jnp.cumsum(probs, axis=-1)
  mass = cumulative[..., -1:]
  index = jnp.argmax(cumulative >= 0.5 * mass, axis=-1)
  return jnp.where(mass[..., 0] > 0, jnp.take(grid, index), jnp.nan)


def mean_over_cots(predictions: types.Array) -> types.Array:
  """Average of the predictions of an input's CoTs (CoT-RAIL with n CoTs).

  Args:
    predictions: [..., C]; NaN marks an invalid CoT.

  Returns:
    [...] the mean over the valid CoTs; NaN where none is valid.
  """
  valid = ~jnp.isnan(predictions)
  total = jnp.sum(jnp.where(valid, predictions, 0.0), axis=-1)
  number = jnp.sum(valid, axis=-1)
  return jnp.where(number > 0, total / jnp.maximum(number, 1), jnp.nan)


FROM_PROBS = {
  'rail': rail,
  'rail_normalized': rail_normalized,
  'median': median,
}
PREDICTORS = ('decode', *FROM_PROBS)


def per_cot(
  name: str,
  probs: types.Array,
  decoded: types.Array,
  grid: types.Array,
) -> types.Array:
  """Prediction of the named predictor after each CoT.

  "decode" is standard decoding: the score that the model would write, read as
  a number. The others are functions of the distribution (FROM_PROBS).

  Args:
    name: one of PREDICTORS.
    probs: [..., C, Y] probabilities at the score tokens, NaN if invalid.
    decoded: [..., C] decoded scores, NaN where the token is no score.
    grid: [Y] the scores, ascending.

  Returns:
    [..., C] float32, NaN where the CoT gives no prediction.

  Raises:
    ValueError: the name is not one of PREDICTORS.
  """
  if name == 'decode':
    return decoded
  if name not in FROM_PROBS:
    raise ValueError(f'predictor {name!r} is not one of {PREDICTORS}')
  return FROM_PROBS[name](probs, grid)


def predict(
  name: str,
  probs: types.Array,
  decoded: types.Array,
  grid: types.Array,
) -> types.Array:
  """`per_cot` averaged over an input's CoTs, [...]; NaN where none is valid."""
  return mean_over_cots(per_cot(name, probs, decoded, grid))
