"""The rater of the synthetic world: quality, noise, and the best that is known.

A thing's quality is one of five levels, which lie evenly over the score grid.
The rater's score deviates from it by `NOISE`, a distribution over levels; on a
finer grid it is interpolated between them, so that every score occurs:

  level          1       2       3       4       5
  grid 1..5      1       2       3       4       5
  grid 0..10     0   .   .   3   .   5   .   .   8   .  10
  deviation        -1    0    1         levels
  probability       .3   .4   .3        0 at -2 and 2

What passes an end of the grid is clipped to it. Axes: Y score grid.
"""

from collections.abc import Sequence
import math

import numpy as np

from tract_jax import types

NUM_LEVELS = 5
GRID = types.ScoreGrid((1.0, 2.0, 3.0, 4.0, 5.0), ('1', '2', '3', '4', '5'))
# Probability of the rater's deviation e = -1, 0, 1. Large, rare ones would
# be lost to top-p sampling, and make the squared error's gradient noisy.
NOISE = (0.3, 0.4, 0.3)


def level_index(level: int, grid: types.ScoreGrid) -> int:
  """Which score of the grid a quality level is; the upper one on a tie.

  Args:
    level: 1 .. NUM_LEVELS.
    grid: the score grid.

  Returns:
    Its index.
  """
  step = (len(grid.values) - 1) / (NUM_LEVELS - 1)
  return math.floor((level - 1) * step + 0.5)


def deviations(noise: Sequence[float], grid: types.ScoreGrid) -> np.ndarray:
  """Probabilities of the rater's deviation, in steps of the grid.

  Args:
    noise: probabilities of deviations by -k..k levels.
    grid: the score grid.

  Returns:
    [2 n + 1] float64, of -n..n steps; `noise` itself on a grid of five.

  Raises:
    InputError: noise that is no distribution.
  """
  probs = _checked_noise(noise)
  # A grid of fewer scores than levels has the noise of a score each.
  step = max((len(grid.values) - 1) / (NUM_LEVELS - 1), 1.0)
  reach = probs.size // 2 + 1
  most = math.ceil(reach * step) - 1
  levels = np.arange(-most, most + 1) / step
  padded = np.pad(probs, 1)
  found = np.interp(levels, np.arange(-reach, reach + 1), padded)
  return found / found.sum()


def expected_scores(
  noise: Sequence[float] = NOISE, grid: types.ScoreGrid = GRID
) -> np.ndarray:
  """E[score | quality], what the ideal judge answers.

  Args:
    noise: probabilities of the rater's deviations -k..k.
    grid: the score grid.

  Returns:
    [5] float64, for quality 1..5.
  """
  return _score_given_quality(noise, grid) @ np.asarray(grid.values)


def ideal_pearson(
  noise: Sequence[float] = NOISE, grid: types.ScoreGrid = GRID
) -> tuple[float, float]:
  """Pearson's r with the rater of the ideal and of the one-sample judge.

  With q the quality, y the score, and v = Var(E[y | q]) / Var(y):
    the ideal judge, E[y | q]:            r = sqrt(v), the world's ceiling;
    the one-sample judge, y' ~ p(y | q):  r = v.

  Args:
    noise: probabilities of the rater's deviations -k..k.
    grid: the score grid.

  Returns:
    (sqrt(v), v).
  """
  values = np.asarray(grid.values, np.float64)
  conditional = _score_given_quality(noise, grid)
  means = conditional @ values
  marginal = conditional.mean(axis=0)
  total_variance = marginal @ values**2 - (marginal @ values) ** 2
  share = float(means.var() / total_variance)
  return share**0.5, share


def _score_given_quality(
  noise: Sequence[float], grid: types.ScoreGrid
) -> np.ndarray:
  """[quality, score] p(score | quality): the noise, its tails clipped."""
  probs = deviations(noise, grid)
  table = np.zeros((NUM_LEVELS, len(grid.values)))
  for level in range(1, NUM_LEVELS + 1):
    for i, prob in enumerate(probs):
      index = level_index(level, grid) + i - len(probs) // 2
      table[level - 1, min(max(index, 0), len(grid.values) - 1)] += prob
  return table


def _checked_noise(noise: Sequence[float]) -> np.ndarray:
  """Noise as an array, or an InputError that says what is wrong with it."""
  probs = np.asarray(noise, np.float64)
  if (
    probs.ndim != 1
    or probs.size % 2 == 0
    or not np.all(probs >= 0)
    or abs(probs.sum() - 1) > 1e-6
  ):
    raise types.InputError(
      f'synthetic noise {tuple(noise)}: must be an odd number of'
      ' probabilities (of -k..k) that sum to 1'
    )
  return probs
