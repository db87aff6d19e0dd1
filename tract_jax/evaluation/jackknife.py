"""Intervals of figures by how much each row has to do with them.

In: scores and predictions, and which of them are of one row. Out: intervals
without a resample, for figures of so many parts that to resample each would
take minutes: the infinitesimal jackknife (Efron, 1982). A figure's error is
that of the mean of its influence values, over rows:

  se^2 = G / (G - 1) sum over rows g of (sum of influence in g)^2 / n^2

and the interval is t standard errors wide to both sides, of G - 1 degrees of
freedom, on a scale where that is right: Fisher's for r, the logarithm's for
the RMSE.

Axes: n predictions, of G rows: a row has one for each seed.
"""

from collections.abc import Mapping
import math

import numpy as np
import scipy

from tract_jax.evaluation import influence, metrics

# Of fewer, hardly anything is known of the spread.
MIN_ROWS = 10
_ROUNDING = 1e-12


def intervals(
  scores: np.ndarray,
  predictions: np.ndarray,
  rows: np.ndarray,
  level: float,
  has_correlation: bool,
) -> Mapping[str, metrics.Interval]:
  """Intervals of Pearson's r, the RMSE and the bias.

  Args:
    scores, predictions: [n] finite.
    rows: [n] int, equal for predictions of one row.
    level: probability that an interval is meant to cover.
    has_correlation: whether neither side is constant.

  Returns:
    {"pearson", "rmse", "bias": interval}, those that exist; none where there
    are fewer than MIN_ROWS rows.
  """
  names, row = np.unique(rows, return_inverse=True)
  if len(names) < MIN_ROWS:
    return {}
  errors = np.asarray(predictions, np.float64) - scores
  wide = float(scipy.stats.t.ppf((1 + level) / 2, len(names) - 1))

  def half_width(values: np.ndarray) -> float:
    sums = np.bincount(row, values - values.mean())
    scale = len(names) / (len(names) - 1)
    return wide * math.sqrt(scale * np.sum(sums**2)) / len(values)

  bias, half = float(errors.mean()), half_width(errors)
  found = {'bias': (bias - half, bias + half)}
  squared = float(np.mean(errors**2))
  # d log(RMSE) = dMSE / (2 MSE); without any error there is no spread.
  factor = math.exp(half_width(errors**2) / (2 * squared)) if squared else 1.0
  found['rmse'] = math.sqrt(squared) / factor, math.sqrt(squared) * factor
  if has_correlation:
    r = float(np.corrcoef(scores, predictions)[0, 1])
    room, half = 1 - r**2, half_width(influence.pearson(scores, predictions))
    low, high = (
      (r, r)
      if room < _ROUNDING
      else (math.tanh(math.atanh(r) + side * half / room) for side in (-1, 1))
    )
    found['pearson'] = low, high
  return found
