"""Writes the report: metrics.json, report.md and a table for the terminal.

They depend on no clock and on no order of the input: the same predictions give
the same bytes. metrics.json is a contract with other programs.
"""

import dataclasses
import json
import os

from etils import epath

from tract_jax.evaluation import (
  calibration,
  figures,
  intervals,
  lambda_curve,
  references,
  self_cots,
  tables,
)
from tract_jax.evaluation import report as report_lib

SCHEMA = 1
METRICS_FILE = 'metrics.json'
_TEXT_FILE = 'report.md'
FILES = (_TEXT_FILE, METRICS_FILE)

# Beside Pearson's r.
_OTHERS = {
  'spearman': 'rho',
  'kendall': 'tau-b',
  'rmse': 'RMSE',
  'mae': 'MAE',
  'accuracy': 'within half a step',
}

_Cells = tuple[list[str], list[list]]


def metrics_json(report: report_lib.Report) -> str:
  """Text of report/metrics.json.

  Numbers are rounded to 12 significant digits, past which the order of
  summation, and so the number of cores, would show.

  Raises:
    ValueError: for a NaN or an infinity.
  """
  found = {
    'invalid_scored_as': report.fallback,
    'accurate_within': report.half_step,
    'rows': [dataclasses.asdict(row) for row in report.rows],
    'combined': [dataclasses.asdict(c) for c in report.combined],
    'differences': [dataclasses.asdict(d) for d in report.differences],
    'cot_gap': [
      dataclasses.asdict(g) | {'gap': g.gap} for g in report.cot_gaps
    ],
    'lambda_curve': [dataclasses.asdict(p) for p in report.lambda_points],
    'self_cots': [dataclasses.asdict(c) for c in report.self_cot_counts],
    'calibration': [dataclasses.asdict(c) for c in report.calibrations],
    'references': [dataclasses.asdict(row) for row in report.references],
    'constant': report.constant and dataclasses.asdict(report.constant),
  }
  content = json.loads(
    json.dumps(found, allow_nan=False),
    parse_float=lambda digits: float(f'{float(digits):.12g}'),
  )
  content |= {'schema': SCHEMA, 'config': report.config}
  content['bootstrap'] = dataclasses.asdict(report.bootstrap)
  return json.dumps(content, allow_nan=False, indent=2, sort_keys=True) + '\n'


def report_markdown(report: report_lib.Report) -> str:
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
    *_reference_notes(report),
    *_figures_section(report),
    '## Differences',
    "Mean Pearson's r of the first system minus that of the second. A gap below"
    ' .03 is no finding, even where its interval excludes zero.',
    tables.markdown(*_difference_cells(report)),
    *_other_differences(report),
    '## Training inputs: annotator CoTs and own CoTs',
    'RMSE on training inputs, mean over seeds. A gap above zero: the model '
    'trusts its own CoTs more than they deserve.',
    tables.markdown(*_gap_cells(report)),
    *_calibration_section(report),
    *_lambda_section(report),
    *_self_cot_section(report),
    '## How to read this',
    f'- Intervals are percentile bootstraps of {report.bootstrap.num_resamples}'
    f' resamples (seed {report.bootstrap.seed}) of rows and, with several '
    'seeds, of seeds; those of rho and tau-b move with the rows to first order '
    "(the infinitesimal jackknife, on Fisher's scale). One seed says nothing "
    'of the spread between seeds, two or three say little. Differences are '
    'paired by row and seed.\n'
    '- Rows without a prediction are counted as invalid and scored as '
    f'{report.fallback:g}, the fallback; none is left out.\n'
    '- RMSE is the mean over seeds and benchmarks, in points of the score.\n'
    f'- {tables.NONE}: there is no such figure, for the reason given here.'
    f'{notes}',
  ]
  return '\n\n'.join(sections) + '\n'


def results_table(report: report_lib.Report) -> str:
  """The results and differences for a terminal, at most 100 columns wide."""
  blocks = tables.text_blocks(*_results_cells(report), num_keys=3)
  if report.differences:
    blocks += tables.text_blocks(*_difference_cells(report), num_keys=2)
  return '\n\n'.join(blocks) + '\n'


def write_report(report: report_lib.Report, folder: os.PathLike | str) -> None:
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


def _results_cells(report: report_lib.Report) -> _Cells:
  """Header and lines of the results: a system a line, as in the paper."""
  names = sorted({row.benchmark for row in report.rows})
  columns = [*names, report_lib.MEAN] if len(names) > 1 else names
  header = ['method', 'predictor', 'CoTs', 'seeds', *columns]
  header += ['mean rho', 'RMSE', 'invalid']
  combined = [*report.combined, *report.combined_references]
  by_key = {(c.system, c.benchmark): c for c in combined}
  beside = {row.system for row in report.references}
  lines = []
  for total in (c for c in combined if c.benchmark == report_lib.MEAN):
    found = [by_key.get((total.system, name)) for name in columns]
    line: list = [total.method, total.predictor, '', '']
    if total.system not in beside:
      line[2:] = [total.num_cots, total.num_seeds]
    line += [tables.number(c.pearson, c.pearson_ci) if c else '' for c in found]
    line += [tables.number(total.spearman), tables.number(total.rmse)]
    share = f'{total.num_invalid}/{total.num_examples}'
    lines.append([*line, share if total.num_examples else tables.NONE])
  return header, lines


def _reference_notes(report: report_lib.Report) -> list[str]:
  """What the lines below the judges are."""
  if not report.constant:
    return []
  kind = {
    references.TRAINING_MEAN: "the training rows' mean",
    references.GRID_MIDDLE: "the grid's middle, for nothing is trained",
  }[report.constant.kind]
  notes = [
    f'"{references.CONSTANT}" gives every row {report.constant.value:.3f}, '
    f'{kind}'
  ]
  found = {row.method for row in report.references}
  if references.LENGTH in found:
    notes.append(
      f'"{references.LENGTH}" is the number of characters of the response'
    )
  if references.RATERS in found:
    notes.append(
      f'"{references.RATERS}" is each rater against the mean of the others of '
      'the same row, the mean over raters'
    )
  return [f'No judges: {"; ".join(notes)}.']


def _figures_section(report: report_lib.Report) -> list[str]:
  if not report.combined:
    return []
  header = ['method', 'predictor', 'CoTs', 'benchmark', *_OTHERS.values()]
  lines = [
    [*(c.method, c.predictor, c.num_cots or '', c.benchmark), *_others(c)]
    for c in [*report.combined, *report.combined_references]
  ]
  return [
    '## Other figures',
    'Means over seeds. "within half a step": the part of the rows with an '
    f'error of {report.half_step:g} at most.',
    tables.markdown(header, lines),
  ]


def _others(combined: intervals.Combined) -> list[str]:
  return [
    tables.number(getattr(combined, name), getattr(combined, f'{name}_ci'))
    for name in _OTHERS
  ]


def _other_differences(report: report_lib.Report) -> list[str]:
  if not report.differences:
    return []
  lines = [
    [
      d.a,
      d.b,
      *(tables.number(g.mean, g.ci) for g in map(d.figures.get, _OTHERS) if g),
    ]
    for d in report.differences
  ]
  return [
    'Of the other figures, likewise; below zero, errors are smaller.',
    tables.markdown(['first', 'second', *_OTHERS.values()], lines),
  ]


def _difference_cells(report: report_lib.Report) -> _Cells:
  header = ['first', 'second', 'difference', 'excludes 0', 'seeds', 'rows']
  lines = []
  for d in report.differences:
    excludes = {None: tables.NONE, True: 'yes', False: 'no'}[d.excludes_zero]
    line = [d.a, d.b, tables.number(d.mean, d.ci), excludes]
    lines.append([*line, d.num_seeds, d.num_rows])
  return header, lines


def _gap_cells(report: report_lib.Report) -> _Cells:
  header = ['method', 'stage', 'seeds', 'annotator CoT', 'own CoT', 'gap']
  lines = []
  for key in dict.fromkeys((g.method, g.stage) for g in report.cot_gaps):
    gaps = [g for g in report.cot_gaps if (g.method, g.stage) == key]
    means = [
      figures.mean_or_none([getattr(gap, name) for gap in gaps])
      for name in ('rmse_annotator_cot', 'rmse_self_cot', 'gap')
    ]
    lines.append([*key, len(gaps), *map(tables.number, means)])
  return header, lines


def _calibration_section(report: report_lib.Report) -> list[str]:
  if not report.calibrations:
    return []
  level = 100 * report.calibrations[0].conformal_level
  return [
    '## Calibration',
    'Of the distributions over the grid, means over seeds. CRPS, calibration '
    'error and the conformal half-width are in points of the score, entropy in '
    'nats. "holds": part of the rows whose score lies in the central interval '
    f'of that mass, and in the expected score plus or minus "conformal", which '
    f'was set for {level:g} % on the other half of the rows.',
    tables.markdown(*calibration.cells(report.calibrations)),
  ]


def _lambda_section(report: report_lib.Report) -> list[str]:
  if not report.lambda_points:
    return []
  return [
    '## Choice of lambda',
    'Validation rows of each candidate; the smallest RMSE of the expected score'
    ' is chosen. The loss holds lambda and cannot be compared.',
    tables.markdown(*lambda_curve.cells(report.lambda_points)),
  ]


def _self_cot_section(report: report_lib.Report) -> list[str]:
  if not report.self_cot_counts:
    return []
  return [
    '## Self-CoTs',
    'How those that stage 2 is trained on ended. All but "marker" did not come '
    'to the fixed words by themselves; those without a distribution are '
    'unusable and not trained on.',
    tables.markdown(*self_cots.cells(report.self_cot_counts)),
  ]


def _missing_notes(report: report_lib.Report) -> list[str]:
  """Why figures are n/a, one line each."""
  notes = [
    (f'{r.system} on {r.benchmark}, seed {r.seed}', r.reason)
    for r in report.rows
  ]
  totals = [c for c in report.combined if c.benchmark == report_lib.MEAN]
  notes += [(f'{c.system}, {report_lib.MEAN}', c.reason) for c in totals]
  notes += [(f'{d.a} minus {d.b}', d.reason) for d in report.differences]
  notes += [
    (f'calibration of {c.method} on {c.benchmark}, seed {c.seed}', c.reason)
    for c in report.calibrations
  ]
  lines = [f'{where}: {reason}' for where, reason in notes if reason]
  return lines + lambda_curve.notes(report.lambda_points)
