"""Resamples of the rows of a benchmark, and all figures on each of them.

In: rows of a benchmark and the predictions of all systems on them. Out: for
each system its figures, on the rows as they are and on every resample. For
Pearson's r and the errors these are those of the resampled rows; the rank
correlations are moved to first order, by `influence`, for to rank 100,000 rows
2,000 times anew takes minutes for each system. Every system judged on the same
rows sees the same resamples, so that a difference is paired; each benchmark has
its own stream of random numbers, by name, so that adding a system or a
benchmark changes no other's.

  Axes: n rows of a benchmark, R resamples, U predictions made on the same rows
  (systems and seeds).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import zlib

import numpy as np

from tract_jax import types
from tract_jax.evaluation import figures, influence, metrics

_CHUNK_ELEMENTS = 2**21
_ROUNDING = 1e-12
_RANKED = {'spearman': influence.spearman, 'kendall': influence.kendall}


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
class Draws:
  """A figure of one system with one seed, and of its resamples.

  Attributes:
    rows: what was judged.
    figure: on the rows as they are.
    draws: [R] float64 on resampled rows; NaN where there is no such figure.
      Draw i has the same rows for every system.
  """

  rows: metrics.Rows
  figure: figures.Figure
  draws: np.ndarray


# By name, as in figures.NAMES.
FigureDraws = Mapping[str, Draws]


def resample(
  rows: metrics.Rows,
  predictions: np.ndarray,
  bootstrap: Bootstrap,
  half_step: float,
) -> list[FigureDraws]:
  """Every figure of each line of predictions, with resamples of the rows.

  Args:
    rows: the judged rows.
    predictions: [U, n] finite.
    bootstrap: how many resamples, and their seed.
    half_step: of the score grid.

  Returns:
    U records; all share the same resamples.
  """
  scores = np.asarray(rows.scores, np.float64)
  lines = np.asarray(predictions, np.float64)
  found = [figures.all_figures(scores, line, half_step) for line in lines]
  drawn = dict.fromkeys(
    figures.NAMES, np.full((len(lines), bootstrap.num_resamples), np.nan)
  )
  if len(scores):
    drawn = _resampled(scores, lines, found, half_step, rows, bootstrap)
  return [
    {name: Draws(rows, one[name], drawn[name][i]) for name in figures.NAMES}
    for i, one in enumerate(found)
  ]


def averaged(samples: Sequence[Draws]) -> Draws:
  """The mean of several figures, and of each resample of the same rows.

  Args:
    samples: at least one, of the same rows; the scores may differ.

  Returns:
    One record, with the first one's rows; without a figure where one of them
    has none.
  """
  missing = [s.figure for s in samples if s.figure.value is None]
  mean = figures.mean_or_none([s.figure.value for s in samples])
  figure = missing[0] if missing else figures.Figure(mean)
  draws = np.mean([s.draws for s in samples], axis=0)
  return Draws(samples[0].rows, figure, draws)


def stream(bootstrap: Bootstrap, name: str) -> np.random.Generator:
  """Random numbers that depend on the seed and the name alone."""
  return np.random.default_rng([bootstrap.seed, zlib.crc32(name.encode())])


def means(columns: np.ndarray, bootstrap: Bootstrap, name: str) -> np.ndarray:
  """Means of columns over resamples of their rows.

  A resample is how often it holds each row: the means are then one matrix
  product over all systems, and no [R, K, n] array is made.

  Args:
    columns: [K, n], n at least 1.
    bootstrap: how many resamples, and their seed.
    name: of the stream of random numbers; where it and n are the same, the
      resamples are, too.

  Returns:
    [K, R].
  """
  num_rows = columns.shape[1]
  rng = stream(bootstrap, name)
  chunk = max(1, _CHUNK_ELEMENTS // num_rows)
  out = []
  for start in range(0, bootstrap.num_resamples, chunk):
    size = min(chunk, bootstrap.num_resamples - start)
    chosen = rng.integers(num_rows, size=(size, num_rows))
    out.append(columns @ (counts(chosen, num_rows).T / num_rows))
  return np.concatenate(out, axis=1)


def _resampled(
  x: np.ndarray, y: np.ndarray, found, half_step: float, rows, bootstrap
) -> dict[str, np.ndarray]:
  """{figure: [U, R]} of scores x [n] and predictions y [U, n]."""
  x_lines, x_floor = _standardised(x[None])
  y_lines, y_floor = _standardised(y)
  errors = y - x
  ranked = {
    name: np.array(
      [
        np.zeros_like(x) if one[name].value is None else influence_of(x, line)
        for one, line in zip(found, y, strict=True)
      ]
    )
    for name, influence_of in _RANKED.items()
  }
  columns = [x_lines, x_lines**2]
  columns += [y_lines, y_lines**2, x_lines * y_lines, errors**2]
  columns += [np.abs(errors), figures.is_near(errors, half_step)]
  columns += ranked.values()
  name = f'rows of {rows.benchmark}'
  stats = means(np.concatenate(columns), bootstrap, name)
  x1, x2 = stats[:1], stats[1:2]
  y1, y2, xy, squared, absolute, near, *moved = stats[2:].reshape(
    -1, *(len(y), bootstrap.num_resamples)
  )
  x_var, y_var = x2 - x1**2, y2 - y1**2
  # Second moments bound the rounding error that a zero variance shows.
  constant = x_var <= np.maximum(x_floor, _ROUNDING * x2)
  constant = constant | (y_var <= np.maximum(y_floor, _ROUNDING * y2))
  spread = np.sqrt(np.where(constant, 1.0, x_var * y_var))
  r = np.clip((xy - x1 * y1) / spread, -1.0, 1.0)
  draws = {
    'pearson': np.where(constant, np.nan, r),
    'rmse': np.sqrt(squared),
    'mae': absolute,
    'accuracy': near,
  }
  for name, change in zip(ranked, moved, strict=True):
    values = np.array([one[name].value for one in found], np.float64)
    draws[name] = _moved(values[:, None], change)
  return draws


def _moved(correlation: np.ndarray, change: np.ndarray) -> np.ndarray:
  """Correlations [U, 1] moved by changes [U, R] on Fisher's scale.

  z = atanh(r) moves by change / (1 - r^2) to first order; back from there, no
  draw is past 1, and an interval near 1 is as lopsided as it should be.
  """
  room = 1 - correlation**2
  is_perfect = room < _ROUNDING
  z = np.arctanh(np.where(is_perfect, 0.0, correlation))
  moved = np.tanh(z + change / np.where(is_perfect, 1.0, room))
  return np.where(is_perfect, correlation, moved)


def _standardised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Lines [U, n] with mean 0 and variance 1; a constant line becomes 0.

  The second is the variance [U, 1] up to which a resample of the line counts
  as constant.
  """
  std = np.std(values, axis=1, keepdims=True)
  spread = np.array([[figures.constant_spread(line)] for line in values])
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
