"""What judges are held against: two that read nothing, and the raters.

In: the rated rows of a benchmark. Out: for each reference a row like a judge's,
and its resamples. They need no model and have no seed (it is 0 in their rows):

  constant         the same score for every row: the mean of the training rows,
                   or the grid's middle where nothing is trained
  response_length  the response's characters; in no points of the score, so
                   that it has correlations and no errors
  raters           each rater against the mean of the others of the same row,
                   averaged over the raters: about as well as a judge can agree

Axes: n rows, m raters.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from tract_jax import types
from tract_jax.evaluation import (
  figures,
  intervals,
  metrics,
  preference_pairs,
  resampling,
)

CONSTANT = 'constant'
LENGTH = 'response_length'
RATERS = 'raters'
TRAINING_MEAN = 'training_mean'
GRID_MIDDLE = 'grid_middle'
_NO_POINTS = 'a length is no score'
_IN_POINTS = ('rmse', 'mae', 'accuracy')


@dataclasses.dataclass(frozen=True)
class Constant:
  """The score that the constant reference gives, and which it is.

  Attributes:
    value: the score.
    kind: TRAINING_MEAN or GRID_MIDDLE.
  """

  value: float
  kind: str


@dataclasses.dataclass(frozen=True)
class Reference:
  """One reference on one benchmark.

  Attributes:
    parts: whose figures are averaged: one, or one for each rater.
    in_points: whether its predictions are scores, so that errors exist.
  """

  parts: tuple[metrics.SystemPredictions, ...]
  in_points: bool = True


def constant(
  training_scores: Sequence[float], grid: Sequence[float]
) -> Constant:
  """The mean of the training rows; the grid's middle where there are none."""
  if len(training_scores):
    return Constant(float(np.mean(training_scores)), TRAINING_MEAN)
  return Constant((grid[0] + grid[-1]) / 2, GRID_MIDDLE)


def references(
  benchmark: str, examples: Sequence[types.Example], constant: Constant
) -> list[Reference]:
  """The references that a benchmark has.

  Args:
    benchmark: its name.
    examples: its rows; those without a score are passed over.
    constant: what the constant reference says.

  Returns:
    The constant; the length, where every response is known; the raters, where
    rows have two ratings or more: of these rows, and of as many ratings as each
    of them has. None of a benchmark without scores.
  """
  rated = [e for e in examples if e.score is not None]
  if not rated:
    return []
  scores = [e.score for e in rated]
  always = [constant.value] * len(rated)
  found = [
    Reference(
      (_part(CONSTANT, constant.kind, benchmark, rated, scores, always),)
    )
  ]
  if all(e.response for e in rated):
    lengths = [len(e.response) for e in rated]
    part = _part(LENGTH, 'characters', benchmark, rated, scores, lengths)
    found.append(Reference((part,), in_points=False))
  if several := [e for e in rated if len(e.ratings) > 1]:
    num_raters = min(len(e.ratings) for e in several)
    ratings = np.array([e.ratings[:num_raters] for e in several], np.float64)
    parts = [
      _part(RATERS, 'leave_one_out', benchmark, several, others, own)
      for own, others in leave_one_out(ratings)
    ]
    found.append(Reference(tuple(parts)))
  return found


def of_benchmarks(
  benchmarks: Mapping[str, Sequence[types.Example]], constant: Constant
) -> list[Reference]:
  """The references of several benchmarks, {name: rows}."""
  return [
    reference
    for name, examples in benchmarks.items()
    for reference in references(name, examples, constant)
  ]


def of_pairs(
  benchmarks: Mapping[str, Sequence[types.Example]], constant: Constant
) -> list[preference_pairs.PairPredictions]:
  """What two of them say of preference pairs.

  Args:
    benchmarks: {name: rows}; those without a pair are passed over.
    constant: what the constant reference says.

  Returns:
    The constant, which ties all pairs, and the length where every response is
    known; with seed 0.
  """
  found = []
  for name, examples in benchmarks.items():
    joined = preference_pairs.join(name, examples)
    if not joined.pairs.ids:
      continue
    always = np.full(len(examples), constant.value)
    system = metrics.System(CONSTANT, constant.kind, 0)
    found.append(joined.predictions(system, 0, always))
    if all(e.response for e in examples if e.pair_id):
      lengths = np.array([len(e.response) for e in examples], np.float64)
      system = metrics.System(LENGTH, 'characters', 0)
      found.append(joined.predictions(system, 0, lengths, in_points=False))
  return found


def leave_one_out(ratings: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  """Each rater, and the mean of the others.

  Args:
    ratings: [n, m], m at least 2.

  Returns:
    m pairs ([n] of the rater, [n] means of the other m - 1).
  """
  total, others = ratings.sum(axis=1), ratings.shape[1] - 1
  return [(own, (total - own) / others) for own in ratings.T]


def judge(
  reference: Reference, bootstrap: resampling.Bootstrap, half_step: float
) -> tuple[metrics.MetricRow, resampling.FigureDraws]:
  """Figures of a reference, as of a judge.

  Args:
    reference: on a benchmark.
    bootstrap: as of the judges; on the same rows resamples are the same.
    half_step: of the score grid.

  Returns:
    (its row, the resamples behind its intervals): means over the parts.
  """
  parts = [metrics.sorted_by_id(part) for part in reference.parts]
  of_parts = [
    resampling.resample(p.rows, p.predictions[None], bootstrap, half_step)[0]
    for p in parts
  ]
  drawn = {
    name: resampling.averaged([draws[name] for draws in of_parts])
    for name in figures.NAMES
  }
  if not reference.in_points:
    nothing = figures.Figure(None, _NO_POINTS)
    for name in _IN_POINTS:
      drawn[name] = dataclasses.replace(drawn[name], figure=nothing)
  return intervals.metric_row(parts[0], drawn, bootstrap), drawn


def _part(method, predictor, benchmark, examples, scores, predictions):
  """What a reference says of each row, as a system does."""
  return metrics.SystemPredictions(
    method=method,
    predictor=predictor,
    num_cots=0,
    benchmark=benchmark,
    seed=0,
    example_ids=tuple(e.example_id for e in examples),
    scores=np.asarray(scores, np.float64),
    predictions=np.asarray(predictions, np.float64),
    grid_mass=np.full(len(examples), np.nan),
  )
