"""Resamples of the rows of a benchmark, and Pearson's r on each of them.

In: rows of a benchmark and the predictions of all systems on them. Out: for
each system its correlation, on the rows as they are and on every resample.
Every system judged on the same rows sees the same resamples, so that a
difference is paired; each benchmark has its own stream of random numbers, by
name, so that adding a system or a benchmark changes no other's.

  Axes: n rows of a benchmark, R resamples, U predictions made on the same rows
  (systems and seeds).
"""

from collections.abc import Sequence
import dataclasses
import zlib

import numpy as np

from tract_jax import types
from tract_jax.evaluation import metrics

_CHUNK_ELEMENTS = 2**21
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """How intervals are made.

  Attributes:
    num_resamples: R.
    seed: of the resampling; not the seed of a run.
    level: probability that an interval is meant to cover.
  """

  num_resamples: int = 2000
  seed: int = 0
  level: float = 0.95

  def __post_init__(self):
    if self.num_resamples < 1:
      raise types.InputError(
        f'num_resamples {self.num_resamples}: at least 1 is needed'
      )
    if self.seed < 0:
      raise types.InputError(
        f'bootstrap seed {self.seed}: must not be negative'
      )
    if not 0 < self.level < 1:
      raise types.InputError(f'level {self.level}: must lie between 0 and 1')


DEFAULT = Bootstrap()


@dataclasses.dataclass(frozen=True, eq=False)
class PearsonDraws:
  """Pearson's r of one system with one seed, and of its resamples.

  Attributes:
    rows: what was judged.
    r: on the rows as they are.
    draws: [R] float64 on resampled rows; NaN where a side is constant. Draw i
      has the same rows for every system.
  """

  rows: metrics.Rows
  r: metrics.Figure
  draws: np.ndarray


def pearson_draws(
  rows: metrics.Rows, predictions: np.ndarray, bootstrap: Bootstrap
) -> list[PearsonDraws]:
  """Pearson's r of each line of predictions, with resamples of the rows.

  Args:
    rows: the judged rows.
    predictions: [U, n] finite.
    bootstrap: how many resamples, and their seed.

  Returns:
    U records; all share the same resamples.
  """
  scores = np.asarray(rows.scores, np.float64)
  draws = np.full((len(predictions), bootstrap.num_resamples), np.nan)
  if len(scores):
    rng = stream(bootstrap, f'rows of {rows.benchmark}')
    draws = _resampled_pearson(scores, predictions, bootstrap, rng)
  return [
    PearsonDraws(rows, metrics.pearson(scores, line), draws[i])
    for i, line in enumerate(predictions)
  ]


def averaged(samples: Sequence[PearsonDraws]) -> PearsonDraws:
  """The mean of several correlations, and of each resample of the same rows.

  Args:
    samples: at least one, of the same rows; the scores may differ.

  Returns:
    One record, with the first one's rows; without a correlation where one of
    them has none.
  """
  missing = [s.r for s in samples if s.r.value is None]
  mean = metrics.mean_or_none([s.r.value for s in samples])
  r = missing[0] if missing else metrics.Figure(mean)
  draws = np.mean([s.draws for s in samples], axis=0)
  return PearsonDraws(samples[0].rows, r, draws)


def stream(bootstrap: Bootstrap, name: str) -> np.random.Generator:
  """Random numbers that depend on the seed and the name alone."""
  return np.random.default_rng([bootstrap.seed, zlib.crc32(name.encode())])


def _resampled_pearson(
  scores: np.ndarray,
  predictions: np.ndarray,
  bootstrap: Bootstrap,
  rng: np.random.Generator,
) -> np.ndarray:
  """[U, R] Pearson's r on R resamples of the rows; NaN where it has none.

  A resample is how often it holds each row: its moments are then one matrix
  product over all systems, and no [R, U, n] array is made.
  """
  num_rows = len(scores)
  x, x_floor = _standardised(scores[None])
  y, y_floor = _standardised(np.asarray(predictions, np.float64))
  columns = np.concatenate([x, x * x, y, y * y, x * y])
  num_lines = len(y)
  chunk = max(1, _CHUNK_ELEMENTS // num_rows)
  out = []
  for start in range(0, bootstrap.num_resamples, chunk):
    size = min(chunk, bootstrap.num_resamples - start)
    chosen = rng.integers(num_rows, size=(size, num_rows))
    moments = columns @ (counts(chosen, num_rows).T / num_rows)
    x1, x2 = moments[:1], moments[1:2]
    y1, y2, xy = moments[2:].reshape(3, num_lines, size)
    x_var, y_var = x2 - x1**2, y2 - y1**2
    # Second moments bound the rounding error that a zero variance shows.
    constant = x_var <= np.maximum(x_floor, _ROUNDING * x2)
    constant = constant | (y_var <= np.maximum(y_floor, _ROUNDING * y2))
    spread = np.sqrt(np.where(constant, 1.0, x_var * y_var))
    out.append(np.where(constant, np.nan, (xy - x1 * y1) / spread))
  return np.clip(np.concatenate(out, axis=1), -1.0, 1.0)


def _standardised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Lines [U, n] with mean 0 and variance 1; a constant line becomes 0.

  The second is the variance [U, 1] up to which a resample of the line counts
  as constant.
  """
  std = np.std(values, axis=1, keepdims=True)
  spread = np.array([[metrics.constant_spread(line)] for line in values])
  constant = std <= spread
  std = np.where(constant, 1.0, std)
  centred = np.where(constant, 0.0, values - values.mean(1, keepdims=True))
  return centred / std, (spread / std) ** 2


def counts(chosen: np.ndarray, num_items: int) -> np.ndarray:
  """[R, items] how often each line of `chosen` [R, ...] holds each item."""
  offsets = num_items * np.arange(len(chosen))[:, None]
  counts = np.bincount(
    (chosen + offsets).ravel(), minlength=len(chosen) * num_items
  )
  return counts.reshape(len(chosen), num_items)
