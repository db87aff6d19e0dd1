"""Preference pairs: how often the chosen response is scored higher.

In: predictions of both responses of each pair, made independently. Out: for
each system the accuracy on parts of the pairs, as they are and on every
resample. Pairs are resampled within their subset, so that every resample has
each subset at its size; every system judged on the same pairs sees the same
resamples, and each subset has its own stream of random numbers, by name.

Axes: n pairs, S subsets, R resamples, U predictions made on the same pairs
(systems and seeds).
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from tract_jax.evaluation import (
  breakdowns,
  figures,
  metrics,
  preference_pairs,
  resampling,
  reward_bench,
)

# What a tie counts: half, nothing, or that the pair is passed over.
TIES = ('half', 'wrong', 'skip')
# Subsets that stand apart; those of the fewest pairs go together.
_MAX_SUBSETS = 50

OVERALL = 'overall'
SUBSET = 'subset'
SECTION = 'section'
MEAN_OF_SUBSETS = 'mean_of_subsets'
MEAN_OF_SECTIONS = 'mean_of_sections'


@dataclasses.dataclass(frozen=True)
class Rule:
  """What counts as a tie, and what a tie counts.

  Attributes:
    ties: one of TIES.
    margin: the largest difference that is a tie, in points of the score.
  """

  ties: str = 'half'
  margin: float = 0.0


@dataclasses.dataclass(frozen=True, order=True)
class Scope:
  """What an accuracy is of.

  Attributes:
    kind: OVERALL, all pairs weighing the same; SUBSET; SECTION, of RewardBench;
      MEAN_OF_SUBSETS and MEAN_OF_SECTIONS, each weighing the same.
    name: of the subset or section; None for the others.
  """

  kind: str
  name: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """The accuracy of one system with one seed on one scope.

  Attributes:
    num_pairs, num_invalid, num_ties: pairs; those of which a response has no
      prediction; ties.
    accuracy: with its resamples.
    mean_difference: mean of the chosen response's prediction minus the other's.
  """

  num_pairs: int
  num_invalid: int
  num_ties: int
  accuracy: resampling.Draws
  mean_difference: float


def are_ties(
  chosen: np.ndarray, rejected: np.ndarray, margin: float
) -> np.ndarray:
  """Whether differences [n] are of `margin` at most, but for rounding."""
  # Predictions are float32: a difference within their rounding is none.
  largest = np.maximum(np.abs(chosen), np.abs(rejected))
  rounding = figures.CONSTANT_TOLERANCE * largest
  return np.abs(chosen - rejected) <= margin + rounding


def pair_credit(
  chosen: np.ndarray, rejected: np.ndarray, rule: Rule
) -> np.ndarray:
  """What each pair counts.

  Args:
    chosen, rejected: [n] finite predictions.
    rule: of ties.

  Returns:
    [n] float64: 1 where the chosen response is scored higher, 0 where the
    other is; of a tie .5, 0, or NaN where it is passed over.

  Example:
    >>> pair_credit(
    ...   np.array([4.0, 3.0, 1.0]), np.array([2.0, 3.0, 5.0]), Rule()
    ... )
    array([1. , 0.5, 0. ])
  """
  of_tie = {'half': 0.5, 'wrong': 0.0, 'skip': np.nan}[rule.ties]
  ties = are_ties(chosen, rejected, rule.margin)
  return np.where(ties, of_tie, (chosen > rejected).astype(np.float64))


def judge(
  systems: Sequence[preference_pairs.PairPredictions],
  rule: Rule,
  fallback: float,
  bootstrap: resampling.Bootstrap,
) -> list[dict[Scope, Outcome]]:
  """Accuracy of each system on each scope, with resamples of the pairs.

  Args:
    systems: U of them, on the same pairs.
    rule: of ties.
    fallback: stands in for an invalid prediction.
    bootstrap: how many resamples, and their seed.

  Returns:
    U records; all share the same resamples. Empty ones without pairs.
  """
  pairs = systems[0].pairs
  if not pairs.ids:
    return [{} for _ in systems]
  columns = np.array([_columns(system, rule, fallback) for system in systems])
  credit, ties, invalid, gaps = columns.transpose(1, 0, 2)
  parts = _parts(pairs.subsets)
  sums = _sums(credit, parts, pairs.benchmark, bootstrap)
  rows = metrics.Rows(pairs.benchmark, pairs.ids, ())
  found: list[dict[Scope, Outcome]] = [{} for _ in systems]
  for scope, weights in _scopes(list(parts)).items():
    values = _accuracies(sums, weights)
    inside = np.any([parts[name] for name in weights or parts], axis=0)
    for i, own in enumerate(found):
      num_ties = int(ties[i, inside].sum())
      own[scope] = Outcome(
        num_pairs=int(inside.sum()),
        num_invalid=int(invalid[i, inside].sum()),
        num_ties=num_ties,
        accuracy=resampling.Draws(
          rows, _figure(values[i, 0], scope), values[i, 1:]
        ),
        mean_difference=float(gaps[i, inside].mean()),
      )
  return found


def _columns(
  system: preference_pairs.PairPredictions, rule: Rule, fallback: float
) -> list[np.ndarray]:
  """Of each pair [n] its credit, whether it is a tie or invalid, its gap."""
  chosen, _ = metrics.fill_invalid(system.chosen, fallback)
  rejected, _ = metrics.fill_invalid(system.rejected, fallback)
  if not system.in_points:
    rule = dataclasses.replace(rule, margin=0.0)
  ties = are_ties(chosen, rejected, rule.margin)
  valid = np.isfinite(system.chosen) & np.isfinite(system.rejected)
  credit = pair_credit(chosen, rejected, rule)
  return [credit, ties, ~valid, chosen - rejected]


def _parts(subsets: Sequence[str]) -> dict[str, np.ndarray]:
  """{subset: which pairs are of it}; those of none are "", last."""
  values = np.array(subsets, object)
  found = dict(breakdowns.parts(values, _MAX_SUBSETS, least=1))
  if (of_none := values == '').any():
    found[''] = of_none
  return found


def _scopes(subsets: Sequence[str]) -> dict[Scope, dict[str, float] | None]:
  """{scope: {subset: its weight}}; None: pairs weigh the same."""
  named = [name for name in subsets if name]
  scopes: dict[Scope, dict[str, float] | None] = {Scope(OVERALL): None}
  sections = _sections(subsets)
  scopes |= {Scope(SECTION, name): w for name, w in sections.items()}
  if len(sections) == len(reward_bench.SECTIONS):
    scopes[Scope(MEAN_OF_SECTIONS)] = {
      subset: weight / len(sections)
      for weights in sections.values()
      for subset, weight in weights.items()
    }
  if len(subsets) > 1:
    even = 1 / len(subsets)
    scopes[Scope(MEAN_OF_SUBSETS)] = {name: even for name in subsets}
  return scopes | {Scope(SUBSET, name): {name: 1.0} for name in named}


def _sections(subsets: Sequence[str]) -> dict[str, dict[str, float]]:
  """{section: {subset: its part of it}}; none beside unknown subsets."""
  known = {name for counts in reward_bench.SECTIONS.values() for name in counts}
  if not known.issuperset(subsets):
    return {}
  found = {}
  for section, counts in reward_bench.SECTIONS.items():
    here = {name: counts[name] for name in subsets if name in counts}
    if here:
      total = sum(here.values())
      found[section] = {name: count / total for name, count in here.items()}
  return found


def _sums(
  credit: np.ndarray,
  parts: Mapping[str, np.ndarray],
  benchmark: str,
  bootstrap: resampling.Bootstrap,
) -> dict[str, np.ndarray]:
  """{subset: [2, U, 1 + R] sums of the credits, and of the pairs that count}.

  The first is of the pairs as they are, the others of their resamples.
  """
  counted = np.isfinite(credit)
  columns = np.concatenate([np.where(counted, credit, 0.0), counted])
  found = {}
  for name, inside in parts.items():
    own = columns[:, inside]
    drawn = resampling.means(own, bootstrap, f'pairs of {benchmark}, {name}')
    means = np.concatenate([own.mean(axis=1, keepdims=True), drawn], axis=1)
    sums = means * own.shape[1]
    found[name] = sums.reshape(2, len(credit), -1)
  return found


def _accuracies(
  sums: Mapping[str, np.ndarray], weights: Mapping[str, float] | None
) -> np.ndarray:
  """[U, 1 + R] accuracies of a scope; NaN where no pair counts."""
  if weights is None:
    return _ratio(np.sum([*sums.values()], axis=0))
  return np.sum([w * _ratio(sums[name]) for name, w in weights.items()], axis=0)


def _ratio(sums: np.ndarray) -> np.ndarray:
  credit, counted = sums
  lost = np.full_like(credit, np.nan)
  return np.divide(credit, counted, out=lost, where=counted > 0.5)


def _figure(value: float, scope: Scope) -> figures.Figure:
  if np.isnan(value):
    where = '' if scope.kind in (OVERALL, SUBSET) else ' of a subset'
    return figures.Figure(None, f'all pairs{where} are ties')
  return figures.Figure(float(value))
