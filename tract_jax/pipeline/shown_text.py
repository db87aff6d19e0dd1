"""Text of any kind, made fit for a terminal of 100 columns."""

import textwrap
import unicodedata

WIDTH = 100


def wrapped(line: str) -> str:
  """A line of output over as many lines as it takes, the rest indented."""
  return textwrap.fill(
    line, WIDTH, subsequent_indent='  ', break_on_hyphens=False
  )


def block(text: str, most_lines: int) -> str:
  """A text as indented lines, without its middle where there are too many.

  Args:
    text: anything, judged text too: what would move a cursor is written out.
    most_lines: how many lines it may take, at least 3.

  Returns:
    Lines of at most WIDTH columns; one of them says how much is left out.
  """
  plain = ''.join(map(_visible, text))
  lines = [
    part
    for line in plain.split('\n')
    for part in textwrap.wrap(line, _columns(line) - 4) or ['']
  ]
  if len(lines) > most_lines:
    first, last = most_lines - most_lines // 2 - 1, most_lines // 2
    middle = lines[first : len(lines) - last]
    num_chars = sum(map(len, middle))
    lines[first : len(lines) - last] = [
      f'<... {len(middle)} lines, {num_chars:,} characters not shown ...>'
    ]
  return '\n'.join(f'  {line}'.rstrip() for line in lines)


def _columns(line: str) -> int:
  """WIDTH, or half of it where a character may take two columns."""
  # Combining marks take none, so a line with them is only shorter than allowed.
  wide = any(unicodedata.east_asian_width(c) in 'WF' for c in line)
  return WIDTH // 2 if wide else WIDTH


def _visible(character: str) -> str:
  if character.isprintable() or character == '\n':
    return character
  return character.encode('unicode_escape').decode()
