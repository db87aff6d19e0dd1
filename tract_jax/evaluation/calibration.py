"""How far a judge's distributions and errors can be trusted.

In: the rater's scores [n], and for each row the distribution over the score
grid [n, Y], averaged over its CoTs. Out: a `Calibration`, one entry of
report/metrics.json. Distributions are normalised on the grid; mass off it is
reported apart, as grid mass. Rows without a distribution are left out and
counted.

Axes: n rows, Y score grid.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from tract_jax.evaluation import figures, metrics, tables

# Central intervals of the predicted distribution whose coverage is told.
INTERVALS = (0.5, 0.9)
_NUM_BINS = 10
_MIN_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Bin:
  """Rows with about the same expected score: a point of the reliability curve.

  Attributes:
    num_rows: in the bin.
    mean_prediction: mean expected score.
    mean_score: mean of the rater's.
  """

  num_rows: int
  mean_prediction: float
  mean_score: float


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Calibration of one method on one benchmark with one seed.

  Attributes:
    method, num_cots, benchmark, seed: what is judged.
    num_rows: rows with a distribution, of which the figures are.
    num_left_out: rows without one.
    entropy: mean entropy of the distributions, nats.
    crps: mean continuous ranked probability score, in points of the score; the
      absolute error, if all mass were on one score.
    coverage: for each of INTERVALS, the part of rows whose score lies in the
      distribution's central interval. On a grid of few scores it is above the
      nominal value even for a perfect judge, for no interval is cut finer than
      the grid.
    curve: the reliability curve, by equal numbers of rows.
    calibration_error: mean over rows of the distance of curve and diagonal, in
      points of the score.
    conformal_level: wanted coverage of the split-conformal interval.
    conformal_half_width: expected score plus or minus this, in points, holds
      the rater's score at that level, whatever the judge (Vovk et al., 2005).
    conformal_coverage: of it, on the half of the rows that did not set it.
    reason: why figures are None; else None.
  """

  method: str
  num_cots: int
  benchmark: str
  seed: int
  num_rows: int
  num_left_out: int
  entropy: float | None
  crps: float | None
  coverage: tuple[float, ...] | None
  curve: tuple[Bin, ...]
  calibration_error: float | None
  conformal_level: float
  conformal_half_width: float | None
  conformal_coverage: float | None
  reason: str | None


def calibrate(
  system: metrics.SystemPredictions,
  probs: np.ndarray,
  grid: Sequence[float],
  *,
  conformal_level: float = 0.9,
) -> Calibration:
  """All figures of one system.

  Args:
    system: whose rows and scores they are; its predictions are not used.
    probs: [n, Y] distribution of each row, the mean over its CoTs; NaN where
      there is none.
    grid: [Y] the scores, rising.
    conformal_level: wanted coverage, in (0, 1).

  Returns:
    The figures; None with a reason for benchmarks without scores and for fewer
    than 20 rows.
  """
  masses = probs.sum(axis=-1, keepdims=True)
  usable = np.isfinite(masses[:, 0]) & (masses[:, 0] > 0)
  usable &= np.isfinite(system.scores)
  num_rows = int(usable.sum())
  facts: dict[str, Any] = {
    'method': system.method,
    'num_cots': system.num_cots,
    'benchmark': system.benchmark,
    'seed': system.seed,
    'num_rows': num_rows,
    'num_left_out': len(usable) - num_rows,
    'conformal_level': conformal_level,
  }
  if num_rows < _MIN_ROWS:
    reason = f'{num_rows} rows with score and distribution, below {_MIN_ROWS}'
    nothing: dict[str, Any] = dict.fromkeys(_FIGURES)
    return Calibration(**facts, **nothing, curve=(), reason=reason)
  probs = np.asarray(probs[usable], np.float64)
  figures = _figures(
    np.asarray(system.scores[usable], np.float64),
    probs / probs.sum(axis=-1, keepdims=True),
    np.asarray(grid, np.float64),
    conformal_level,
  )
  too_few = None
  if figures['conformal_half_width'] is None:
    too_few = (
      f'conformal_half_width, conformal_coverage: {num_rows} rows are too few '
      f'for a level of {conformal_level:g}'
    )
  return Calibration(**facts, **figures, reason=too_few)


def sort_key(calibration: Calibration) -> tuple[str, int, str, int]:
  """What puts them in order: the system, the benchmark, the seed."""
  c = calibration
  return c.method, c.num_cots, c.benchmark, c.seed


_FIGURES = (
  'entropy',
  'crps',
  'coverage',
  'calibration_error',
  'conformal_half_width',
  'conformal_coverage',
)


def _figures(scores, probs, grid, conformal_level: float) -> dict[str, Any]:
  """The figures of scores [n] and normalised distributions [n, Y]."""
  expected = probs @ grid
  curve = reliability_curve(scores, expected)
  distances = [
    b.num_rows * abs(b.mean_prediction - b.mean_score) for b in curve
  ]
  half_width, covered = split_conformal(scores, expected, conformal_level)
  return {
    'entropy': float(np.mean(entropy(probs))),
    'crps': float(np.mean(crps(scores, probs, grid))),
    'coverage': tuple(
      central_coverage(scores, probs, grid, level) for level in INTERVALS
    ),
    'curve': curve,
    'calibration_error': sum(distances) / len(scores),
    'conformal_half_width': half_width,
    'conformal_coverage': covered,
  }


def entropy(probs: np.ndarray) -> np.ndarray:
  """[n] entropies, in nats, of distributions [n, Y]."""
  logs = np.log(np.where(probs > 0, probs, 1.0))
  return -np.sum(probs * logs, axis=-1)


def crps(scores: np.ndarray, probs: np.ndarray, grid: np.ndarray) -> np.ndarray:
  """Continuous ranked probability score of each row; 0 is the best.

    CRPS = E |X - s| - E |X - X'| / 2,  X, X' drawn from the distribution

  (Gneiting and Raftery, JASA 2007, eq. 21).

  Args:
    scores: [n]; need not lie on the grid.
    probs: [n, Y], each summing to 1.
    grid: [Y].

  Returns:
    [n], in points of the score.
  """
  to_score = np.abs(grid - scores[:, None])
  apart = np.abs(grid[:, None] - grid)
  spread = np.einsum('ny,yz,nz->n', probs, apart, probs)
  return np.sum(probs * to_score, axis=-1) - spread / 2


def central_coverage(
  scores: np.ndarray, probs: np.ndarray, grid: np.ndarray, level: float
) -> float:
  """Part of the rows whose score lies in their central interval.

  Args:
    scores: [n].
    probs: [n, Y], each summing to 1.
    grid: [Y], rising.
    level: mass of the interval: from the (1 - level) / 2 quantile to the
      (1 + level) / 2 one.

  Returns:
    In [0, 1].
  """
  reached = np.cumsum(probs, axis=-1)
  # The last sum may fall short of 1 by rounding.
  reached[:, -1] = 1.0
  low, high = (
    grid[np.argmax(reached >= quantile - 1e-12, axis=-1)]
    for quantile in ((1 - level) / 2, (1 + level) / 2)
  )
  return float(np.mean((low <= scores) & (scores <= high)))


def reliability_curve(
  scores: np.ndarray, expected: np.ndarray
) -> tuple[Bin, ...]:
  """The rater's mean score where the judge expects about the same.

  Args:
    scores: [n].
    expected: [n] expected scores.

  Returns:
    At most 10 bins of equally many rows, in order of the expectation.
  """
  order = np.argsort(expected, kind='stable')
  return tuple(
    Bin(len(some), float(expected[some].mean()), float(scores[some].mean()))
    for some in np.array_split(order, _NUM_BINS)
    if len(some)
  )


def split_conformal(
  scores: np.ndarray, expected: np.ndarray, level: float
) -> tuple[float | None, float | None]:
  """An interval around the expectation, set on one half of the rows.

  The half-width is the ceil((m + 1) level)-th smallest absolute error of the m
  rows that set it (Vovk et al., 2005; Lei et al., JASA 2018, alg. 2). Rows are
  split at random with a fixed seed.

  Args:
    scores: [n].
    expected: [n].
    level: wanted coverage.

  Returns:
    (half-width, coverage of the other rows); None for both where the rows are
    too few for the level.
  """
  order = np.random.default_rng(0).permutation(len(scores))
  setting, held_out = np.array_split(order, 2)
  errors = np.abs(scores - expected)
  rank = math.ceil((len(setting) + 1) * level)
  if rank > len(setting) or not len(held_out):
    return None, None
  half_width = float(np.sort(errors[setting])[rank - 1])
  return half_width, float(np.mean(errors[held_out] <= half_width))


def cells(
  calibrations: Sequence[Calibration],
) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of the table: means over seeds, a system a line."""
  header = ['method', 'CoTs', 'benchmark', 'seeds', 'CRPS', 'entropy']
  header += [f'{100 * level:g} % holds' for level in INTERVALS]
  header += ['calibration error', 'conformal', 'holds']
  lines = []
  for key in dict.fromkeys(map(_system, calibrations)):
    seeds = [c for c in calibrations if _system(c) == key]

    def mean(values):
      return tables.number(figures.mean_or_none(list(values)))

    covered = [c.coverage or (None,) * len(INTERVALS) for c in seeds]
    lines.append(
      [
        *(*key, len(seeds)),
        *(mean(c.crps for c in seeds), mean(c.entropy for c in seeds)),
        *map(mean, zip(*covered, strict=True)),
        mean(c.calibration_error for c in seeds),
        mean(c.conformal_half_width for c in seeds),
        mean(c.conformal_coverage for c in seeds),
      ]
    )
  return header, lines


def _system(calibration: Calibration) -> tuple[str, int, str]:
  return sort_key(calibration)[:3]
