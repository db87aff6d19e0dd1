"""Tables of preference pairs, whatever the report is written as.

In: a `PairReport`. Out: paragraphs, and header and lines of each table.
"""

from typing import Any

from tract_jax.evaluation import (
  compared_seeds,
  pair_report,
  pairwise,
  references,
  tables,
)

TITLES = {
  pairwise.OVERALL: 'all pairs',
  pairwise.MEAN_OF_SUBSETS: 'mean of subsets',
  pairwise.MEAN_OF_SECTIONS: 'mean of sections',
}
_COUNTS = {'half': 'counts half', 'wrong': 'is wrong', 'skip': 'is left out'}
_COUNTED = ['ties', 'invalid', 'mean difference']


Cells = tuple[list[str], list[list[Any]]]


def parts(report: pair_report.PairReport) -> list[str | Cells]:
  """The section on preference pairs, paragraphs and tables."""
  found: list[str | Cells] = [
    'Accuracy: the part of the pairs whose chosen response is scored higher '
    'than the rejected one, each judged on its own; means over seeds. A tie, a '
    f'difference of {report.rule.margin:g} points at most, '
    f'{_COUNTS[report.rule.ties]}. "invalid": pairs of which a response has no '
    'prediction. "mean difference": of the chosen score minus the rejected '
    f'one. "{references.CONSTANT}" ties all pairs, "{references.LENGTH}" '
    'prefers the longer response.',
    cells(report),
  ]
  if any(row.kind == pairwise.SECTION for row in report.combined):
    found.append(
      "Sections are RewardBench's: means over their subsets, weighted as there;"
      ' the mean of all four is its score, without prior sets.'
    )
  if (by_subset := subset_cells(report))[1]:
    found += ['By subset, each method by its own predictor:', by_subset]
  if report.differences:
    found.append(
      'Accuracy of the first system minus that of the second, on the same '
      'pairs:'
    )
    found.append(difference_cells(report))
  return found


def cells(
  report: pair_report.PairReport,
) -> Cells:
  """Header and lines of the accuracies: a system on a benchmark a line."""
  rows = [r for r in _lines(report) if r.kind != pairwise.SUBSET]
  scopes = list(dict.fromkeys(row.scope for row in rows))
  header = ['benchmark', 'method', 'predictor', 'CoTs', 'seeds']
  header += [scope.name or TITLES[scope.kind] for scope in scopes]
  by_key: dict[Any, dict[pairwise.Scope, pair_report.PairRow]] = {}
  for row in rows:
    by_key.setdefault((row.benchmark, row.system), {})[row.scope] = row
  lines = []
  for own in by_key.values():
    total = own[pairwise.Scope(pairwise.OVERALL)]
    line: list[Any] = [total.benchmark, total.method, total.predictor, '', '']
    if total.seed is None:
      line[3:] = [total.num_cots, total.num_seeds]
    line += [_accuracy(own[s]) if s in own else '' for s in scopes]
    lines.append([*line, *_counts(total)])
  return [*header, *_COUNTED], lines


def subset_cells(
  report: pair_report.PairReport,
) -> Cells:
  """Header and lines of the subsets: methods' own predictors, and length."""
  rows = [
    row
    for row in _lines(report)
    if row.kind == pairwise.SUBSET
    and (row.method == references.LENGTH or row.system in report.own)
  ]
  rows.sort(key=lambda row: (row.benchmark, row.subset or ''))
  lines = [
    [row.benchmark, row.subset, row.method, _accuracy(row), *_counts(row)]
    for row in rows
  ]
  return ['benchmark', 'subset', 'method', 'accuracy', *_COUNTED], lines


def difference_cells(
  report: pair_report.PairReport,
) -> Cells:
  """Header and lines of the differences, but for those on subsets."""
  header = ['first', 'second', 'benchmark', 'of', 'difference', 'excludes 0']
  lines = []
  for d in report.differences:
    if d.kind != pairwise.SUBSET:
      excludes = {None: tables.NONE, True: 'yes', False: 'no'}[d.excludes_zero]
      line = [d.a, d.b, d.benchmark, d.subset or TITLES[d.kind]]
      line += [tables.number(d.mean, d.ci), excludes]
      seeds = compared_seeds.shown((d.seeds, d.seeds_b))
      lines.append([*line, seeds, d.num_pairs])
  return [*header, 'seeds', 'pairs'], lines


def notes(report: pair_report.PairReport) -> list[str]:
  """Why figures are n/a, a line each; of the constant it is told above."""
  return [
    f'{row.system} on pairs of {row.benchmark}, '
    f'{row.subset or TITLES[row.kind]}: {row.reason}'
    for row in _lines(report)
    if row.reason
    and row.kind != pairwise.SUBSET
    and row.method != references.CONSTANT
  ]


def _counts(row: pair_report.PairRow) -> list[str]:
  return [
    f'{row.num_ties}/{row.num_pairs}',
    f'{row.num_invalid}/{row.num_pairs}',
    tables.number(row.mean_difference),
  ]


def _accuracy(row: pair_report.PairRow) -> str:
  return tables.number(row.accuracy, row.accuracy_ci)


def _lines(report: pair_report.PairReport) -> list[pair_report.PairRow]:
  """Judges over seeds, and references, by benchmark."""
  rows = [*report.combined, *report.references]
  return sorted(rows, key=lambda row: row.benchmark)
