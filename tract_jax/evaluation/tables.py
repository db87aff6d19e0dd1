"""Tables as Markdown and as text for a terminal.

In: a header and lines of cells, whatever they hold. Out: text in which no cell
can pass for markup, break a line or a column.
"""

from collections.abc import Sequence
import re
from typing import Any

from tract_jax.evaluation import intervals

NONE = 'n/a'
_TEXT_WIDTH = 100
_MAX_CELL = 30


def number(value: float | None, ci: intervals.Interval | None = None) -> str:
  """Three decimals without the leading zero, as the papers print it.

  Args:
    value: a figure; None where there is none.
    ci: its interval, or None.

  Returns:
    Such as ".812 (.790, .834)", or "n/a".
  """
  if value is None:
    return NONE
  text = re.sub(r'^(-?)0\.', r'\1.', f'{value:.3f}')
  return f'{text} ({number(ci[0])}, {number(ci[1])})' if ci else text


def plain(cell: Any) -> str:
  """One line of printable text, whatever the cell holds."""
  return ''.join(c if c.isprintable() else '\ufffd' for c in str(cell))


def escaped(cell: Any) -> str:
  """Text that Markdown shows as it is: no markup, HTML, table cell or link."""
  special = r'([\\`*_{}\[\]<>#|~&!@$]|:(?=//)|(?<=www)\.)'
  return re.sub(special, r'\\\1', plain(cell))


def markdown(header: Sequence[str], lines: Sequence[Sequence]) -> str:
  """A Markdown table; "None." without lines."""
  if not lines:
    return 'None.'
  table = [header, ['---'] * len(header), *lines]
  rows = [' | '.join(map(escaped, line)) for line in table]
  return '\n'.join(f'| {row} |' for row in rows)


def text_blocks(
  header: Sequence[str], lines: Sequence[Sequence], num_keys: int
) -> list[str]:
  """Aligned tables of at most 100 columns; each repeats the first columns."""
  cells = [list(map(plain, line)) for line in [header, *lines]]
  table = [
    [c if len(c) <= _MAX_CELL else f'{c[: _MAX_CELL - 2]}..' for c in line]
    for line in cells
  ]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  blocks = [[*range(num_keys)]]
  for column in range(num_keys, len(header)):
    used = sum(widths[i] + 2 for i in [*blocks[-1], column]) - 2
    if used > _TEXT_WIDTH and len(blocks[-1]) > num_keys:
      blocks.append([*range(num_keys)])
    blocks[-1].append(column)
  return [
    '\n'.join(
      '  '.join(line[i].ljust(widths[i]) for i in block).rstrip()
      for line in table
    )
    for block in blocks
  ]
