"""The report: figures of every system, their means, differences, CoT gaps.

In: the predictions of all systems. Out: a `Report`, which report_writing writes
down. It depends on no order of the input.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from tract_jax import types
from tract_jax.evaluation import breakdowns as breakdowns_lib
from tract_jax.evaluation import (
  calibration,
  compared_seeds,
  intervals,
  lambda_curve,
  metrics,
  other_systems,
  pair_report,
  resampling,
  self_cots,
)
from tract_jax.evaluation import cot_curve as cot_curve_lib
from tract_jax.evaluation import cot_texts as cot_texts_lib
from tract_jax.evaluation import references as references_lib

MEAN = 'mean'  # Stands for all benchmarks in `Combined.benchmark`.
# The first of them that was run is compared with every other method.
_OURS = ('tract', 'cot_raft', 'raft')

ALL: Final = 'all'
# Pairs of systems by name: "method", "method/predictor" or all of it with the
# number of CoTs; ALL: every two; None: ours against each other method.
Comparisons = Sequence[tuple[str, str]] | Literal['all'] | None
# Of more pairs, those of 16 systems, a reader's choice would be a large part of
# the page.
_MAX_CHOICE = 120


@dataclasses.dataclass(frozen=True)
class Report:
  """All that is written: metrics.json field by field.

  Attributes:
    config: of the run, as JSON has it.
    fallback: the score that stood in for invalid predictions.
    bootstrap: how intervals were made.
    half_step: the largest error that counted as accurate.
    rows: a system on a benchmark with a seed.
    combined: rows over seeds, and over benchmarks.
    differences, cot_gaps: between systems; on training inputs.
    choice: differences of every two systems, for a reader of the page to
      choose from; () of many systems.
    lambda_points: validation figures of candidate lambdas.
    self_cot_counts: what became of the self-CoTs.
    calibrations: of the distributions of each method.
    references, combined_references: as `rows` and `combined`, of what judges
      are held against.
    constant: what the constant reference says.
    cot_curve: agreement by number of CoTs, where there are several.
    breakdowns: figures on parts of the benchmarks.
    cot_texts: facts on the methods' CoTs.
    other_files: of the methods among them that are other systems'.
    preferences: what is said of preference pairs.
  """

  config: Mapping[str, Any]
  fallback: float
  bootstrap: resampling.Bootstrap
  half_step: float
  rows: tuple[metrics.MetricRow, ...]
  combined: tuple[intervals.Combined, ...]
  differences: tuple[intervals.Difference, ...]
  cot_gaps: Sequence[metrics.CotGap] = ()
  choice: tuple[intervals.Difference, ...] = ()
  lambda_points: Sequence[lambda_curve.LambdaPoint] = ()
  self_cot_counts: Sequence[self_cots.SelfCotCounts] = ()
  calibrations: Sequence[calibration.Calibration] = ()
  references: tuple[metrics.MetricRow, ...] = ()
  combined_references: tuple[intervals.Combined, ...] = ()
  constant: references_lib.Constant | None = None
  cot_curve: Sequence[cot_curve_lib.CotCurvePoint] = ()
  breakdowns: Sequence[breakdowns_lib.Part] = ()
  cot_texts: Sequence[cot_texts_lib.CotTexts] = ()
  other_files: Sequence[other_systems.OtherFile] = ()
  preferences: pair_report.PairReport = pair_report.PairReport()

  @property
  def unrated(self) -> set[str]:
    """Benchmarks of preference pairs alone: none has a rater's score."""
    rated = {row.benchmark for row in self.rows if row.rmse is not None}
    return set(self.preferences.benchmarks) - rated

  @property
  def rated(self) -> list[str]:
    """All other benchmarks, in order."""
    return sorted({row.benchmark for row in self.rows} - self.unrated)

  @property
  def pairs_alone(self) -> bool:
    """Whether there is no other benchmark."""
    return bool(self.unrated) and not self.rated


def make_report(
  systems: Sequence[metrics.SystemPredictions],
  *,
  config: Mapping[str, Any],
  fallback: float,
  bootstrap: resampling.Bootstrap = resampling.DEFAULT,
  half_step: float = 0.5,
  comparisons: Comparisons = None,
  primary_predictors: Mapping[str, str] | None = None,
  references: Sequence[references_lib.Reference] = (),
  paired: pair_report.Paired = pair_report.NO_PAIRS,
  **told: Any,
) -> Report:
  """Computes every figure of the report.

  Args:
    systems: all predictions, one record for each system, benchmark and seed.
    config: of the run, as JSON has it.
    fallback: score that stands in for an invalid prediction.
    bootstrap, half_step: how intervals are made; the largest accurate error.
    comparisons: whose differences, first minus second. A name alone means the
      method's primary predictor, and the fewest CoTs. None: the first of
      "tract", "cot_raft" and "raft" that was run, and every other method.
    primary_predictors: of methods; where one has no predictions "rail" stands
      in, or else the first by name.
    references: of each benchmark.
    paired: what was said of preference pairs.
    told: fields of the report with a default, sequences of records.

  Returns:
    The report, in an order of its own.

  Raises:
    InputError: for a system given twice, a benchmark called "mean", or a
      comparison of a system without predictions.
  """
  judged = _judge(_ordered(systems), fallback, bootstrap, half_step)
  beside = _judge_references(references, bootstrap, half_step)
  gaps, found = told.pop('cot_gaps', ()), told.pop('calibrations', ())
  curve, files = told.pop('cot_curve', ()), told.pop('other_files', ())
  others = {file.method for file in files}
  pairs = _pairs(judged.rows, comparisons, primary_predictors or {}, others)
  return Report(
    config=config,
    fallback=fallback,
    bootstrap=bootstrap,
    half_step=half_step,
    rows=judged.rows,
    combined=tuple(_combined(judged)),
    differences=tuple(_difference(judged, a, b) for a, b in pairs),
    choice=_choice(judged),
    cot_gaps=sorted(gaps, key=lambda g: (g.method, g.stage, g.seed)),
    calibrations=sorted(found, key=calibration.sort_key),
    cot_curve=sorted(curve, key=cot_curve_lib.sort_key),
    other_files=sorted(files, key=dataclasses.astuple),
    references=beside.rows,
    combined_references=tuple(_combined(beside)),
    preferences=pair_report.make(paired, fallback, bootstrap, pairs),
    **told,
  )


def _ordered(
  systems: Sequence[metrics.SystemPredictions],
) -> list[metrics.SystemPredictions]:
  """The systems by name, each once, and their rows by id."""
  ordered = sorted(map(metrics.sorted_by_id, systems), key=lambda s: s.key)
  for before, system in itertools.pairwise(ordered):
    if before.key == system.key:
      raise types.InputError('given twice: {}, {}, seed {}'.format(*system.key))
  if any(system.benchmark == MEAN for system in ordered):
    raise types.InputError(f'benchmark {MEAN!r}: the name is taken')
  return ordered


class _Judged(NamedTuple):
  """What all means and differences are made of."""

  rows: tuple[metrics.MetricRow, ...]
  draws: dict[tuple, resampling.FigureDraws]
  bootstrap: resampling.Bootstrap

  def seeds(
    self, systems: Iterable[metrics.System], benchmarks: Iterable[str]
  ) -> list[int]:
    """Seeds that every one of the systems has on every benchmark."""
    wanted = set(itertools.product(systems, benchmarks))
    seeds = {row.seed for row in self.rows}
    return sorted(
      s for s in seeds if all((*w, s) in self.draws for w in wanted)
    )

  def judged_rows(self) -> Iterator[metrics.Rows]:
    """Of every system, benchmark and seed."""
    return (drawn['pearson'].rows for drawn in self.draws.values())

  def samples(
    self, system: metrics.System, benchmarks: list[str], seeds: Sequence[int]
  ) -> list[list[resampling.FigureDraws]]:
    """[benchmarks][seeds] of one system."""
    return [[self.draws[system, b, s] for s in seeds] for b in benchmarks]


def _judge(
  systems: Sequence[metrics.SystemPredictions],
  fallback: float,
  bootstrap: resampling.Bootstrap,
  half_step: float,
) -> _Judged:
  """Figures of each system; systems on the same rows share resamples."""
  groups: dict[metrics.Rows, list[metrics.SystemPredictions]] = {}
  for system in systems:
    groups.setdefault(system.rows, []).append(system)
  draws: dict[tuple, resampling.FigureDraws] = {}
  for rows, members in groups.items():
    filled = [metrics.fill_invalid(m.predictions, fallback)[0] for m in members]
    records = resampling.resample(rows, np.array(filled), bootstrap, half_step)
    draws |= {m.key: d for m, d in zip(members, records, strict=True)}
  rows_ = [intervals.metric_row(s, draws[s.key], bootstrap) for s in systems]
  return _Judged(tuple(rows_), draws, bootstrap)


def _judge_references(
  references: Sequence[references_lib.Reference],
  bootstrap: resampling.Bootstrap,
  half_step: float,
) -> _Judged:
  """As `_judge`, of what judges are held against."""
  found = [references_lib.judge(r, bootstrap, half_step) for r in references]
  found.sort(key=lambda pair: pair[0].key)
  return _Judged(
    tuple(row for row, _ in found),
    {row.key: draws for row, draws in found},
    bootstrap,
  )


def _combined(judged: _Judged) -> Iterator[intervals.Combined]:
  """Over seeds for each benchmark, then over all benchmarks, by system."""
  benchmarks = sorted({row.benchmark for row in judged.rows})
  # One without a rater's scores has nothing that a mean could be made of.
  rated = {r.benchmark for r in judged.judged_rows() if r.scores}
  of_mean = [name for name in benchmarks if name in rated] or benchmarks
  for system in sorted({row.system for row in judged.rows}):
    scopes = [(name, [name]) for name in benchmarks]
    for name, scope in [*scopes, (MEAN, of_mean)]:
      seeds = judged.seeds([system], scope)
      if not seeds and name != MEAN:
        continue
      keys = set(itertools.product([system], scope, seeds))
      rows = [row for row in judged.rows if row.key in keys]
      samples = judged.samples(system, scope, seeds)
      yield intervals.combine(system, name, rows, samples, judged.bootstrap)


def _difference(
  judged: _Judged, a: metrics.System, b: metrics.System
) -> intervals.Difference:
  names = [{r.benchmark for r in judged.rows if r.system == s} for s in (a, b)]
  rated = {r.benchmark for r in judged.judged_rows() if r.scores}
  shared = sorted(names[0] & names[1] & rated)
  own = judged.seeds([a], shared), judged.seeds([b], shared)
  seeds = compared_seeds.choose(own)
  samples_a = judged.samples(a, shared, seeds[0])
  samples_b = judged.samples(b, shared, seeds[1])
  return intervals.difference(
    a, b, seeds, samples_a, samples_b, judged.bootstrap
  )


def _choice(judged: _Judged) -> tuple[intervals.Difference, ...]:
  pairs = _pairs(judged.rows, ALL, {}, ())
  # Without a rater's scores there is nothing to choose.
  rated = any(rows.scores for rows in judged.judged_rows())
  if not rated or len(pairs) > _MAX_CHOICE:
    return ()
  return tuple(_difference(judged, a, b) for a, b in pairs)


def _pairs(
  rows: Sequence[metrics.MetricRow],
  comparisons: Comparisons,
  primary: Mapping[str, str],
  others: Collection[str],
) -> list[tuple[metrics.System, metrics.System]]:
  """The systems to compare."""
  systems = sorted({row.system for row in rows})
  if isinstance(comparisons, str):  # ALL.
    return list(itertools.combinations(systems, 2))
  by_name = _by_name(systems, primary)
  if comparisons is None:
    names = sorted({s.method for s in systems})
    # Beside another system, any method of ours is compared.
    first = [*_OURS, *(n for n in names if others and n not in others)]
    ours = [name for name in first if name in names][:1]
    comparisons = [(a, b) for a in ours for b in names if b != a]
  for name in itertools.chain(*comparisons):
    if name not in by_name:
      known = ', '.join(map(str, systems))
      raise types.InputError(
        f'comparison of {name}: no predictions (there are: {known})'
      )
  return [(by_name[a], by_name[b]) for a, b in comparisons]


def _by_name(
  systems: Sequence[metrics.System], primary: Mapping[str, str]
) -> dict[str, metrics.System]:
  """The system that each name means; `systems` in order."""
  found: dict[str, metrics.System] = {}
  for system in reversed(systems):  # So that the fewest CoTs stay.
    found[f'{system.method}/{system.predictor}'] = system
    found[str(system)] = system
  for method in {s.method for s in systems}:
    had = [s.predictor for s in systems if s.method == method]
    wanted = (primary.get(method), 'rail', *had)
    found[method] = found[f'{method}/{next(p for p in wanted if p in had)}']
  return found
