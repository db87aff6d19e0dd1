"""What stands in the report, whatever it is written as.

In: a `Report`. Out: sections of paragraphs, tables and lists, which
report_writing makes Markdown of, and page HTML. Text of data stands in them as
it is, to be escaped by both.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from tract_jax.evaluation import (
  breakdowns,
  calibration,
  compared_seeds,
  cot_texts,
  figures,
  intervals,
  jackknife,
  lambda_curve,
  other_systems,
  pair_tables,
  references,
  self_cots,
  tables,
)
from tract_jax.evaluation import report as report_lib

# What figures are called, by name.
FIGURES = {
  'pearson': 'r',
  'spearman': 'rho',
  'kendall': 'tau-b',
  'rmse': 'RMSE',
  'mae': 'MAE',
  'accuracy': 'within half a step',
}
_OTHERS = {name: text for name, text in FIGURES.items() if name != 'pearson'}
_PAIRS_ALONE = (
  "Preference pairs have no rater's score and stand in a section of their own."
)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table: its header, and lines of as many cells."""

  header: Sequence[str]
  lines: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Bullets:
  """A list, a line each."""

  lines: Sequence[str]


# A str is a paragraph.
Part = str | Table | Bullets


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and what stands under it."""

  title: str
  parts: Sequence[Part]


def sections(report: report_lib.Report) -> list[Section]:
  """All of them, in order; those without anything to say are left out."""
  found = [
    _results_section(report),
    _figures_section(report),
    _differences_section(report),
    _pair_section(report),
    _gap_section(report),
    _calibration_section(report),
    _breakdown_section(report),
    _cot_text_section(report),
    _lambda_section(report),
    _self_cot_section(report),
    _other_section(report),
    _reading_section(report),
  ]
  return [section for section in found if section]


def results(report: report_lib.Report) -> Table:
  """The results: a system a line, as in the paper, and the references."""
  names = report.rated
  columns = [*names, report_lib.MEAN] if len(names) > 1 else names
  header = ['method', 'predictor', 'CoTs', 'seeds', *columns]
  header += ['mean rho', 'RMSE', 'invalid']
  combined = [*report.combined, *report.combined_references]
  by_key = {(c.system, c.benchmark): c for c in combined}
  beside = {row.system for row in report.references}
  others = {file.method for file in report.other_files}
  lines = []
  for total in (c for c in combined if c.benchmark == report_lib.MEAN):
    found = [by_key.get((total.system, name)) for name in columns]
    line: list = [total.method, total.predictor, '', '']
    line[0] += f' {other_systems.MARK}' if total.method in others else ''
    if total.system not in beside:
      # No seed is on every benchmark where one of them was left out.
      of_system = (c for c in combined if c.system == total.system)
      seeds = total.num_seeds or max(c.num_seeds for c in of_system)
      line[2:] = [total.num_cots, seeds]
    line += [tables.number(c.pearson, c.pearson_ci) if c else '' for c in found]
    line += [tables.number(total.spearman), tables.number(total.rmse)]
    share = f'{total.num_invalid}/{total.num_examples}'
    lines.append([*line, share if total.num_examples else tables.NONE])
  return Table(header, lines)


def differences(report: report_lib.Report) -> Table:
  """Of Pearson's r between systems."""
  header = ['first', 'second', 'difference', 'excludes 0', 'seeds', 'rows']
  lines = []
  for d in report.differences:
    excludes = {None: tables.NONE, True: 'yes', False: 'no'}[d.excludes_zero]
    line = [d.a, d.b, tables.number(d.mean, d.ci), excludes]
    seeds = compared_seeds.shown((d.seeds, d.seeds_b))
    lines.append([*line, seeds, d.num_rows])
  return Table(header, lines)


def _results_section(report: report_lib.Report) -> Section:
  if report.pairs_alone:
    return Section('Results', [_PAIRS_ALONE])
  level = 100 * report.bootstrap.level
  return Section(
    'Results',
    [
      "Pearson's r with the rater, mean over seeds, with its "
      f'{level:g} % interval.',
      results(report),
      *([_PAIRS_ALONE] if report.unrated else []),
      *_reference_notes(report),
    ],
  )


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


def _figures_section(report: report_lib.Report) -> Section | None:
  if not report.combined or report.pairs_alone:
    return None
  header = ['method', 'predictor', 'CoTs', 'benchmark', *_OTHERS.values()]
  combined = [*report.combined, *report.combined_references]
  combined = [c for c in combined if c.benchmark not in report.unrated]
  if len({c.benchmark for c in combined}) == 2:  # A benchmark is the mean.
    combined = [c for c in combined if c.benchmark != report_lib.MEAN]
  lines = [
    [*(c.method, c.predictor, c.num_cots or '', c.benchmark), *_others(c)]
    for c in combined
  ]
  text = (
    'Means over seeds. "within half a step": the part of the rows with an '
    f'error of {report.half_step:g} at most.'
  )
  return Section('Other figures', [text, Table(header, lines)])


def _others(combined: intervals.Combined) -> list[str]:
  return [
    tables.number(getattr(combined, name), getattr(combined, f'{name}_ci'))
    for name in _OTHERS
  ]


def _differences_section(report: report_lib.Report) -> Section | None:
  if report.pairs_alone:
    return None
  parts: list[Part] = [
    "Mean Pearson's r of the first system minus that of the second. A gap below"
    ' .03 is no finding, even where its interval excludes zero.',
    differences(report),
  ]
  lines = [
    [d.a, d.b, *(_gap(d.figures[name]) for name in _OTHERS)]
    for d in report.differences
  ]
  if lines:
    parts += [
      'Of the other figures, likewise; below zero, errors are smaller.',
      Table(['first', 'second', *_OTHERS.values()], lines),
    ]
  return Section('Differences', parts)


def _gap(gap: intervals.Gap) -> str:
  return tables.number(gap.mean, gap.ci)


def _pair_section(report: report_lib.Report) -> Section | None:
  if not report.preferences.combined:
    return None
  found = pair_tables.parts(report.preferences)
  parts = [part if isinstance(part, str) else Table(*part) for part in found]
  return Section('Preference pairs', parts)


def _gap_section(report: report_lib.Report) -> Section:
  header = ['method', 'stage', 'seeds', 'annotator CoT', 'own CoT', 'gap']
  header += ['perplexity of annotator CoTs', 'of own']
  names = ['rmse_annotator_cot', 'rmse_self_cot', 'gap']
  names += ['perplexity_annotator_cot', 'perplexity_self_cot']
  lines = []
  for key in dict.fromkeys((g.method, g.stage) for g in report.cot_gaps):
    gaps = [g for g in report.cot_gaps if (g.method, g.stage) == key]
    means = [
      figures.mean_or_none([getattr(gap, name) for gap in gaps])
      for name in names
    ]
    lines.append([*key, len(gaps), *map(tables.number, means)])
  text = (
    'RMSE on training inputs, mean over seeds. A gap above zero: the model '
    'trusts its own CoTs more than they deserve. Perplexity: exp of the mean '
    'cross-entropy per token of these CoTs under the model itself.'
  )
  title = 'Training inputs: annotator CoTs and own CoTs'
  return Section(title, [text, Table(header, lines)])


def _calibration_section(report: report_lib.Report) -> Section | None:
  if not report.calibrations:
    return None
  level = 100 * report.calibrations[0].conformal_level
  text = (
    'Of the distributions over the grid, means over seeds. CRPS, calibration '
    'error and the conformal half-width are in points of the score, entropy in '
    'nats. "holds": part of the rows whose score lies in the central interval '
    f'of that mass, and in the expected score plus or minus "conformal", which '
    f'was set for {level:g} % on the other half of the rows.'
  )
  found = Table(*calibration.cells(report.calibrations))
  return Section('Calibration', [text, found])


def _breakdown_section(report: report_lib.Report) -> Section | None:
  parts: list[Part] = [
    'Parts of the benchmarks, each method by its own predictor from all CoTs, '
    'seeds together. Bias: mean of prediction minus score. Parts are small and '
    'many: the largest gap among them may be chance. Intervals, of '
    f'{jackknife.MIN_ROWS} rows or more, are those of the infinitesimal '
    'jackknife over rows.'
  ]
  for facet in breakdowns.FACETS:
    if found := [p for p in report.breakdowns if p.facet == facet]:
      parts.append(f'By {facet.replace("_", " ")}:')
      parts.append(Table(*breakdowns.cells(found)))
  return Section('Breakdowns', parts) if len(parts) > 1 else None


def _cot_text_section(report: report_lib.Report) -> Section | None:
  if not report.cot_texts:
    return None
  text = (
    'Words of a CoT, the fixed ones among them, and the part of the CoTs with '
    'a digit. Tokens that the model wrote of it: mean, median and 90 % '
    'quantile. BLEU-4 and ROUGE-L with the text of the rubric, from 0 to 1.'
  )
  return Section('CoTs', [text, Table(*cot_texts.cells(report.cot_texts))])


def _lambda_section(report: report_lib.Report) -> Section | None:
  if not report.lambda_points:
    return None
  text = (
    'Validation rows of each candidate; the smallest RMSE of the expected score'
    ' is chosen. The loss holds lambda and cannot be compared.'
  )
  found = Table(*lambda_curve.cells(report.lambda_points))
  return Section('Choice of lambda', [text, found])


def _self_cot_section(report: report_lib.Report) -> Section | None:
  if not report.self_cot_counts:
    return None
  text = (
    'How those that stage 2 is trained on ended. All but "marker" did not come '
    'to the fixed words by themselves; those without a distribution are '
    'unusable and not trained on.'
  )
  found = Table(*self_cots.cells(report.self_cot_counts))
  return Section('Self-CoTs', [text, found])


def _other_section(report: report_lib.Report) -> Section | None:
  if not report.other_files:
    return None
  text = (
    f'Methods marked {other_systems.MARK} are not of this run: their '
    'predictions of the same rows were read from these files, and every figure '
    'is made from them as for our own.'
  )
  found = Table(*other_systems.cells(report.other_files))
  return Section('Other systems', [text, found])


def _reading_section(report: report_lib.Report) -> Section:
  lines = [
    f'Intervals are percentile bootstraps of {report.bootstrap.num_resamples} '
    f'resamples (seed {report.bootstrap.seed}) of rows and, with several '
    'seeds, of seeds; those of rho and tau-b move with the rows to first order '
    "(the infinitesimal jackknife, on Fisher's scale). One seed says nothing "
    'of the spread between seeds, two or three say little. Differences are '
    'paired by row and seed.',
    'Rows without a prediction are counted as invalid and scored as '
    f'{report.fallback:g}, the fallback; none is left out.',
    'RMSE is the mean over seeds and benchmarks, in points of the score.',
    f'{tables.NONE}: there is no such figure, for the reason given here.',
    *_missing_notes(report),
  ]
  return Section('How to read this', [Bullets(lines)])


def _missing_notes(report: report_lib.Report) -> list[str]:
  """Why figures are n/a, one line each."""
  notes = [
    (f'{r.system} on {r.benchmark}, seed {r.seed}', r.reason)
    for r in report.rows
    if r.benchmark not in report.unrated
  ]
  totals = [c for c in report.combined if c.benchmark == report_lib.MEAN]
  if not report.pairs_alone:
    notes += [(f'{c.system}, {report_lib.MEAN}', c.reason) for c in totals]
    notes += [(f'{d.a} minus {d.b}', d.reason) for d in report.differences]
  notes += [
    (f'calibration of {c.method} on {c.benchmark}, seed {c.seed}', c.reason)
    for c in report.calibrations
  ]
  notes += [
    (
      f'CoTs of training inputs, {g.method} stage {g.stage}, seed {g.seed}',
      g.reason,
    )
    for g in report.cot_gaps
  ]
  of_cots: dict[str | None, list[str]] = {}
  for c in report.cot_texts:
    of_cots.setdefault(c.reason, []).append(f'{c.method} on {c.benchmark}')
  notes += [(f'CoTs of {", ".join(w)}', why) for why, w in of_cots.items()]
  lines = [f'{where}: {reason}' for where, reason in notes if reason]
  lines += pair_tables.notes(report.preferences)
  return lines + lambda_curve.notes(report.lambda_points)
