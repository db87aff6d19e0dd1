"""The report: figures of every system, their means, differences, CoT gaps.

In: the predictions of all systems. Out: a `Report`, and from it
report/metrics.json (a contract with other programs), report/report.md and a
table for the terminal. They depend on no clock and on no order of the input:
the same predictions give the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
import os
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from tract_jax import types
from tract_jax.evaluation import (
  intervals,
  lambda_curve,
  metrics,
  self_cots,
  tables,
)

SCHEMA = 1
METRICS_FILE = 'metrics.json'
_TEXT_FILE = 'report.md'
FILES = (_TEXT_FILE, METRICS_FILE)
MEAN = 'mean'  # Stands for all benchmarks in `Combined.benchmark`.
# The first of them that was run is compared with every other method.
_OURS = ('tract', 'cot_raft', 'raft')

_Name = tuple[str, str]  # method, predictor
_Cells = tuple[list[str], list[list]]


@dataclasses.dataclass(frozen=True)
class Report:
  """All that is written: metrics.json field by field.

  Attributes:
    config: of the run, as JSON has it.
    fallback: the score that stood in for invalid predictions.
    bootstrap: how intervals were made.
    rows: a system on a benchmark with a seed.
    combined: rows over seeds, and over benchmarks.
    differences, cot_gaps: between systems; on training inputs.
    lambda_points: validation figures of candidate lambdas.
    self_cot_counts: what became of the self-CoTs.
  """

  config: Mapping[str, Any]
  fallback: float
  bootstrap: intervals.Bootstrap
  rows: tuple[metrics.MetricRow, ...]
  combined: tuple[intervals.Combined, ...]
  differences: tuple[intervals.Difference, ...]
  cot_gaps: tuple[metrics.CotGap, ...]
  lambda_points: tuple[lambda_curve.LambdaPoint, ...] = ()
  self_cot_counts: tuple[self_cots.SelfCotCounts, ...] = ()


def make_report(
  systems: Sequence[metrics.SystemPredictions],
  *,
  config: Mapping[str, Any],
  fallback: float,
  bootstrap: intervals.Bootstrap = intervals.DEFAULT,
  comparisons: Sequence[tuple[_Name, _Name]] | None = None,
  primary_predictors: Mapping[str, str] | None = None,
  cot_gaps: Sequence[metrics.CotGap] = (),
  lambda_points: Sequence[lambda_curve.LambdaPoint] = (),
  self_cot_counts: Sequence[self_cots.SelfCotCounts] = (),
) -> Report:
  """Computes every figure of the report.

  Args:
    systems: all predictions, one record for each system, benchmark and seed.
    config: of the run, as JSON has it.
    fallback: score that stands in for an invalid prediction; by custom the
      midpoint of the grid.
    bootstrap: how intervals are made.
    comparisons: pairs of (method, predictor); each difference is the first
      minus the second, each with the fewest CoTs it was run with. None
      compares the first of "tract", "cot_raft" and "raft" that was run with
      every other method.
    primary_predictors: predictor per method for that; where it has no
      predictions "rail" stands in, or else the first by name.
    cot_gaps: errors on training inputs, by annotator and own CoTs.
    lambda_points: the curves by which lambda was chosen.
    self_cot_counts: of the self-CoT datasets.

  Returns:
    The report, in an order of its own.

  Raises:
    InputError: for a system given twice, a benchmark called "mean", or a
      comparison of a system without predictions.
  """
  ordered = sorted(map(metrics.sorted_by_id, systems), key=lambda s: s.key)
  for before, system in itertools.pairwise(ordered):
    if before.key == system.key:
      raise types.InputError('given twice: {}, {}, seed {}'.format(*system.key))
  if any(system.benchmark == MEAN for system in ordered):
    raise types.InputError(f'benchmark {MEAN!r}: the name is taken')
  judged = _judge(ordered, fallback, bootstrap)
  pairs = _pairs(judged.rows, comparisons, primary_predictors or {})
  return Report(
    config=config,
    fallback=fallback,
    bootstrap=bootstrap,
    rows=judged.rows,
    combined=tuple(_combined(judged)),
    differences=tuple(_difference(judged, a, b) for a, b in pairs),
    cot_gaps=tuple(sorted(cot_gaps, key=lambda g: (g.method, g.stage, g.seed))),
    lambda_points=tuple(lambda_points),
    self_cot_counts=tuple(self_cot_counts),
  )


def metrics_json(report: Report) -> str:
  """Text of report/metrics.json.

  Numbers are rounded to 12 significant digits, past which the order of
  summation, and so the number of cores, would show.

  Raises:
    ValueError: for a NaN or an infinity.
  """
  figures = {
    'invalid_scored_as': report.fallback,
    'rows': [dataclasses.asdict(row) for row in report.rows],
    'combined': [dataclasses.asdict(c) for c in report.combined],
    'differences': [dataclasses.asdict(d) for d in report.differences],
    'cot_gap': [
      dataclasses.asdict(g) | {'gap': g.gap} for g in report.cot_gaps
    ],
    'lambda_curve': [dataclasses.asdict(p) for p in report.lambda_points],
    'self_cots': [dataclasses.asdict(c) for c in report.self_cot_counts],
  }
  content = json.loads(
    json.dumps(figures, allow_nan=False),
    parse_float=lambda digits: float(f'{float(digits):.12g}'),
  )
  content |= {'schema': SCHEMA, 'config': report.config}
  content['bootstrap'] = dataclasses.asdict(report.bootstrap)
  return json.dumps(content, allow_nan=False, indent=2, sort_keys=True) + '\n'


def report_markdown(report: Report) -> str:
  """Text of report/report.md."""
  notes = ''.join(
    f'\n- {tables.escaped(note)}' for note in _missing_notes(report)
  )
  sections = [
    '# Report',
    '## Results',
    "Pearson's r with the rater, mean over seeds, with its "
    f'{100 * report.bootstrap.level:g} % interval.',
    tables.markdown(*_results_cells(report)),
    '## Differences',
    "Mean Pearson's r of the first system minus that of the second. A gap below"
    ' .03 is no finding, even where its interval excludes zero.',
    tables.markdown(*_difference_cells(report)),
    '## Training inputs: annotator CoTs and own CoTs',
    'RMSE on training inputs, mean over seeds. A gap above zero: the model '
    'trusts its own CoTs more than they deserve.',
    tables.markdown(*_gap_cells(report)),
    *_lambda_section(report),
    *_self_cot_section(report),
    '## How to read this',
    f'- Intervals are percentile bootstraps of {report.bootstrap.num_resamples}'
    f' resamples (seed {report.bootstrap.seed}) of rows and, with several '
    'seeds, of seeds. One seed says nothing of the spread between seeds, two '
    'or three say little. Differences are paired by row and seed.\n'
    '- Rows without a prediction are counted as invalid and scored as '
    f'{report.fallback:g}, the fallback; none is left out.\n'
    '- RMSE is the mean over seeds and benchmarks, in points of the score.\n'
    f'- {tables.NONE}: there is no such figure, for the reason given here.'
    f'{notes}',
  ]
  return '\n\n'.join(sections) + '\n'


def results_table(report: Report) -> str:
  """The results and differences for a terminal, at most 100 columns wide."""
  blocks = tables.text_blocks(*_results_cells(report), num_keys=3)
  if report.differences:
    blocks += tables.text_blocks(*_difference_cells(report), num_keys=2)
  return '\n\n'.join(blocks) + '\n'


def write_report(report: Report, folder: os.PathLike | str) -> None:
  """Writes report.md and metrics.json into a folder, local or gs://.

  Each file is written under another name and renamed, so that an earlier
  report stays whole whenever this is interrupted.

  Raises:
    OSError: if a file cannot be written.
    ValueError: for a NaN or an infinity in the report, before any file.
  """
  files = {
    _TEXT_FILE: report_markdown(report),
    METRICS_FILE: metrics_json(report),
  }
  root = epath.Path(folder)
  root.mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    temporary = root / f'{name}.tmp'
    try:
      temporary.write_text(text, encoding='utf-8')
      temporary.replace(root / name)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise


class _Judged(NamedTuple):
  """What all means and differences are made of."""

  rows: tuple[metrics.MetricRow, ...]
  draws: dict[tuple, intervals.PearsonDraws]
  bootstrap: intervals.Bootstrap

  def seeds(
    self, systems: Iterable[metrics.System], benchmarks: Iterable[str]
  ) -> list[int]:
    """Seeds that every one of the systems has on every benchmark."""
    wanted = set(itertools.product(systems, benchmarks))
    seeds = {row.seed for row in self.rows}
    return sorted(
      s for s in seeds if all((*w, s) in self.draws for w in wanted)
    )

  def samples(
    self, system: metrics.System, benchmarks: list[str], seeds: list[int]
  ) -> list[list[intervals.PearsonDraws]]:
    """[benchmarks][seeds] of one system."""
    return [[self.draws[system, b, s] for s in seeds] for b in benchmarks]


def _judge(
  systems: Sequence[metrics.SystemPredictions],
  fallback: float,
  bootstrap: intervals.Bootstrap,
) -> _Judged:
  """Figures of each system; systems on the same rows share resamples."""
  groups: dict[metrics.Rows, list[metrics.SystemPredictions]] = {}
  for system in systems:
    groups.setdefault(system.rows, []).append(system)
  draws: dict[tuple, intervals.PearsonDraws] = {}
  for rows, members in groups.items():
    filled = [metrics.fill_invalid(m.predictions, fallback)[0] for m in members]
    records = intervals.pearson_draws(rows, np.array(filled), bootstrap)
    draws |= {m.key: d for m, d in zip(members, records, strict=True)}
  metric_rows = []
  for system in systems:
    sample = draws[system.key]
    estimate = intervals.mean_pearson([[sample]], bootstrap)
    reason = sample.r.reason or estimate.reason
    row = metrics.metric_row(system, fallback, estimate.ci, reason)
    metric_rows.append(row)
  return _Judged(tuple(metric_rows), draws, bootstrap)


def _combined(judged: _Judged) -> Iterator[intervals.Combined]:
  """Over seeds for each benchmark, then over all benchmarks, by system."""
  benchmarks = sorted({row.benchmark for row in judged.rows})
  # One without a rater's scores has nothing that a mean could be made of.
  rated = {d.rows.benchmark for d in judged.draws.values() if d.rows.scores}
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
  rated = {d.rows.benchmark for d in judged.draws.values() if d.rows.scores}
  shared = sorted(names[0] & names[1] & rated)
  seeds = judged.seeds([a, b], shared)
  samples_a = judged.samples(a, shared, seeds)
  samples_b = judged.samples(b, shared, seeds)
  return intervals.pearson_difference(
    a, b, seeds, samples_a, samples_b, judged.bootstrap
  )


def _pairs(
  rows: Sequence[metrics.MetricRow],
  comparisons: Sequence[tuple[_Name, _Name]] | None,
  primary: Mapping[str, str],
) -> list[tuple[metrics.System, metrics.System]]:
  """The systems to compare."""
  systems = sorted({row.system for row in rows}, reverse=True)
  fewest_cots = {(s.method, s.predictor): s for s in systems}
  if comparisons is None:
    names = {}
    for m in sorted({s.method for s in systems}):
      had = sorted({s.predictor for s in systems if s.method == m})
      names[m] = m, next(p for p in (primary.get(m), 'rail', *had) if p in had)
    ours = next((names.pop(name) for name in _OURS if name in names), None)
    comparisons = [(ours, name) for name in names.values()] if ours else []
  known = ', '.join('/'.join(name) for name in sorted(fewest_cots))
  for name in itertools.chain(*comparisons):
    if name not in fewest_cots:
      raise types.InputError(
        f'comparison of {"/".join(name)}: no predictions (there are: {known})'
      )
  return [(fewest_cots[a], fewest_cots[b]) for a, b in comparisons]


def _results_cells(report: Report) -> _Cells:
  """Header and lines of the results: a system a line, as in the paper."""
  names = sorted({row.benchmark for row in report.rows})
  columns = [*names, MEAN] if len(names) > 1 else names
  header = ['method', 'predictor', 'CoTs', 'seeds', *columns]
  header += ['mean rho', 'RMSE', 'invalid']
  by_key = {(c.system, c.benchmark): c for c in report.combined}
  lines = []
  for total in (c for c in report.combined if c.benchmark == MEAN):
    found = [by_key.get((total.system, name)) for name in columns]
    line = [*dataclasses.astuple(total.system), total.num_seeds]
    line += [tables.number(c.pearson, c.pearson_ci) if c else '' for c in found]
    line += [tables.number(total.spearman), tables.number(total.rmse)]
    share = f'{total.num_invalid}/{total.num_examples}'
    lines.append([*line, share if total.num_examples else tables.NONE])
  return header, lines


def _difference_cells(report: Report) -> _Cells:
  header = ['first', 'second', 'difference', 'excludes 0', 'seeds', 'rows']
  lines = []
  for d in report.differences:
    excludes = {None: tables.NONE, True: 'yes', False: 'no'}[d.excludes_zero]
    line = [d.a, d.b, tables.number(d.mean, d.ci), excludes]
    lines.append([*line, d.num_seeds, d.num_rows])
  return header, lines


def _gap_cells(report: Report) -> _Cells:
  header = ['method', 'stage', 'seeds', 'annotator CoT', 'own CoT', 'gap']
  lines = []
  for key in dict.fromkeys((g.method, g.stage) for g in report.cot_gaps):
    gaps = [g for g in report.cot_gaps if (g.method, g.stage) == key]
    means = [
      metrics.mean_or_none([getattr(gap, name) for gap in gaps])
      for name in ('rmse_annotator_cot', 'rmse_self_cot', 'gap')
    ]
    lines.append([*key, len(gaps), *map(tables.number, means)])
  return header, lines


def _lambda_section(report: Report) -> list[str]:
  if not report.lambda_points:
    return []
  return [
    '## Choice of lambda',
    'Validation rows of each candidate; the smallest RMSE of the expected score'
    ' is chosen. The loss holds lambda and cannot be compared.',
    tables.markdown(*lambda_curve.cells(report.lambda_points)),
  ]


def _self_cot_section(report: Report) -> list[str]:
  if not report.self_cot_counts:
    return []
  return [
    '## Self-CoTs',
    'How those that stage 2 is trained on ended. All but "marker" did not come '
    'to the fixed words by themselves; those without a distribution are '
    'unusable and not trained on.',
    tables.markdown(*self_cots.cells(report.self_cot_counts)),
  ]


def _missing_notes(report: Report) -> list[str]:
  """Why figures are n/a, one line each."""
  notes = [
    (f'{r.system} on {r.benchmark}, seed {r.seed}', r.reason)
    for r in report.rows
  ]
  totals = [c for c in report.combined if c.benchmark == MEAN]
  notes += [(f'{c.system}, {MEAN}', c.reason) for c in totals]
  notes += [(f'{d.a} minus {d.b}', d.reason) for d in report.differences]
  return [f'{where}: {reason}' for where, reason in notes if reason]
