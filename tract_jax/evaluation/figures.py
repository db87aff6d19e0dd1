"""Agreement of predictions with the rater: correlations and errors.

In: scores [n] of the rater and predictions [n] of a system, all finite. Out: a
`Figure`: a number, or None and why there is none.

  Axes: n rows of a benchmark, Y score grid.
"""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import math

import numpy as np
import scipy

# Those of a row of report/metrics.json that have an interval.
NAMES = ('pearson', 'spearman', 'kendall', 'rmse', 'mae', 'accuracy')
MIN_ROWS = 3
# Predictions are float32: a spread at its rounding error is no spread, and a
# correlation with it would be one with noise.
CONSTANT_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Figure:
  """A number, or None and why there is none."""

  value: float | None
  reason: str | None = None


def constant_spread(values: np.ndarray) -> float:
  """Standard deviation up to which values near these count as constant."""
  return CONSTANT_TOLERANCE * float(np.max(np.abs(values), initial=0.0))


def pearson(scores: np.ndarray, predictions: np.ndarray) -> Figure:
  """Pearson's r of scores [n] and predictions [n], both finite.

  r = cov(scores, predictions) / (std(scores) * std(predictions)).

  Returns:
    r in [-1, 1]; None for fewer than 3 rows or a constant side.
  """
  return _correlation(scipy.stats.pearsonr, scores, predictions)


def spearman(scores: np.ndarray, predictions: np.ndarray) -> Figure:
  """Spearman's rho: Pearson's r of the ranks, ties at their mean rank.

  Returns:
    rho in [-1, 1]; None as for `pearson`.
  """
  return _correlation(scipy.stats.spearmanr, scores, predictions)


def kendall(scores: np.ndarray, predictions: np.ndarray) -> Figure:
  """Kendall's tau-b, the variant that corrects for ties.

  Returns:
    tau-b in [-1, 1]; None as for `pearson`.
  """
  return _correlation(scipy.stats.kendalltau, scores, predictions)


def rmse(scores: np.ndarray, predictions: np.ndarray) -> Figure:
  """Root of the mean squared error of predictions [n]; None without rows."""
  squared = _mean(np.square, scores, predictions)
  return Figure(squared.value and math.sqrt(squared.value), squared.reason)


def mae(scores: np.ndarray, predictions: np.ndarray) -> Figure:
  """Mean absolute error of predictions [n]; None without rows."""
  return _mean(np.abs, scores, predictions)


def accuracy(
  scores: np.ndarray, predictions: np.ndarray, half_step: float
) -> Figure:
  """Part of the predictions [n] that are near the score; None without rows.

  Args:
    scores, predictions: [n].
    half_step: the largest error that is near, of `half_step`.

  Returns:
    In [0, 1].
  """
  return _mean(lambda errors: is_near(errors, half_step), scores, predictions)


def is_near(errors: np.ndarray, half_step: float) -> np.ndarray:
  """Whether errors are of half a step at most, but for float32's rounding."""
  return np.abs(errors) <= half_step * (1 + CONSTANT_TOLERANCE)


def half_step(grid: Sequence[float]) -> float:
  """Half of the least distance between two scores of the grid [Y], rising.

  Example:
    >>> half_step([1.0, 2.0, 4.0])
    0.5
  """
  steps = [high - low for low, high in itertools.pairwise(grid)]
  return min(steps, default=0.0) / 2


def all_figures(
  scores: np.ndarray, predictions: np.ndarray, half_step: float
) -> dict[str, Figure]:
  """Every figure of NAMES, by name."""
  return {
    'pearson': pearson(scores, predictions),
    'spearman': spearman(scores, predictions),
    'kendall': kendall(scores, predictions),
    'rmse': rmse(scores, predictions),
    'mae': mae(scores, predictions),
    'accuracy': accuracy(scores, predictions, half_step),
  }


def mean_grid_mass(grid_mass: np.ndarray) -> Figure:
  """Mean of the rows [n] with a grid mass; None where no row has one."""
  known = grid_mass[np.isfinite(grid_mass)]
  if not len(known):
    return Figure(None, 'no row has one')
  return Figure(float(np.mean(known)))


def mean_or_none(values: Sequence[float | None]) -> float | None:
  """Mean of the values; None if one is, for a mean of the others misleads."""
  if not values or any(value is None for value in values):
    return None
  return float(np.mean(np.array(values, np.float64)))


def _correlation(
  statistic: Callable, scores: np.ndarray, predictions: np.ndarray
) -> Figure:
  """A correlation by scipy, or why it does not exist."""
  if len(predictions) and not len(scores):
    return Figure(None, 'no scores')
  if len(scores) < MIN_ROWS:
    return Figure(None, f'fewer than {MIN_ROWS} rows')
  for name, values in (('scores', scores), ('predictions', predictions)):
    if np.std(values) <= constant_spread(values):
      return Figure(None, f'constant {name}')
  return Figure(float(statistic(scores, predictions).statistic))


def _mean(of: Callable, scores: np.ndarray, predictions: np.ndarray) -> Figure:
  """Mean of a function of the errors."""
  if not len(scores):
    return Figure(None, 'no scores' if len(predictions) else 'no rows')
  errors = np.asarray(predictions, np.float64) - scores
  return Figure(float(np.mean(of(errors))))
