"""Cases of docs/reliability.md and docs/security.md name tests that exist."""

import ast
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_NAME = re.compile(r'`(tests/[^`]+)`')
# Page -> how many cases it has at least.
_PAGES = {'reliability': 100, 'security': 25}


def cases(page: str) -> list[list[str]]:
  """The cells of each case, past headers and rules."""
  text = (_ROOT / 'docs' / f'{page}.md').read_text(encoding='utf-8')
  rows = [line for line in text.splitlines() if line.startswith('| ')]
  cells = [re.split(r'(?<!\\)\|', row)[1:-1] for row in rows]
  return [row for row in cells if row[0].strip() not in ('case', 'threat')]


def problem(name: str) -> str | None:
  """Why "path::test" or "path::Class::test" is no test."""
  file, *parts = name.split('::')
  if not (_ROOT / file).is_file():
    return f'{name}: no such file'
  node: ast.AST = ast.parse((_ROOT / file).read_text(encoding='utf-8'))
  for part in parts:
    found = [n for n in node.body if getattr(n, 'name', '') == part]
    if not found:
      return f'{name}: no {part}'
    node = found[0]
  is_test = isinstance(node, ast.FunctionDef) and node.name.startswith('test_')
  return None if is_test else f'{name}: no test'


@pytest.mark.parametrize('page', _PAGES)
def test_every_case_names_tests_that_exist(page):
  found = cases(page)
  assert len(found) >= _PAGES[page]
  problems = []
  for case, happens, tests in found:
    names = _NAME.findall(tests)
    if not names or not happens.strip():
      problems.append(f'{case}: names no test, or does not say what happens')
    problems += [wrong for name in names if (wrong := problem(name))]
  assert problems == []


def test_names_that_are_no_tests_are_found():
  here = 'tests/test_named_tests.py'
  assert problem(f'{here}::test_names_that_are_no_tests_are_found') is None
  assert 'no such file' in problem('tests/lost_test.py::test_a')
  assert 'no test_lost' in problem(f'{here}::test_lost')
  assert 'no test' in problem(f'{here}::cases')
  assert 'no test' in problem(here)
