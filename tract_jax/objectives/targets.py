"""What a score is trained towards: one number and a distribution over the grid.

A row has a score y* and perhaps several single ratings. The squared error wants
y*; the other score losses compare whole distributions, so y* is spread over the
grid here, on the host, once for each example. Axes: Y score grid.
"""

from collections.abc import Sequence
import dataclasses
import statistics

import numpy as np

from tract_jax import types

KINDS = ('score', 'mean', 'ratings')


def with_target(example: types.Example, kind: str) -> types.Example:
  """The example with the score, and the ratings, that it is trained towards.

  Args:
    example: a training row.
    kind: "score", the row's own score, which is the rating that its CoT was
      written for; "mean", the mean of all its ratings; "ratings", their mean
      for the squared error and their distribution for the other losses. A row
      without single ratings has its score in all three.

  Returns:
    The example with that score; `ratings` is left where the distribution is
    made of them, else ().

  Raises:
    ValueError: the kind is not one of KINDS.
  """
  if kind not in KINDS:
    raise ValueError(f'score target {kind!r} is not one of {KINDS}')
  if kind == 'score' or not example.ratings:
    return dataclasses.replace(example, ratings=())
  # Rounded once, so that it is never outside the ratings.
  mean = statistics.mean(example.ratings)
  kept = example.ratings if kind == 'ratings' else ()
  return dataclasses.replace(example, score=mean, ratings=kept)


def grid_distribution(
  scores: Sequence[float], values: Sequence[float]
) -> np.ndarray:
  """Spreads scores over the grid, each with the same weight.

  A score that is a grid value is one-hot. One between two values puts its mass
  on these two so that the expectation is the score: 3.25 is .75 at 3 and .25 at
  4. So the mean of the distribution is the mean of the scores.

  Args:
    scores: at least one number within the grid.
    values: [Y] the grid, ascending.

  Returns:
    [Y] float32, which sums to 1.

  Raises:
    types.InputError: a score that is outside the grid, or not finite.

  Example:
    >>> grid_distribution((2.0, 3.5), (1.0, 2.0, 3.0, 4.0))
    array([0.  , 0.5 , 0.25, 0.25], dtype=float32)
  """
  found = np.zeros(len(values), np.float64)
  for score in scores:
    if not values[0] <= score <= values[-1]:
      raise types.InputError(
        f'score {score:g} is outside the grid {values[0]:g} to {values[-1]:g}'
      )
    upper = next(i for i, value in enumerate(values) if value >= score)
    lower = max(upper - 1, 0)
    width = values[upper] - values[lower]
    share = (score - values[lower]) / width if width else 1.0
    found[upper] += share
    found[lower] += 1.0 - share
  return (found / len(scores)).astype(np.float32)
