"""What a system said, and the row of report/metrics.json that it gets.

In: scores [n] of the rater and predictions [n] of a system, NaN where it gave
none. A figure that does not exist is None with a reason, never NaN.

  Axes: n rows of a benchmark.
"""

from collections.abc import Mapping
import dataclasses
import math

import numpy as np

from tract_jax import types

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True, order=True)
class System:
  """What is judged: a method read out by a predictor over C CoTs."""

  method: str
  predictor: str
  num_cots: int

  def __str__(self) -> str:
    return f'{self.method}/{self.predictor}/{self.num_cots}'


@dataclasses.dataclass(frozen=True)
class Rows:
  """The judged rows of a benchmark; equal for systems that can be paired.

  Attributes:
    benchmark, example_ids: its name, and [n] rows.
    scores: [n], the rater's; () where the benchmark has none.
  """

  benchmark: str
  example_ids: tuple[str, ...]
  scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class SystemPredictions:
  """What one system said on one benchmark with one seed.

  Attributes:
    method, predictor, num_cots: the system.
    benchmark: name of the benchmark.
    seed: of the run.
    example_ids: [n], unique.
    scores: [n] float, the rater's; all finite, or all NaN where the benchmark
      has none.
    predictions: [n] float; NaN or infinite where there is none.
    grid_mass: [n] float, probability on the score grid, averaged over the
      row's CoTs; NaN where it is unknown.
    finish_reasons: number of CoTs per finish reason; empty where unknown.
    num_invalid_cots: CoTs without a prediction, left out of their row's mean.

  Raises:
    InputError: for a score that is not finite beside others that are, or an id
      that comes twice.
    ValueError: for arrays of different lengths.
  """

  method: str
  predictor: str
  num_cots: int
  benchmark: str
  seed: int
  example_ids: tuple[str, ...]
  scores: np.ndarray
  predictions: np.ndarray
  grid_mass: np.ndarray
  finish_reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
  num_invalid_cots: int = 0

  def __post_init__(self):
    shapes = [np.shape(self.scores), np.shape(self.predictions)]
    shapes.append(np.shape(self.grid_mass))
    if any(shape != (len(self.example_ids),) for shape in shapes):
      raise ValueError(
        f'{len(self.example_ids)} ids, but scores, predictions, grid_mass of '
        f'shapes {shapes}'
      )
    has_scores, seen = not np.isnan(self.scores).all(), set()
    for example_id, score in zip(self.example_ids, self.scores, strict=True):
      if has_scores and not math.isfinite(score):
        raise types.InputError(
          f'{self.benchmark}, {example_id}: score {score} is not a number'
        )
      if example_id in seen:
        raise types.InputError(
          f'{self.benchmark}, {example_id}: predicted twice by {self.method} '
          f'({self.predictor}) with seed {self.seed}'
        )
      seen.add(example_id)

  @property
  def system(self) -> System:
    """Method, predictor and number of CoTs."""
    return System(self.method, self.predictor, self.num_cots)

  @property
  def key(self) -> tuple[System, str, int]:
    """System, benchmark and seed."""
    return self.system, self.benchmark, self.seed

  @property
  def rated(self) -> np.ndarray:
    """The rater's scores [n], or none at all [0]."""
    return self.scores[~np.isnan(self.scores)]

  @property
  def rows(self) -> Rows:
    """The rows that were judged, in their order here."""
    scores = tuple(float(score) for score in self.rated)
    return Rows(self.benchmark, tuple(self.example_ids), scores)


@dataclasses.dataclass(frozen=True)
class MetricRow:
  """One row of report/metrics.json.

  Attributes:
    method, predictor, num_cots, benchmark, seed: what was judged, and on what.
    num_examples: n, invalid ones included.
    num_invalid: rows without a prediction; the figures score them as the
      fallback.
    pearson, spearman, kendall: correlation with the rater (Kendall's tau-b).
    rmse, mae: error in points of the score.
    accuracy: part of the rows with an error of half a step at most.
    pearson_ci, ..., accuracy_ci: bootstrap interval over rows of each of these.
    grid_mass: mean probability on the score grid.
    num_grid_mass: rows that `grid_mass` is the mean of.
    finish_reasons: number of CoTs per finish reason.
    num_invalid_cots: CoTs left out of their row's mean.
    reason: why figures above are None, by name; else None.
  """

  method: str
  predictor: str
  num_cots: int
  benchmark: str
  seed: int
  num_examples: int
  num_invalid: int
  pearson: float | None
  pearson_ci: Interval | None
  spearman: float | None
  spearman_ci: Interval | None
  kendall: float | None
  kendall_ci: Interval | None
  rmse: float | None
  rmse_ci: Interval | None
  mae: float | None
  mae_ci: Interval | None
  accuracy: float | None
  accuracy_ci: Interval | None
  grid_mass: float | None
  num_grid_mass: int
  finish_reasons: dict[str, int]
  num_invalid_cots: int
  reason: str | None

  @property
  def system(self) -> System:
    """Method, predictor and number of CoTs."""
    return System(self.method, self.predictor, self.num_cots)

  @property
  def key(self) -> tuple[System, str, int]:
    """System, benchmark and seed."""
    return self.system, self.benchmark, self.seed


@dataclasses.dataclass(frozen=True)
class CotGap:
  """Error on training inputs with the annotator's CoTs and with the model's.

  A model that is over-confident on its own CoTs has a large gap (TRACT,
  arXiv:2503.04381, measures .12 and .63 after stage 1, .45 and .45 after
  stage 2).

  Attributes:
    method, stage, seed: the trained model.
    num_examples: training inputs that both errors are of.
    rmse_annotator_cot, rmse_self_cot: in points of the score; None where
      there is none.
    perplexity_annotator_cot, perplexity_self_cot: of these CoTs under the
      model: exp of the mean cross-entropy per token.
    reason: why there is no perplexity; else None.
  """

  method: str
  stage: int
  seed: int
  num_examples: int
  rmse_annotator_cot: float | None
  rmse_self_cot: float | None
  perplexity_annotator_cot: float | None = None
  perplexity_self_cot: float | None = None
  reason: str | None = None

  @property
  def gap(self) -> float | None:
    """RMSE with the model's own CoTs minus RMSE with the annotator's."""
    if self.rmse_self_cot is None or self.rmse_annotator_cot is None:
      return None
    return self.rmse_self_cot - self.rmse_annotator_cot


def sorted_by_id(system: SystemPredictions) -> SystemPredictions:
  """The same predictions in order of example id, as float64.

  Resampling goes by row number, so rows must stand in one order, whatever the
  order of the file, for figures to be repeatable and systems to be paired.
  """
  order = sorted(
    range(len(system.example_ids)), key=system.example_ids.__getitem__
  )
  return dataclasses.replace(
    system,
    example_ids=tuple(system.example_ids[i] for i in order),
    scores=np.asarray(system.scores, np.float64)[order],
    predictions=np.asarray(system.predictions, np.float64)[order],
    grid_mass=np.asarray(system.grid_mass, np.float64)[order],
  )


def fill_invalid(
  predictions: np.ndarray, fallback: float
) -> tuple[np.ndarray, int]:
  """Puts a fixed score in place of missing predictions, and counts them.

  The PyTorch release drops such rows from the correlation, which flatters
  systems that fail on hard ones.

  Args:
    predictions: [n] float; NaN or infinite where there is none.
    fallback: the score to put there, by custom the grid's midpoint.

  Returns:
    (filled [n] float64, number of rows filled).

  Raises:
    ValueError: if the fallback is not finite.

  Example:
    >>> fill_invalid(np.array([1.0, np.nan]), 3.0)
    (array([1., 3.]), 1)
  """
  if not math.isfinite(fallback):
    raise ValueError(f'fallback {fallback} is not a number')
  predictions = np.asarray(predictions, np.float64)
  invalid = ~np.isfinite(predictions)
  return np.where(invalid, fallback, predictions), int(invalid.sum())
