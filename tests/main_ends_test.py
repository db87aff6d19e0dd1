"""How the command line ends, and that no locale changes that."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from tests import main_judge_test, main_test
from tests.models import small_models
from tract_jax import main as main_lib
from tract_jax import types
from tract_jax.parallel import agreement
from tract_jax.training import loop

ROOT = pathlib.Path(__file__).parents[1]
FAST = main_judge_test.FAST
in_root = main_test.in_root


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (types.InputError('a: bad\nb: bad'), 2, ['error: a: bad', 'error: b: bad']),
    (loop.NonFiniteError('step 3: not finite'), 1, ['error: step 3: not']),
    (types.UnreachableError('gs://b: no'), 75, ['error: gs://b: no; the same']),
    (loop.Interrupted('stopped'), 75, ['stopped; the same command continues']),
    (
      jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of '
        'memory in memory space hbm. Used 20.50G of 15.75G hbm.\n\n'
        'Allocations in memory space vmem:'
      ),
      2,
      [
        'error: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out',
        'error: less memory: config.model.dtype=bfloat16; config.model.re',
      ],
    ),
    (
      jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to '
        'allocate 1.50G. That was not possible. There are 1.21G free.'
      ),
      2,
      ['error: RESOURCE_EXHAUSTED: Error allocating', 'error: less memory'],
    ),
  ],
)
def test_each_end_has_its_exit_code(
  monkeypatch, capsys, in_process, error, code, said
):
  def fail(*unused_args):
    raise error

  monkeypatch.setattr(main_lib, '_run', fail)
  assert main_lib.main([main_test.DEMO]) == code
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == len(said)
  for line, start in zip(lines, said, strict=True):
    assert line.startswith(start)


def test_limits_of_hosts_are_the_configs(monkeypatch, in_process):
  limits = {'timeout_secs': 5, 'notice_secs': 3, 'heartbeat_secs': 7}
  given = {}
  monkeypatch.setattr(
    main_lib.distributed, 'initialize', lambda **limits: given.update(limits)
  )
  monkeypatch.setattr(main_lib, '_run', lambda *_: None)
  flags = [f'--config.hosts.{key}={value}' for key, value in limits.items()]
  assert main_lib.main([main_test.DEMO, *flags]) == 0
  assert given == limits


@pytest.mark.parametrize(
  ('error', 'failed'),
  [
    (types.InputError('bad'), True),
    (loop.NonFiniteError('not finite'), True),
    (types.UnreachableError('gs://b: no'), False),
    (loop.Interrupted('stopped'), False),
    (KeyboardInterrupt(), False),
  ],
)
def test_joined_hosts_fail_with_this_one_where_it_failed(
  monkeypatch, in_process, error, failed
):
  told = []

  def fail(*unused_args):
    raise error

  def leave(unused_self, *, failed=False):
    told.append(failed)

  monkeypatch.setattr(main_lib, '_run', fail)
  monkeypatch.setattr(agreement.Agreement, 'leave', leave)
  main_lib.main([main_test.DEMO])
  assert told == [failed]


def test_ctrl_c_ends_a_plan_with_its_own_exit_code(monkeypatch, capsys):
  def stop(*unused_args):
    raise KeyboardInterrupt

  monkeypatch.setattr(main_lib.plan, 'use_no_chips', lambda: None)
  monkeypatch.setattr(main_lib, '_run', stop)
  assert main_lib.main([main_test.DEMO, '--task=plan']) == 130
  assert capsys.readouterr().err.startswith('stopped at once')


def test_a_device_without_room_is_told(monkeypatch, capsys, in_process):
  monkeypatch.setattr(main_lib, '_run', lambda *_: jnp.zeros(1 << 50, 'uint8'))
  assert main_lib.main([main_test.DEMO]) == 2
  assert 'error: RESOURCE_EXHAUSTED: ' in capsys.readouterr().err


@pytest.mark.parametrize(
  'message',
  [
    'RESOURCE_EXHAUSTED: Received message larger than max (9 vs. 4)',
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M.',
    'INTERNAL: out of memory',
  ],
)
def test_other_errors_of_jax_keep_their_traceback(
  monkeypatch, in_process, message
):
  def fail(*unused_args):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(main_lib, '_run', fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match='^' + message[:20]):
    main_lib.main([main_test.DEMO])


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
  shown = io.BytesIO()
  stream = io.TextIOWrapper(shown, encoding='ascii', errors='strict')
  monkeypatch.setattr(sys, 'stdout', stream)
  assert main_lib.main([]) == 2
  print('größe \udce9', flush=True)
  assert shown.getvalue().endswith(b'gr\\xf6\\xdfe \\udce9\n')


@pytest.mark.slow
def test_paths_and_ids_may_be_of_any_script_in_the_c_locale(tmp_path):
  folder = tmp_path / 'größe 日本'
  folder.mkdir()
  rows = [{'prompt': 'It is good.', 'id': 'é'}, {'prompt': '日本', 'id': 'ß'}]
  (folder / 'ü.jsonl').write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows),
    encoding='utf-8',
  )
  judge = small_models.save_judge(folder / 'jüdge')
  env = {k: v for k, v in os.environ.items() if not k.startswith('LC_')}
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'tract_jax.main', '--task=predict'),
      f'--workdir={folder / "läuft"}',
      f'--config.model.path={judge}',
      f'--config.data.benchmarks=rows={folder / "ü.jsonl"}',
      *(f'--config.{key}={value}' for key, value in FAST.items()),
    ],
    cwd=ROOT,
    env=env | {'LANG': 'C', 'LC_ALL': 'C', 'XLA_FLAGS': ''},
    capture_output=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stderr.decode()
  assert f'workdir: {folder}/läuft' in done.stdout.decode()
  written = folder / 'läuft' / 'predictions' / 'zero_shot' / 'rows.jsonl'
  assert [row['example_id'] for row in main_judge_test.read_jsonl(written)] == [
    'é',
    'ß',
  ]


def test_a_signal_after_the_end_changes_nothing():
  ends = (
    'import atexit, os, runpy, signal, sys\n'
    'atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n'
    "sys.argv = ['main', '--help']\n"
    "runpy.run_module('tract_jax.main', run_name='__main__')\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', ends], cwd=ROOT, capture_output=True, timeout=100
  )
  assert done.returncode == 0, done.stderr.decode()
