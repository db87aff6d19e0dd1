"""The two responses of each preference pair, and what a system said of them.

In: rows of a benchmark or of a prediction file, in any order. Out: which of
them are pairs.

Axes: n pairs.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from tract_jax import types
from tract_jax.evaluation import metrics

SIDES = ('chosen', 'rejected')


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The pairs of a benchmark; equal for systems that can be compared.

  Attributes:
    benchmark: its name.
    ids: [n] in order.
    subsets: [n]; "" where unknown.
    num_lone: responses whose pair has no other, left out.
  """

  benchmark: str
  ids: tuple[str, ...]
  subsets: tuple[str, ...]
  num_lone: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class PairPredictions:
  """What one system said of both responses of each pair, with one seed.

  Attributes:
    system, seed: whose.
    pairs: n of them.
    chosen, rejected: [n] float; NaN or infinite where there is none.
    in_points: whether these are scores, for which a margin of ties is meant.
  """

  system: metrics.System
  seed: int
  pairs: Pairs
  chosen: np.ndarray
  rejected: np.ndarray
  in_points: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
  """Which rows are the pairs.

  Attributes:
    pairs: n of them.
    chosen, rejected: [n] int, the row of either response.
    lone: ids of responses whose pair has no other.
  """

  pairs: Pairs
  chosen: np.ndarray
  rejected: np.ndarray
  lone: tuple[str, ...]

  def predictions(
    self,
    system: metrics.System,
    seed: int,
    values: np.ndarray,
    in_points: bool = True,
  ) -> PairPredictions:
    """What a system said of the pairs, by what it said of all rows."""
    chosen, rejected = values[self.chosen], values[self.rejected]
    return PairPredictions(
      system, seed, self.pairs, chosen, rejected, in_points
    )


def join(
  benchmark: str, rows: Sequence[types.Prediction | types.Example]
) -> Joined:
  """Finds the two responses of each pair, which `example_id` tells apart.

  Args:
    benchmark: its name.
    rows: of one seed, in any order; those without a pair_id are passed over.

  Returns:
    The pairs by id, and the responses without the other.

  Example:
    "7-chosen" and "7-rejected" with pair_id "7" are the pair "7".
  """
  places: dict[str, dict[str, int]] = {side: {} for side in SIDES}
  for i, row in enumerate(rows):
    for side, found in places.items():
      if row.pair_id and row.example_id == f'{row.pair_id}-{side}':
        found[row.pair_id] = i
  chosen, rejected = (places[side] for side in SIDES)
  ids = sorted(chosen.keys() & rejected.keys())
  paired = set(ids)
  lone = [r.example_id for r in rows if r.pair_id and r.pair_id not in paired]
  subsets = tuple(rows[chosen[name]].category for name in ids)
  return Joined(
    Pairs(benchmark, tuple(ids), subsets, len(lone)),
    np.array([chosen[name] for name in ids], np.int64),
    np.array([rejected[name] for name in ids], np.int64),
    tuple(lone),
  )


def other_side(example_id: str) -> str:
  """The id of the other response: "7-rejected" for "7-chosen"."""
  pair_id, _, side = example_id.rpartition('-')
  return f'{pair_id}-{SIDES[side == SIDES[0]]}'
