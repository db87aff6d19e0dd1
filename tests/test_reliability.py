"""Every case of docs/reliability.md names tests, and these exist."""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_TEXT = (_ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8')


def _problem(name: str) -> str | None:
  """Why "path::test" or "path::Class::test" is no test."""
  path, *parts = name.split('::')
  if not (_ROOT / path).is_file():
    return f'{name}: no such file'
  node: ast.AST = ast.parse((_ROOT / path).read_text(encoding='utf-8'))
  for part in parts:
    found = [n for n in node.body if getattr(n, 'name', '') == part]
    if not found:
      return f'{name}: no {part}'
    node = found[0]
  is_test = isinstance(node, ast.FunctionDef) and node.name.startswith('test_')
  return None if is_test else f'{name}: no test'


def _cases() -> list[list[str]]:
  """The cells of each case, past headers and rules."""
  rows = [line for line in _TEXT.splitlines() if line.startswith('| ')]
  cells = [re.split(r'(?<!\\)\|', row)[1:-1] for row in rows]
  return [row for row in cells if row[0].strip() != 'case']


def test_every_case_names_tests_that_exist():
  cases = _cases()
  assert len(cases) > 90
  problems = []
  for case, happens, tests in cases:
    names = re.findall(r'`(tests/[^`]+)`', tests)
    if not names or not happens.strip():
      problems.append(f'{case}: names no test, or does not say what happens')
    problems += [found for name in names if (found := _problem(name))]
  assert not problems


def test_names_that_are_no_tests_are_found():
  here = 'tests/test_reliability.py'
  assert _problem(f'{here}::test_names_that_are_no_tests_are_found') is None
  assert 'no such file' in _problem('tests/lost_test.py::test_a')
  assert 'no test_lost' in _problem(f'{here}::test_lost')
  assert 'no test' in _problem(f'{here}::_cases')
  assert 'no test' in _problem(here)
