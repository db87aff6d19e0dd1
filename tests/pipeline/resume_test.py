"""A run that is killed in each of its phases ends as if it never had been."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY = {
  'methods': '("tract",)',
  'seeds': '(0,)',
  'data.synthetic_train': 64,
  'data.synthetic_test': 48,
  'model.hidden_size': 16,
  'model.intermediate_size': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'model.num_kv_heads': 1,
  'train.num_epochs': 4,
  'train.batch_size': 4,
  'train.checkpoint_every': 8,
  'sampling.slots': 8,
  'sampling.chunk_size': 8,
  'sampling.max_new_tokens': 16,
  'evaluation.gap_examples': 8,
  'evaluation.num_resamples': 100,
}
# Phase -> (what shows that it is under way, what shows that it is over).
PHASES = {
  'stage 1': (
    'cot_raft/stage1/seed0/checkpoints/8',
    'cot_raft/stage1/seed0/params/0',
  ),
  'sampling': ('tract/self_cot/seed0/1', 'tract/self_cot/seed0/dataset.json'),
  'stage 2': (
    'tract/stage2/seed0/checkpoints/16',
    'tract/stage2/seed0/params/0',
  ),
  'prediction': (
    'predictions/tract/parts/synthetic/seed0/chunk_00000008.jsonl',
    'predictions/tract/synthetic.jsonl',
  ),
}


def start(workdir, **overrides):
  flags = {**TINY, **overrides}
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tract_jax.main',
      '--config=configs/demo.py',
      f'--workdir={workdir}',
      *(f'--config.{key}={value}' for key, value in flags.items()),
    ],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process) -> str:
  output, _ = process.communicate(timeout=250)
  assert process.returncode == 0, output
  return output


def kill_in(phase, workdir) -> None:
  """Starts the run and kills it once the phase is under way."""
  begun, over = (workdir / path for path in PHASES[phase])
  process = start(workdir)
  deadline = time.monotonic() + 200
  try:
    while not begun.exists():
      assert process.poll() is None, process.communicate()[0]
      assert time.monotonic() < deadline
      time.sleep(0.002)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not over.exists(), f'{phase} was over before the kill'


def results(workdir) -> dict[str, bytes]:
  paths = [
    'report/metrics.json',
    'predictions/tract/synthetic.jsonl',
    'tract/self_cot/seed0/self_cots.jsonl',
  ]
  return {path: (workdir / path).read_bytes() for path in paths}


def losses(workdir, stage) -> list[float]:
  text = (workdir / stage / 'seed0' / 'metrics.jsonl').read_text()
  return [json.loads(line)['loss'] for line in text.splitlines()]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  finish(start(workdir))
  return workdir


@pytest.mark.slow
def test_killed_in_each_phase_ends_bit_identical(undisturbed, tmp_path):
  for phase in PHASES:
    kill_in(phase, tmp_path)
  output = finish(start(tmp_path))
  assert 'cot_raft stage 1 seed 0: done before' in output
  assert results(tmp_path) == results(undisturbed)
  for stage in ('cot_raft/stage1', 'tract/stage2'):
    assert losses(tmp_path, stage) == losses(undisturbed, stage)


@pytest.mark.slow
def test_the_same_command_again_does_nothing(undisturbed):
  def stamps():
    return {
      path: path.stat().st_mtime_ns
      for path in undisturbed.rglob('*')
      if path.is_file() and path.name != '.lock'
    }

  before = stamps()
  assert 'nothing to do' in finish(start(undisturbed))
  assert stamps() == before


@pytest.mark.slow
def test_finished_stage_is_not_passed_off_as_another(undisturbed):
  process = start(undisturbed, **{'train.lr': 0.5})
  output, _ = process.communicate(timeout=250)
  assert process.returncode == 2, output
  assert 'train.lr: recorded 0.003, expected 0.5' in output


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(undisturbed, tmp_path):
  process = start(tmp_path)
  begun = tmp_path / PHASES['stage 1'][0]
  while not begun.exists():
    assert process.poll() is None
    time.sleep(0.002)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=250)
  assert process.returncode == 75, output
  assert 'the same command continues' in output
  assert 'continues from step' in finish(start(tmp_path))
  assert results(tmp_path) == results(undisturbed)
