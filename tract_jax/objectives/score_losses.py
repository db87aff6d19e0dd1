"""Score losses: how far a distribution over the grid is from the rater's.

  squared_error     (E_p[y] - y*)^2, TRACT's and RAFT's
  crps              integral of (F - G)^2
  wasserstein       integral of |F - G|
  distribution_ce   - sum_y q(y) log p(y)

p and F are the model's distribution and its distribution function, q and G the
rater's.
All are pure functions of log p(str(y) | x, s), in float32, and differ by name
alone (SCORE_LOSSES). Probability that leaks off the grid is a score of 0 to the
first three, as it is to RAIL, or is removed beforehand (`on_grid`). Axes: Y
score grid; leading axes are free.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.objectives import predictors

EXPECTATIONS = ('full', 'grid')


def on_grid(log_probs: types.Array, expectation: str) -> types.Array:
  """The distribution that expectations are taken under.

  Args:
    log_probs: [..., Y] log p(str(y) | x, s), softmax over the vocabulary.
    expectation: "full", these as they are, whose sum may be below 1 (TRACT,
      arXiv:2503.04381, and its release); "grid", renormalised on the grid:
      log p(str(y)) - log sum_y' p(str(y')).

  Returns:
    [..., Y] float32.

  Raises:
    ValueError: the expectation is not one of EXPECTATIONS.
  """
  if expectation not in EXPECTATIONS:
    raise ValueError(f'{expectation!r} is not one of {EXPECTATIONS}')
  if expectation == 'full':
    return log_probs
  return jax.nn.log_softmax(log_probs, axis=-1)


def off_grid_penalty(log_probs: types.Array) -> types.Array:
  """Cost of probability that leaks off the grid: - log sum_y p(str(y) | x, s).

  0 where all mass is on the grid, and the same for any two distributions of
  one mass. Not in the paper or its release; neither has any such term.

  Args:
    log_probs: [..., Y] under the whole vocabulary's softmax.

  Returns:
    [...] float32, nats.
  """
  return -jax.nn.logsumexp(log_probs, axis=-1)


def squared_error(
  log_probs: types.Array,
  grid: np.ndarray,
  scores: types.Array,
  target_probs: types.Array,
) -> types.Array:
  """Squared error of the expected score, (sum_y p(str(y)) y - y*)^2.

  RAFT (ICLR 2025), and CoT-RAFT's squared error (arXiv:2503.04381, eq. 4). Of a
  rater's distribution it sees the mean alone.

  Args:
    log_probs: [..., Y] of the model.
    grid: [Y] the scores, known when compiling.
    scores: [...] y*, whole or fractional.
    target_probs: not used.

  Returns:
    [...] float32, in squared points of the score.
  """
  del target_probs
  expected = predictors.rail(jnp.exp(log_probs), grid)
  return jnp.square(expected - scores)


def crps(
  log_probs: types.Array,
  grid: np.ndarray,
  scores: types.Array,
  target_probs: types.Array,
) -> types.Array:
  """Continuous ranked probability score, the integral of (F - G)^2.

  For a whole score it is the CRPS of Gneiting and Raftery (JASA 2007, eq. 20);
  for several ratings it is the mean of theirs less a constant.

  Args:
    log_probs: [..., Y] of the model; mass off the grid is at 0.
    grid: [Y] the scores, known when compiling.
    scores: not used.
    target_probs: [..., Y] the rater's distribution over the grid.

  Returns:
    [...] float32, in points of the score.
  """
  del scores
  gaps, widths = _cdf_gaps(log_probs, grid, target_probs)
  return jnp.einsum(
    '...y,y->...', jnp.square(gaps), widths, precision='highest'
  )


def wasserstein(
  log_probs: types.Array,
  grid: np.ndarray,
  scores: types.Array,
  target_probs: types.Array,
) -> types.Array:
  """Wasserstein-1 (earth mover's) distance, the integral of |F - G|.

  For a whole score it is the expected absolute error E_p |y - y*|. It is never
  below the error of the expected score.

  Args:
    log_probs: [..., Y] of the model; mass off the grid is at 0.
    grid: [Y] the scores, known when compiling.
    scores: not used.
    target_probs: [..., Y] the rater's distribution over the grid.

  Returns:
    [...] float32, in points of the score.
  """
  del scores
  gaps, widths = _cdf_gaps(log_probs, grid, target_probs)
  return jnp.einsum('...y,y->...', jnp.abs(gaps), widths, precision='highest')


def distribution_ce(
  log_probs: types.Array,
  grid: np.ndarray,
  scores: types.Array,
  target_probs: types.Array,
) -> types.Array:
  """Cross-entropy with the rater's distribution, - sum_y q(y) log p(str(y)).

  For a whole score it is the cross-entropy of the score token. With the
  expectation "full" it holds the off-grid penalty: p is not renormalised.

  Args:
    log_probs: [..., Y] of the model.
    grid: not used; neither order nor distance of the scores matters.
    scores: not used.
    target_probs: [..., Y] the rater's distribution over the grid.

  Returns:
    [...] float32, nats.
  """
  del grid, scores
  return -jnp.sum(target_probs * log_probs, axis=-1)


ScoreLoss = Callable[
  [types.Array, np.ndarray, types.Array, types.Array], types.Array
]
SCORE_LOSSES: dict[str, ScoreLoss] = {
  'squared_error': squared_error,
  'crps': crps,
  'wasserstein': wasserstein,
  'distribution_ce': distribution_ce,
}


def _cdf_gaps(log_probs, grid, target_probs) -> tuple[types.Array, types.Array]:
  """F - G right of each point but the last, and the widths to the next point.

  The points are the grid and 0, where the mass off the grid lies; a grid that
  has a 0 of its own gets a width of 0 there.
  """
  probs = jnp.exp(log_probs)
  # Not log1p(-mass): rounding may take the mass past 1.
  off_grid = 1.0 - jnp.sum(probs, axis=-1, keepdims=True)
  # On the host: the order is a constant of the compiled program.
  points = np.append(np.asarray(grid, np.float32), np.float32(0))
  order = np.argsort(points)
  excess = jnp.concatenate([probs - target_probs, off_grid], axis=-1)
  gaps = jnp.cumsum(jnp.take(excess, order, axis=-1), axis=-1)
  return gaps[..., :-1], np.diff(points[order])
