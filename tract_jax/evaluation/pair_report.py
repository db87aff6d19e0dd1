"""What the report says of preference pairs.

In: what every system said of the pairs of each benchmark, with each seed. Out:
a `PairReport`, its part of metrics.json.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from tract_jax.evaluation import (
  compared_seeds,
  figures,
  intervals,
  metrics,
  pairwise,
  preference_pairs,
  resampling,
)

# Resamples whose figures are this near are alike.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Paired:
  """What the report of preference pairs is made of.

  Attributes:
    judges, references: what was said of pairs; references with seed 0.
    own: methods' own predictors from all CoTs, whose subsets are shown.
    rule: of ties.
  """

  judges: Sequence[preference_pairs.PairPredictions] = ()
  references: Sequence[preference_pairs.PairPredictions] = ()
  own: frozenset[metrics.System] = frozenset()
  rule: pairwise.Rule = pairwise.Rule()


NO_PAIRS = Paired()


@dataclasses.dataclass(frozen=True)
class PairRow:
  """A record of "pairwise" in report/metrics.json.

  Attributes:
    method, predictor, num_cots, benchmark: what was judged, and on what.
    seed: of the run; None: over all of them.
    num_seeds: how many.
    kind, subset: see `pairwise.Scope`.
    num_pairs, num_invalid, num_ties: over all seeds, see `pairwise.Outcome`;
      invalid predictions are scored as the fallback.
    num_lone: responses of the benchmark without the other of their pair, left
      out; over all seeds.
    accuracy: mean over seeds; None with a reason.
    accuracy_ci: bootstrap interval over pairs and, of several, seeds.
    mean_difference: mean of the chosen response's prediction minus that of the
      rejected one.
    reason: why figures above are None; else None.
  """

  method: str
  predictor: str
  num_cots: int
  benchmark: str
  seed: int | None
  num_seeds: int
  kind: str
  subset: str | None
  num_pairs: int
  num_invalid: int
  num_ties: int
  num_lone: int
  accuracy: float | None
  accuracy_ci: metrics.Interval | None
  mean_difference: float
  reason: str | None

  @property
  def system(self) -> metrics.System:
    """Method, predictor and number of CoTs."""
    return metrics.System(self.method, self.predictor, self.num_cots)

  @property
  def scope(self) -> pairwise.Scope:
    """What the accuracy is of."""
    return pairwise.Scope(self.kind, self.subset)


@dataclasses.dataclass(frozen=True)
class PairDifference:
  """Accuracy of system `a` minus that of `b`, on the same pairs.

  Attributes:
    a, b, benchmark, kind, subset: whose, and on what.
    seeds, seeds_b, num_seeds: as in `intervals.Difference`.
    num_pairs: of one seed.
    mean, ci, excludes_zero, reason: as in `intervals.Gap`.
  """

  a: metrics.System
  b: metrics.System
  benchmark: str
  kind: str
  subset: str | None
  seeds: tuple[int, ...]
  seeds_b: tuple[int, ...]
  num_seeds: int
  num_pairs: int
  mean: float | None
  ci: metrics.Interval | None
  excludes_zero: bool | None
  reason: str | None


@dataclasses.dataclass(frozen=True)
class PairReport:
  """All that is said of preference pairs.

  Attributes:
    rule: of ties.
    rows: a judge on a part of a benchmark with a seed.
    combined: those over seeds.
    references: as `rows`, of what judges are held against.
    differences: between judges.
    own: systems whose subsets the tables show.
  """

  rule: pairwise.Rule = pairwise.Rule()
  rows: tuple[PairRow, ...] = ()
  combined: tuple[PairRow, ...] = ()
  references: tuple[PairRow, ...] = ()
  differences: tuple[PairDifference, ...] = ()
  own: frozenset[metrics.System] = frozenset()

  @property
  def benchmarks(self) -> list[str]:
    """Those that have pairs."""
    return sorted({row.benchmark for row in self.combined})


# {(system, benchmark): {seed: (what was said, {scope: outcome})}}
_Judged = dict[
  tuple[metrics.System, str],
  dict[
    int,
    tuple[preference_pairs.Pairs, dict[pairwise.Scope, pairwise.Outcome]],
  ],
]


def make(
  paired: Paired,
  fallback: float,
  bootstrap: resampling.Bootstrap,
  comparisons: Sequence[tuple[metrics.System, metrics.System]],
) -> PairReport:
  """Computes every figure of preference pairs.

  Args:
    paired: what was said of them.
    fallback: stands in for an invalid prediction.
    bootstrap: how intervals are made.
    comparisons: systems whose difference is wanted; those without pairs in
      common are passed over.

  Returns:
    The report; in no order of the input.
  """
  judged = _judge(paired.judges, paired.rule, fallback, bootstrap)
  beside = _judge(paired.references, paired.rule, fallback, bootstrap)
  differences = (_differences(judged, a, b, bootstrap) for a, b in comparisons)
  return PairReport(
    rule=paired.rule,
    rows=tuple(_of_seeds(judged, bootstrap)),
    combined=tuple(_over_seeds(judged, bootstrap)),
    references=tuple(_of_seeds(beside, bootstrap)),
    differences=tuple(itertools.chain(*differences)),
    own=paired.own,
  )


def as_json(report: PairReport) -> dict[str, Any]:
  """Its keys of metrics.json."""
  found: dict[str, Sequence[Any]] = {
    'pairwise': report.rows,
    'pairwise_combined': report.combined,
    'pairwise_references': report.references,
    'pairwise_differences': report.differences,
  }
  content: dict[str, Any] = {
    key: [dataclasses.asdict(record) for record in records]
    for key, records in found.items()
  }
  return content | {'pairwise_rule': dataclasses.asdict(report.rule)}


def _judge(
  systems: Sequence[preference_pairs.PairPredictions],
  rule: pairwise.Rule,
  fallback: float,
  bootstrap: resampling.Bootstrap,
) -> _Judged:
  """Outcomes of each; systems on the same pairs share resamples."""
  groups: dict[
    preference_pairs.Pairs, list[preference_pairs.PairPredictions]
  ] = {}
  for system in systems:
    groups.setdefault(system.pairs, []).append(system)
  found: _Judged = {}
  for pairs, members in groups.items():
    outcomes = pairwise.judge(members, rule, fallback, bootstrap)
    for member, own in zip(members, outcomes, strict=True):
      if own:
        key = member.system, pairs.benchmark
        found.setdefault(key, {})[member.seed] = pairs, own
  return {key: dict(sorted(found[key].items())) for key in sorted(found)}


def _of_seeds(
  judged: _Judged, bootstrap: resampling.Bootstrap
) -> Iterator[PairRow]:
  for (system, benchmark), seeds in judged.items():
    for seed, (pairs, own) in seeds.items():
      for scope, outcome in own.items():
        yield _row(
          *(system, benchmark, seed, scope), [(pairs, outcome)], bootstrap
        )


def _over_seeds(
  judged: _Judged, bootstrap: resampling.Bootstrap
) -> Iterator[PairRow]:
  for (system, benchmark), seeds in judged.items():
    for scope in _shared_scopes(seeds.values()):
      outcomes = [(pairs, own[scope]) for pairs, own in seeds.values()]
      yield _row(*(system, benchmark, None, scope), outcomes, bootstrap)


def _shared_scopes(of_seeds) -> list[pairwise.Scope]:
  """Scopes that all have, in the order of the first."""
  first, *others = (own for _, own in of_seeds)
  return [scope for scope in first if all(scope in own for own in others)]


def _row(
  system: metrics.System,
  benchmark: str,
  seed: int | None,
  scope: pairwise.Scope,
  found: Sequence[tuple[preference_pairs.Pairs, pairwise.Outcome]],
  bootstrap: resampling.Bootstrap,
) -> PairRow:
  """The record of one or several seeds."""
  outcomes = [outcome for _, outcome in found]
  num_pairs = sum(o.num_pairs for o in outcomes)
  estimate = intervals.mean_figure([[o.accuracy for o in outcomes]], bootstrap)
  missing = _no_interval(estimate.ci, outcomes[0].num_pairs)
  return PairRow(
    **dataclasses.asdict(system),
    benchmark=benchmark,
    seed=seed,
    num_seeds=len(outcomes),
    kind=scope.kind,
    subset=scope.name,
    num_pairs=num_pairs,
    num_invalid=sum(o.num_invalid for o in outcomes),
    num_ties=sum(o.num_ties for o in outcomes),
    num_lone=sum(pairs.num_lone for pairs, _ in found),
    accuracy=estimate.mean,
    accuracy_ci=None if missing else estimate.ci,
    mean_difference=float(np.mean([o.mean_difference for o in outcomes])),
    reason=f'accuracy_ci: {missing}' if missing else estimate.reason,
  )


def _no_interval(ci: metrics.Interval | None, num_pairs: int) -> str | None:
  """Why resamples that gave an interval say nothing; else None."""
  if ci and num_pairs < figures.MIN_ROWS:
    return f'fewer than {figures.MIN_ROWS} pairs'
  if ci and ci[1] - ci[0] < _ROUNDING:
    return 'all pairs count the same'
  return None


def _differences(
  judged: Mapping,
  a: metrics.System,
  b: metrics.System,
  bootstrap: resampling.Bootstrap,
) -> Iterator[PairDifference]:
  """On each scope of each benchmark that both were judged on."""
  for benchmark in sorted({name for _, name in judged}):
    of_a, of_b = judged.get((a, benchmark)), judged.get((b, benchmark))
    if not of_a or not of_b:
      continue
    seeds = compared_seeds.choose((list(of_a), list(of_b)))
    for scope in _shared_scopes([*of_a.values(), *of_b.values()]):
      gap = intervals.gap(
        seeds,
        [[of_a[s][1][scope].accuracy for s in seeds[0]]],
        [[of_b[s][1][scope].accuracy for s in seeds[1]]],
        bootstrap,
      )
      num_pairs = next(iter(of_a.values()))[1][scope].num_pairs
      if missing := _no_interval(gap.ci, num_pairs):
        reason = f'ci: {missing}'
        gap = dataclasses.replace(
          gap, ci=None, excludes_zero=None, reason=reason
        )
      yield PairDifference(
        a=a,
        b=b,
        benchmark=benchmark,
        kind=scope.kind,
        subset=scope.name,
        seeds=tuple(seeds[0]),
        seeds_b=tuple(seeds[1]),
        num_seeds=max(map(len, seeds)),
        num_pairs=num_pairs,
        **dataclasses.asdict(gap),
      )
