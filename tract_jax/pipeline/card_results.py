"""The figures of a model card, from report/metrics.json.

In: records of the report, of one method and seed. Out: Markdown: agreement with
the rater, what a judge is held against, calibration, preference pairs. A figure
that there is not says why.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from tract_jax.evaluation import pair_tables, pairwise, tables

NOT_STATED = 'not stated'
_FIGURES = {
  'pearson': "Pearson's r",
  'spearman': 'Spearman',
  'kendall': 'Kendall',
  'rmse': 'RMSE',
}
_CALIBRATION = {
  'crps': 'CRPS',
  'calibration_error': 'calibration error',
  'conformal_half_width': 'conformal',
  'conformal_coverage': 'holds',
}
_Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
  """What a report says of a method with one seed.

  Attributes:
    rows: of its predictors on each benchmark that is not of pairs alone.
    references: of the same benchmarks.
    calibration: of its distributions on each.
    pairs: of its predictors on preference pairs, their subsets left out.
  """

  rows: Sequence[_Record] = ()
  references: Sequence[_Record] = ()
  calibration: Sequence[_Record] = ()
  pairs: Sequence[_Record] = ()


def of_report(report: _Record, method: str, seed: int) -> Results:
  """The records that belong on a card.

  Args:
    report: content of metrics.json.
    method: a row of the table of methods.
    seed: of the run.

  Returns:
    The records.

  Raises:
    KeyError, TypeError: it is no report.
  """

  def own(records: Sequence[_Record]) -> list[_Record]:
    return [r for r in records if (r['method'], r['seed']) == (method, seed)]

  pairs = own(report.get('pairwise', ()))
  paired = {pair['benchmark'] for pair in pairs}
  rows = [
    r
    for r in own(report['rows'])
    if r['benchmark'] not in paired or r['rmse'] is not None
  ]
  benchmarks = {row['benchmark'] for row in rows}
  return Results(
    rows=rows,
    references=[
      r for r in report.get('references', ()) if r['benchmark'] in benchmarks
    ],
    calibration=[
      c
      for c in own(report.get('calibration', ()))
      if c['benchmark'] in benchmarks
    ],
    pairs=[pair for pair in pairs if pair['kind'] != pairwise.SUBSET],
  )


def markdown(results: Results) -> str:
  """The section of the card.

  Args:
    results: of the judge.

  Returns:
    Tables with what one must know to read them.
  """
  return '\n\n'.join(_parts(results))


def _parts(results: Results) -> Iterator[str]:
  if not results.rows and not results.pairs:
    yield 'Nothing was measured.'
  if results.rows:
    yield (
      'Agreement with the rater, with intervals. Invalid rows have no '
      'prediction and count as the fallback score.'
    )
    names = ['method', 'predictor', 'num_cots', 'benchmark', 'seed']
    header = ['method', 'predictor', 'CoTs', 'benchmark', 'seed']
    yield _table(results.rows, dict(zip(names, header, strict=True)), 'invalid')
  if results.references:
    yield (
      'What a judge is held against: one score for every row, the length of '
      'the response, and each rater against the mean of the others.'
    )
    own = {'method': 'reference', 'benchmark': 'benchmark'}
    yield _table(results.references, own)
  if results.calibration:
    level = 100 * results.calibration[0]['conformal_level']
    yield (
      'Calibration of the distributions over the grid, in points of the score. '
      'The expected score plus or minus "conformal" was set on half of the '
      f"rows to hold the rater's score in {level:g} % of them; of the others "
      'it "holds" this part.'
    )
    yield _calibration_table(results.calibration)
  if results.pairs:
    yield (
      'Preference pairs: the part whose chosen response is scored higher than '
      'the rejected one, each judged on its own.'
    )
    yield _pairs_table(results.pairs)


def _calibration_table(calibration: Sequence[_Record]) -> str:
  header = ['CoTs', 'benchmark', 'rows', *_CALIBRATION.values()]
  lines = [
    [
      *(c[name] for name in ('num_cots', 'benchmark', 'num_rows')),
      *(_calibrated(c, name) for name in _CALIBRATION),
    ]
    for c in calibration
  ]
  return tables.markdown(header, lines)


def _pairs_table(pairs: Sequence[_Record]) -> str:
  """Accuracies with their intervals, or why there is none."""
  lines = [
    [
      *(pair[name] for name in ('predictor', 'num_cots', 'benchmark')),
      pair['subset'] or pair_tables.TITLES[pair['kind']],
      *(pair[name] for name in ('num_pairs', 'num_ties', 'num_invalid')),
      f'none ({pair["reason"]})'
      if pair['accuracy'] is None
      else tables.number(pair['accuracy'], pair['accuracy_ci']),
    ]
    for pair in pairs
  ]
  header = ['predictor', 'CoTs', 'benchmark', 'of', 'pairs', 'ties', 'invalid']
  return tables.markdown([*header, 'accuracy'], lines)


def _table(
  records: Sequence[_Record], names: Mapping[str, str], *more: str
) -> str:
  """Some fields, the numbers of rows, and the figures with their intervals."""
  fields = [*names, 'num_examples', *(f'num_{name}' for name in more)]
  header = [*names.values(), 'rows', *more, *_FIGURES.values()]
  lines = [
    [
      *(record[field] for field in fields),
      *(_figure(record, name) for name in _FIGURES),
    ]
    for record in records
  ]
  return tables.markdown(header, lines)


def _figure(record: _Record, name: str) -> str:
  """A figure of a record, with its interval; or none, and why."""
  if record[name] is not None:
    return tables.number(record[name], record.get(f'{name}_ci'))
  # As in "pearson, kendall: constant scores; rmse: no rows".
  for group in (record.get('reason') or '').split('; '):
    figures, _, reason = group.partition(': ')
    if name in figures.split(', '):
      return f'none ({reason})'
  return f'none (reason {NOT_STATED})'


def _calibrated(record: _Record, name: str) -> str:
  """A figure of calibration; a reason may name those that it is of."""
  if record[name] is not None:
    return tables.number(record[name])
  names, _, reason = record['reason'].partition(': ')
  is_named = name in names.split(', ')
  return f'none ({reason if is_named else record["reason"]})'
