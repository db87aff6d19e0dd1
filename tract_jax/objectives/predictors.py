"""Predictors: from the distribution over the score grid to one number.

RAIL (arXiv:2403.04182) predicts the expectation instead of the likeliest
score; CoT-RAIL (TRACT, arXiv:2503.04381) takes it after a sampled chain of
thought and averages over several. All functions are pure and in float32;
Y is the score grid, C the CoTs of an input.
"""

from collections.abc import Sequence
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

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
  mass = jnp.sum(probs, axis=-1, keepdims=True)
  # Divided first: products of tiny probabilities and scores may underflow.
  return rail(jnp.where(mass > 0, probs / mass, jnp.nan), grid)


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


def tempered(
  probs: types.Array, grid: types.Array, temperature: float
) -> types.Array:
  """Expectation under the grid's distribution at another temperature.

  sum_y p_y^(1/T) y / sum_y p_y^(1/T). T = 1 is `rail_normalized`; towards 0 it
  becomes the likeliest score, towards infinity the plain mean of all scores
  that have any probability.

  Args:
    probs: [..., Y] probabilities at the score tokens.
    grid: [Y] the scores.
    temperature: T, above 0.

  Returns:
    [...] float32, within the grid; NaN where the grid has no mass at all.
  """
  # The likeliest score has p = 1, so that no power of it underflows.
  most = jnp.max(probs, axis=-1, keepdims=True)
  ratios = probs / jnp.where(most > 0, most, 1.0)
  # Nothing and NaN would be 1 if the power rounded to 0.
  powers = jnp.where(ratios > 0, ratios ** (1.0 / temperature), 0.0)
  return rail_normalized(powers, grid)


def decode_sampled(
  probs: types.Array, grid: types.Array, uniforms: types.Array
) -> types.Array:
  """Standard decoding with a sampled token: score y with probability p_y.

  Sampling is from the whole vocabulary at temperature 1, so the token is no
  score with the probability that is off the grid.

  Args:
    probs: [..., Y] probabilities at the score tokens.
    grid: [Y] the scores.
    uniforms: [...] in [0, 1), which make the choice.

  Returns:
    [...] float32; NaN where the token is no score.
  """
  cumulative = jnp.cumsum(probs, axis=-1)
  above = cumulative > uniforms[..., None]
  picked = jnp.take(grid, jnp.argmax(above, axis=-1))
  return jnp.where(above[..., -1], picked, jnp.nan)


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
PREDICTORS = ('decode', 'decode_sampled', *FROM_PROBS, 'tempered')


def per_cot(
  name: str,
  probs: types.Array,
  decoded: types.Array,
  grid: types.Array,
  *,
  temperature: float = 1.0,
  uniforms: types.Array | None = None,
) -> types.Array:
  """Prediction of the named predictor after each CoT.

  "decode" is standard decoding: the score that the model would write, read as
  a number; "decode_sampled" is the one that it would write when sampled. The
  others are functions of the distribution.

  Args:
    name: one of PREDICTORS.
    probs: [..., C, Y] probabilities at the score tokens, NaN if invalid.
    decoded: [..., C] decoded scores, NaN where the token is no score.
    grid: [Y] the scores, ascending.
    temperature: of "tempered".
    uniforms: [..., C] in [0, 1), the choices of "decode_sampled".

  Returns:
    [..., C] float32, NaN where the CoT gives no prediction.

  Raises:
    ValueError: the name is not one of PREDICTORS, or uniforms are missing.
  """
  if name == 'decode':
    return decoded
  if name == 'decode_sampled':
    if uniforms is None:
      raise ValueError('predictor decode_sampled: needs uniforms')
    return decode_sampled(probs, grid, uniforms)
  if name == 'tempered':
    return tempered(probs, grid, temperature)
  if name not in FROM_PROBS:
    raise ValueError(f'predictor {name!r} is not one of {PREDICTORS}')
  return FROM_PROBS[name](probs, grid)


def predict(
  name: str,
  probs: types.Array,
  decoded: types.Array,
  grid: types.Array,
  *,
  temperature: float = 1.0,
  uniforms: types.Array | None = None,
) -> types.Array:
  """`per_cot` averaged over an input's CoTs, [...]; NaN where none is valid."""
  each = per_cot(
    name, probs, decoded, grid, temperature=temperature, uniforms=uniforms
  )
  return mean_over_cots(each)


def decode_uniforms(
  seed: int, example_ids: Sequence[str], num_cots: int
) -> np.ndarray:
  """The numbers with which "decode_sampled" picks its scores.

  Each depends on seed, example and CoT alone, whatever the rows beside it.

  Args:
    seed: of the run.
    example_ids: [n] of the examples.
    num_cots: C.

  Returns:
    [n, C] float32, uniform in [0, 1).
  """
  found = np.zeros((len(example_ids), num_cots), np.float32)
  for i, example_id in enumerate(example_ids):
    for c in range(num_cots):
      name = json.dumps([seed, 'decode_sampled', example_id, c])
      digest = hashlib.sha256(name.encode()).digest()
      # 24 bits: float32 has no more, and 1 is never reached.
      found[i, c] = int.from_bytes(digest[:3], 'big') / 2**24
  return found
