"""The written rules of the project's shape, checked on its source.

Each rule is a function from a parsed file to its problems. It is run over
every file of the project, and over a bad source that it must reject.
"""

import ast
from collections.abc import Callable, Iterator
import dataclasses
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_PACKAGE = 'tract_jax'

# Lowest first. A module imports only from lower layers and from its own
# package; packages of one layer do not import each other.
_LAYERS = (
  ('types', 'numerics'),
  ('text', 'objectives', 'models', 'parallel', 'evaluation'),
  ('data', 'sampling'),
  ('training',),
  ('pipeline',),
  ('judge',),
  ('main',),
)
_LAYER_OF = {part: i for i, layer in enumerate(_LAYERS) for part in layer}

# The lowest layer is an exception: numerics may use the records of types.
_ALLOWED_SIBLINGS = {('numerics', 'types')}

# These see a model as pure functions.
_WITHOUT_MODELS = ('objectives', 'sampling', 'training')

_MAY_TOUCH_FILES = (
  'data/',
  'evaluation/report',
  'models/gguf_weights',
  'models/hf_export',
  'models/hf_weights',
  'models/json_file',
  'models/peft_adapter',
  'models/remote_files',
  'models/safetensors_file',
  'models/tensor_files',
  'pipeline/',
  'text/tokenizer',
  'training/checkpoint',
  'training/metric_writer',
)
# A path may be named anywhere; these touch what lies there.
_FILE_MODULES = {
  'fsspec',
  'gcsfs',
  'gguf',
  'orbax',
  'safetensors',
  'shutil',
  'tempfile',
  'tensorboardX',
}
_FILE_CALLS = {
  'exists',
  'glob',
  'is_dir',
  'is_file',
  'iterdir',
  'makedirs',
  'mkdir',
  'open',
  'read_bytes',
  'read_text',
  'rename',
  'rglob',
  'rmdir',
  'rmtree',
  'symlink_to',
  'touch',
  'unlink',
  'write_bytes',
  'write_text',
}
_FILE_FUNCTIONS = {
  ('np', 'fromfile'),
  ('np', 'load'),
  ('np', 'memmap'),
  ('np', 'save'),
  ('np', 'savetxt'),
  ('np', 'savez'),
  ('os', 'listdir'),
  ('os', 'remove'),
  ('os', 'replace'),
  ('os', 'scandir'),
  ('os', 'stat'),
  ('os', 'walk'),
}

_MAX_LINES = 400
_MAX_FUNCTION_LINES = 60
# In lower case here, so that this file holds none of them.
_MARKS = [word.upper() for word in ('todo', 'fixme', 'xxx', 'hack')]


@dataclasses.dataclass(frozen=True)
class _Source:
  """A parsed file; `path` is relative to the project's root."""

  path: str
  text: str

  @property
  def tree(self) -> ast.Module:
    return ast.parse(self.text)

  @property
  def in_package(self) -> str:
    """Path without tract_jax/ and .py: "models/rope"."""
    return self.path.removeprefix(f'{_PACKAGE}/').removesuffix('.py')

  @property
  def part(self) -> str:
    """The folder or single module of a layer: "models", "types"."""
    return self.in_package.split('/')[0]


def _imports(source: _Source) -> Iterator[tuple[int, str]]:
  """(line, dotted name) of every import, wherever it stands."""
  for node in ast.walk(source.tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      # A relative import is named as a module that no layer has.
      base = '.' * node.level + (node.module or '')
      for alias in node.names:
        yield node.lineno, f'{base}.{alias.name}'


def _own_imports(source: _Source) -> Iterator[tuple[int, str]]:
  """(line, part) of every import from the project itself."""
  for line, name in _imports(source):
    if name.startswith('.'):
      yield line, name
    elif name.split('.')[0] == _PACKAGE:
      yield line, (name.split('.') + [''])[1]


def _functions(source: _Source) -> Iterator[ast.FunctionDef]:
  for node in ast.walk(source.tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node


def import_direction(source: _Source) -> Iterator[str]:
  """Lower layers only; no sibling; no unknown part; no relative import."""
  if source.part == '__init__':
    return
  if source.part not in _LAYER_OF:
    yield f'1: {source.part} stands in no layer'
    return
  for line, part in _own_imports(source):
    if part == source.part or (source.part, part) in _ALLOWED_SIBLINGS:
      continue
    if part not in _LAYER_OF:
      yield f'{line}: imports {part!r}, which stands in no layer'
    elif _LAYER_OF[part] > _LAYER_OF[source.part]:
      yield f'{line}: {source.part} imports {part}, a higher layer'
    elif _LAYER_OF[part] == _LAYER_OF[source.part]:
      yield f'{line}: {source.part} imports {part}, its sibling'


def flax_only_in_models(source: _Source) -> Iterator[str]:
  """Only models/ imports Flax."""
  for line, name in _imports(source):
    if name.split('.')[0] == 'flax' and source.part != 'models':
      yield f'{line}: imports flax'


def no_models_in_pure_code(source: _Source) -> Iterator[str]:
  """objectives, sampling and training take a model as pure functions."""
  for line, part in _own_imports(source):
    if part == 'models' and source.part in _WITHOUT_MODELS:
      yield f'{line}: {source.part} imports models'


def files_only_where_listed(source: _Source) -> Iterator[str]:
  """Only the listed modules open, read, write, list or rename files."""
  if source.in_package.startswith(_MAY_TOUCH_FILES):
    return
  for line, name in _imports(source):
    if name.split('.')[0] in _FILE_MODULES:
      yield f'{line}: imports {name}'
  for node in ast.walk(source.tree):
    if not isinstance(node, ast.Call):
      continue
    called = node.func
    if isinstance(called, ast.Name) and called.id == 'open':
      yield f'{node.lineno}: calls open'
    elif isinstance(called, ast.Attribute):
      owner = called.value.id if isinstance(called.value, ast.Name) else ''
      if called.attr in _FILE_CALLS or (owner, called.attr) in _FILE_FUNCTIONS:
        yield f'{node.lineno}: calls {owner or "..."}.{called.attr}'


def init_is_a_docstring(source: _Source) -> Iterator[str]:
  """An __init__ file holds a docstring and nothing else."""
  if not source.path.endswith('__init__.py'):
    return
  body = source.tree.body
  if len(body) != 1 or ast.get_docstring(source.tree) is None:
    yield '1: holds more, or less, than a docstring'


def short_files(source: _Source) -> Iterator[str]:
  """A file is one idea."""
  num_lines = source.text.count('\n')
  if num_lines > _MAX_LINES:
    yield f'{num_lines}: {num_lines} lines, {_MAX_LINES} at most'


def short_functions(source: _Source) -> Iterator[str]:
  """A function fits on a screen."""
  for node in _functions(source):
    num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if num_lines > _MAX_FUNCTION_LINES:
      yield (
        f'{node.lineno}: {node.name} has {num_lines} lines,'
        f' {_MAX_FUNCTION_LINES} at most'
      )


def documented(source: _Source) -> Iterator[str]:
  """Modules, and public functions and classes at the top, have docstrings."""
  if ast.get_docstring(source.tree) is None:
    yield '1: the module has no docstring'
  for node in source.tree.body:
    if not isinstance(
      node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    ):
      continue
    if not node.name.startswith('_') and ast.get_docstring(node) is None:
      yield f'{node.lineno}: {node.name} has no docstring'


def finished(source: _Source) -> Iterator[str]:
  """No note of what remains to be done."""
  for i, line in enumerate(source.text.split('\n'), 1):
    if set(re.findall(r'\w+', line)) & set(_MARKS):
      yield f'{i}: {line.strip()}'


def configs_stand_alone(source: _Source) -> Iterator[str]:
  """A config holds strings and numbers, and needs nothing of the project."""
  for line, part in _own_imports(source):
    yield f'{line}: a config imports {_PACKAGE}.{part}'


_PACKAGE_RULES = (
  import_direction,
  flax_only_in_models,
  no_models_in_pure_code,
  files_only_where_listed,
  init_is_a_docstring,
  short_files,
  short_functions,
  documented,
  finished,
)
_CONFIG_RULES = (configs_stand_alone, short_files, finished)
_TEST_RULES = (short_files, finished)
_BENCHMARK_RULES = (
  init_is_a_docstring,
  short_files,
  short_functions,
  documented,
  finished,
)


def _sources(folder: str) -> list[_Source]:
  return [
    _Source(
      path.relative_to(_ROOT).as_posix(), path.read_text(encoding='utf-8')
    )
    for path in sorted((_ROOT / folder).rglob('*.py'))
  ]


def _check(rule: Callable[[_Source], Iterator[str]], folder: str) -> None:
  sources = _sources(folder)
  assert sources, f'no file under {folder}'
  problems = [f'{s.path}:{text}' for s in sources for text in rule(s)]
  assert not problems, '\n'.join([rule.__doc__ or '', *problems])


def _by_name(rule) -> str:
  return rule.__name__


@pytest.mark.parametrize('rule', _PACKAGE_RULES, ids=_by_name)
def test_package(rule):
  _check(rule, _PACKAGE)


@pytest.mark.parametrize('rule', _CONFIG_RULES, ids=_by_name)
def test_configs(rule):
  _check(rule, 'configs')


@pytest.mark.parametrize('rule', _BENCHMARK_RULES, ids=_by_name)
def test_benchmarks(rule):
  _check(rule, 'benchmarks')


@pytest.mark.parametrize('rule', _TEST_RULES, ids=_by_name)
def test_tests(rule):
  _check(rule, 'tests')


def test_every_part_of_the_package_stands_in_a_layer():
  names = {path.stem for path in (_ROOT / _PACKAGE).glob('[!_]*')}
  assert names <= set(_LAYER_OF)


_LONG = '\n'.join(f'  x = {i}' for i in range(_MAX_FUNCTION_LINES))

# Rule, path of the file, its source: each must be found at fault.
_BAD = [
  (import_direction, 'types', 'from tract_jax.models import rope'),
  (import_direction, 'types', 'from tract_jax import numerics'),
  (import_direction, 'models/rope', 'import tract_jax.training.step'),
  (import_direction, 'models/rope', 'from tract_jax.objectives import losses'),
  (import_direction, 'data/packing', 'from tract_jax import sampling'),
  (import_direction, 'training/step', 'from tract_jax.pipeline import build'),
  (import_direction, 'pipeline/run', 'def f():\n  from tract_jax import main'),
  (import_direction, 'models/rope', 'from . import attention'),
  (import_direction, 'models/rope', 'from tract_jax import helpers'),
  (import_direction, 'helpers/text', 'import numpy'),
  (flax_only_in_models, 'training/step', 'from flax import nnx'),
  (flax_only_in_models, 'pipeline/build', 'import flax.nnx as nn'),
  (no_models_in_pure_code, 'training/step', 'from tract_jax import models'),
  (no_models_in_pure_code, 'sampling/a', 'from tract_jax.models import rope'),
  (no_models_in_pure_code, 'objectives/a', 'import tract_jax.models.rope'),
  (files_only_where_listed, 'models/rope', 'open("x")'),
  (files_only_where_listed, 'judge', 'pathlib.Path("x").open()'),
  (files_only_where_listed, 'models/rope', 'from orbax.checkpoint import v1'),
  (files_only_where_listed, 'models/rope', 'import safetensors.numpy'),
  (files_only_where_listed, 'training/step', 'a.b.write_text("x")'),
  (files_only_where_listed, 'training/step', 'os.rename("a", "b")'),
  (files_only_where_listed, 'sampling/engine', 'np.load("a.npy")'),
  (init_is_a_docstring, 'models/__init__', '"""Models."""\nimport jax'),
  (init_is_a_docstring, 'models/__init__', ''),
  (short_files, 'models/rope', 'x = 1\n' * (_MAX_LINES + 1)),
  (short_functions, 'models/rope', f'def f():\n{_LONG}'),
  (short_functions, 'models/rope', f'async def f():\n{_LONG}'),
  (documented, 'models/rope', 'x = 1'),
  (documented, 'models/rope', '"""Rope."""\ndef f(): pass'),
  (documented, 'models/rope', '"""Rope."""\nclass A: pass'),
  *[(finished, 'models/rope', f'x = 1  # {mark}: more') for mark in _MARKS],
  (configs_stand_alone, 'demo', 'from tract_jax.pipeline import config'),
]


@pytest.mark.parametrize(
  ('rule', 'path', 'text'),
  _BAD,
  ids=[f'{rule.__name__}-{i}' for i, (rule, _, _) in enumerate(_BAD)],
)
def test_rule_rejects(rule, path, text):
  assert list(rule(_Source(f'{_PACKAGE}/{path}.py', text)))


def test_every_rule_is_seen_to_reject():
  rules = {*_PACKAGE_RULES, *_CONFIG_RULES, *_TEST_RULES}
  assert {rule for rule, _, _ in _BAD} == rules


_GOOD = '''"""A module."""

import numpy as np
from tract_jax import types


def load(path):
  """Loads."""
  return np.asarray(path.name), types, str.replace('a', 'b', 'c')


def _hidden():
  return 1
'''


@pytest.mark.parametrize('rule', _PACKAGE_RULES, ids=_by_name)
def test_rule_accepts_what_is_right(rule):
  assert not list(rule(_Source(f'{_PACKAGE}/models/rope.py', _GOOD)))
