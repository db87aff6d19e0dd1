"""What docs/sources.md names exists."""

import pathlib
import re

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _problem(name: str) -> str | None:
  """Why `folder/module.function`, or a module alone, is not there."""
  module, _, function = name.partition('.')
  files = [
    path
    for folder in ('tract_jax', 'tests')
    for path in (_ROOT / folder).rglob(f'{module.rsplit("/", 1)[-1]}.py')
    if str(path.with_suffix('')).endswith(f'/{module}')
  ]
  if not files:
    return f'{name}: no such file'
  words = function.split('.') if function else []
  pattern = r'^\s*(def|class) {}\b'
  text = '\n'.join(path.read_text() for path in files)
  lost = [w for w in words if not re.search(pattern.format(w), text, re.M)]
  return f'{name}: no {lost[0]}' if lost else None


def test_functions_and_tests_of_the_sources_exist():
  text = (_ROOT / 'docs' / 'sources.md').read_text()
  rows = [line for line in text.splitlines() if line.startswith('| ')]
  # The last two columns; a bar within a formula is escaped.
  cells = [re.split(r'(?<!\\)\|', row)[-3:-1] for row in rows]
  names = [
    name
    for cell in cells
    for part in cell
    for name in re.findall(r'`([\w/]+(?:\.\w+)*)`', part)
  ]
  assert len(names) > 40
  assert not [problem for name in names if (problem := _problem(name))]


def test_names_that_do_not_exist_are_found():
  assert 'no such file' in _problem('objectives/lost')
  assert 'no lost' in _problem('objectives/losses.lost')
  assert _problem('types.ScoreGrid.nearest') is None
