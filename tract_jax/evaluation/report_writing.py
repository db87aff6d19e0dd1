"""Writes the report: metrics.json, report.md, report.html, and to the terminal.

They depend on no clock and on no order of the input: the same predictions give
the same bytes. metrics.json is a contract with other programs.
"""

import dataclasses
import json
import os

from etils import epath

from tract_jax.evaluation import (
  page,
  pair_report,
  pair_tables,
  report_sections,
  tables,
)
from tract_jax.evaluation import report as report_lib

SCHEMA = 1
METRICS_FILE = 'metrics.json'
_TEXT_FILE = 'report.md'
_PAGE_FILE = 'report.html'
FILES = (_TEXT_FILE, _PAGE_FILE, METRICS_FILE)


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
    'other_systems': [dataclasses.asdict(f) for f in report.other_files],
    'breakdowns': [dataclasses.asdict(p) for p in report.breakdowns],
    'cot_texts': [dataclasses.asdict(c) for c in report.cot_texts],
    'num_cots_curve': [dataclasses.asdict(p) for p in report.cot_curve],
    'references': [dataclasses.asdict(row) for row in report.references],
    'constant': report.constant and dataclasses.asdict(report.constant),
    **pair_report.as_json(report.preferences),
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
  blocks = ['# Report']
  for section in report_sections.sections(report):
    blocks.append(f'## {section.title}')
    blocks += map(_markdown, section.parts)
  return '\n\n'.join(blocks) + '\n'


def _markdown(
  part: report_sections.Part,
) -> str:
  if isinstance(part, report_sections.Table):
    return tables.markdown(part.header, part.lines)
  if isinstance(part, report_sections.Bullets):
    return '\n'.join(f'- {tables.escaped(line)}' for line in part.lines)
  return part


def results_table(report: report_lib.Report) -> str:
  """The results and differences for a terminal, at most 100 columns wide."""
  blocks: list[str] = []
  if not report.pairs_alone:
    found = report_sections.results(report)
    blocks += tables.text_blocks(found.header, found.lines, num_keys=3)
    if report.differences:
      found = report_sections.differences(report)
      blocks += tables.text_blocks(found.header, found.lines, num_keys=2)
  if report.preferences.combined:
    header, lines = pair_tables.cells(report.preferences)
    blocks += tables.text_blocks(header, lines, num_keys=4)
  return '\n\n'.join(blocks) + '\n'


def write_report(
  report: report_lib.Report,
  folder: os.PathLike | str,
  judged: page.Judged = page.NOTHING,
) -> None:
  """Writes the report's files into a folder, local or gs://.

  Each file is written under another name and renamed, so that an earlier
  report stays whole whenever this is interrupted.

  Args:
    report: what is written.
    folder: made where it is not there.
    judged: the single rows that the page shows.

  Raises:
    OSError: if a file cannot be written.
    ValueError: for a NaN or an infinity in the report, before any file.
  """
  files = {
    _TEXT_FILE: report_markdown(report),
    _PAGE_FILE: page.report_html(report, judged),
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
