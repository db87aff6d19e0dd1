"""The tables of docs/benchmarks.md, made of the results files.

  python -m benchmarks.tables

writes what stands between the two marks anew; `make bench` ends with it.
"""

from collections.abc import Sequence
import pathlib
import sys

from benchmarks import curve_tables, options, results, targets

DOCS = pathlib.Path(__file__).resolve().parent.parent / 'docs' / 'benchmarks.md'
BEGIN = '<!-- Made by `python -m benchmarks.tables`: -->'
END = '<!-- until here. -->'
CURVES = 'curves.json'


def main() -> int:
  """Writes the tables; gives the exit code."""
  text = DOCS.read_text(encoding='utf-8')
  DOCS.write_text(updated(text, options.RESULTS), encoding='utf-8')
  return 0


def updated(text: str, folder: pathlib.Path) -> str:
  """The page with the tables of targets and of all results files.

  Args:
    text: of the page, with both marks.
    folder: of the results files.

  Returns:
    The page; what is not between the marks is as it was.

  Raises:
    ValueError: a mark is missing.
  """
  before, _, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not end:
    raise ValueError(f'{BEGIN!r} and {END!r} do not stand in the page')
  files = {
    path.name: results.read_results(path)
    for path in sorted(folder.glob('*.json'))
  }
  asked = targets.table(row for rows in files.values() for row in rows)
  tables = [
    *([asked] if asked else []),
    *(
      _section(name, rows)
      for name, of_file in files.items()
      for rows in results.by_machine(of_file).values()
    ),
  ]
  return '\n\n'.join([before + BEGIN, *tables, END]) + after


def _section(name: str, rows: Sequence[results.Row]) -> str:
  """One machine's table of a file, under name, machine and versions."""
  title = f'**{name}**: {results.header(rows)}.'
  if name == CURVES:
    return '\n\n'.join([title, *curve_tables.sections(rows)])
  lines = [
    title,
    '',
    '| | ours | theirs | ratio (least to most, pairs) |',
    '|---|---|---|---|',
  ]
  return '\n'.join([*lines, *map(_line, rows)])


def _line(row: results.Row) -> str:
  ratio = f'of {row.runs}'
  if row.ratio_median is not None:
    ratio = (
      f'{row.ratio_median:.2f} ({row.ratio_min:.2f} to {row.ratio_max:.2f},'
      f' {row.runs})'
    )
  ours, theirs = results.shown(row.ours), results.shown(row.theirs)
  return f'| `{row.name}` | {ours} | {theirs} | {ratio} |'


if __name__ == '__main__':
  sys.exit(main())
