"""Tests that a page of docs/ names exist."""

import ast
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_NAME = re.compile(r'(tests/[\w/]+\.py)::(\w+(?:::\w+)?)')
_PAGES = sorted(
  path
  for path in (_ROOT / 'docs').glob('*.md')
  if _NAME.search(path.read_text(encoding='utf-8'))
)


def problem(file: str, test: str) -> str | None:
  """Why there is no such test, or None."""
  path = _ROOT / file
  if not path.is_file():
    return f'{file}: no such file'
  body = ast.parse(path.read_text(encoding='utf-8')).body
  for name in test.split('::'):
    found = [
      node
      for node in body
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    ]
    if not found:
      return f'{file}: no {name}'
    body = found[0].body
  return None


@pytest.mark.parametrize('page', _PAGES, ids=lambda path: path.stem)
def test_named_tests_exist(page):
  named = _NAME.findall(page.read_text(encoding='utf-8'))
  assert [p for name in named if (p := problem(*name))] == []


def test_page_on_security_names_tests():
  assert 'security' in {page.stem for page in _PAGES}


def test_names_that_do_not_exist_are_found():
  here = 'tests/test_named_tests.py'
  assert problem(here, 'test_named_tests_exist') is None
  assert problem(here, 'test_lost') == f'{here}: no test_lost'
  assert problem(here, 'test_named_tests_exist::x') == f'{here}: no x'
  assert problem('tests/lost.py', 'x') == 'tests/lost.py: no such file'
