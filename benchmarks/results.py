"""Rows of a results file, and the table on the terminal.

A row compares medians over pairs of runs. A ratio is one pair's, and above 1
where ours is better: ours over theirs for a rate, theirs over ours for seconds
and bytes, of which less is better.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import pathlib
import re
import statistics
from typing import Any

from tract_jax.data import manifest

# Units, as words of a name.
_LESS_IS_BETTER = {'secs', 'bytes'}


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of results.

  Attributes:
    name: with the unit, as "rows_per_sec_1_cot".
    ours, theirs: medians; theirs is None for a check of ours.
    ratio_median, ratio_min, ratio_max: how much better ours is, over the pairs.
    runs: number of pairs, or of the rows that were checked.
    versions: {library: version}, and the machine.
    work: what was measured; {} in rows of before it was kept.
    commit: of this project, with "+" for changes to it; "": not known.
    other_cpus: the most that other processes kept busy in any of its runs.
  """

  name: str
  ours: float
  theirs: float | None
  ratio_median: float | None
  ratio_min: float | None
  ratio_max: float | None
  runs: int
  versions: dict[str, str]
  work: dict[str, Any] = dataclasses.field(default_factory=dict)
  commit: str = ''
  other_cpus: float | None = None

  @property
  def machine(self) -> str:
    """Its processors and memory, with an accelerator's name before them."""
    return self.versions.get('machine', 'unknown machine')


def compared(
  name: str,
  ours: Sequence[float],
  theirs: Sequence[float],
  versions: dict[str, str],
) -> Row:
  """The row of some pairs of runs.

  Args:
    name: of the row.
    ours, theirs: a number for each pair.
    versions: {library: version}.

  Returns:
    The row.
  """
  ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
  if _LESS_IS_BETTER & set(re.split(r'[_.]', name)):
    ratios = [1 / ratio for ratio in ratios]
  return Row(
    name=name,
    ours=statistics.median(ours),
    theirs=statistics.median(theirs),
    ratio_median=statistics.median(ratios),
    ratio_min=min(ratios),
    ratio_max=max(ratios),
    runs=len(ratios),
    versions=versions,
  )


def checked(
  name: str, value: float, num_rows: int, versions: dict[str, str]
) -> Row:
  """The row of a check, or of what has nothing to be compared with."""
  return Row(name, value, None, None, None, None, num_rows, versions)


def write_results(path: pathlib.Path, rows: Iterable[Row]) -> None:
  """Writes rows into a file; its rows of other names or machines stay.

  Args:
    path: a JSON list of rows, or no file yet.
    rows: take the place of those of the same name and machine.
  """
  old = read_results(path) if path.exists() else []
  by_name = {(row.name, row.machine): row for row in [*old, *rows]}
  path.parent.mkdir(parents=True, exist_ok=True)
  manifest.write_json_atomic(path, [*map(_fields, by_name.values())])


def _fields(row: Row) -> dict[str, Any]:
  """Without what is not known of a row of before."""
  fields = dataclasses.asdict(row)
  unknown: dict[str, Any] = {'work': {}, 'commit': '', 'other_cpus': None}
  return {
    name: value
    for name, value in fields.items()
    if name not in unknown or value != unknown[name]
  }


def read_results(path: pathlib.Path) -> list[Row]:
  """The rows of a file."""
  return [Row(**row) for row in json.loads(path.read_text(encoding='utf-8'))]


def by_machine(rows: Iterable[Row]) -> dict[str, list[Row]]:
  """{machine: its rows}, in the order in which they come."""
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(row.machine, []).append(row)
  return found


def header(rows: Iterable[Row]) -> str:
  """The machine and the versions of some rows, in one line."""
  rows = list(rows)
  found: dict[str, list[str]] = {}
  for row in rows:
    for name, version in row.versions.items():
      if version not in found.setdefault(name, []):
        found[name].append(version)
  found.pop('machine', None)
  machine = ' or '.join(by_machine(rows))
  versions = [f'{name} {" or ".join(v)}' for name, v in found.items()]
  return f'{machine}; {", ".join(versions)}'


def table(rows: Sequence[Row]) -> str:
  """The rows as text, under the machine and the versions."""
  lines = [
    header(rows),
    f'{"":40} {"ours":>12} {"theirs":>12}   ratio (least to most)',
  ]
  for row in rows:
    line = f'{row.name:40} {shown(row.ours):>12} {shown(row.theirs):>12}'
    if row.ratio_median is not None:
      line += (
        f'   {row.ratio_median:.2f} ({row.ratio_min:.2f} to'
        f' {row.ratio_max:.2f}, {row.runs} pairs)'
      )
    lines.append(line)
  return '\n'.join(lines)


def shown(value: float | None) -> str:
  """A number of any unit in a few digits; "" for none."""
  if value is None:
    return ''
  return f'{value:,.0f}' if value >= 1000 else f'{value:.4g}'
