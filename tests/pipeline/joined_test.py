"""Joined processes: they train, sample and predict together, as one would."""

import json
import math
import pathlib
import signal
import subprocess

from etils import epath
import numpy as np
import pytest

from tests.faults import harness
from tests.pipeline import fake_gcs
from tract_jax.data import self_cot
from tract_jax.pipeline import workdir as workdir_lib

# So long that there is time to be stopped in.
LONG = {'train.num_epochs': 10, 'data.synthetic_test': 192}
# Phase -> (what shows that it is under way, what shows that it is over).
PHASES = {
  'stage 1': (
    'cot_raft/stage1/seed0/checkpoints/4',
    'cot_raft/stage1/seed0/params/0',
  ),
  'sampling': ('tract/self_cot/seed0/1', 'tract/self_cot/seed0/dataset.json'),
  'stage 2': (
    'tract/stage2/seed0/checkpoints/8',
    'tract/stage2/seed0/params/0',
  ),
  'prediction': (
    'predictions/tract/parts/synthetic/seed0/chunk_00000008.jsonl',
    'predictions/tract/synthetic.jsonl',
  ),
}


def start(
  workdir, num_processes=1, num_devices=1, task='run', **settings
) -> list[subprocess.Popen]:
  """The processes of a run, each with `num_devices` devices."""
  return harness.start_joined(
    workdir if isinstance(workdir, list) else [workdir] * num_processes,
    task,
    {**harness.JOINED, **settings},
    num_devices=num_devices,
  )


def cots(workdir: pathlib.Path):
  folder = workdir / 'tract' / 'self_cot' / 'seed0'
  summary = self_cot.read_summary(folder)
  return self_cot.read_self_cots(folder, summary['provenance'])[0]


def rows(workdir: pathlib.Path) -> list[dict]:
  return json.loads((workdir / 'report/metrics.json').read_text())['rows']


def assert_close(found, wanted, atol: float) -> None:
  """Two JSON values, numbers within `atol`, the rest equal."""
  assert type(found) is type(wanted)
  if isinstance(found, dict):
    assert found.keys() == wanted.keys()
    for key in found:
      assert_close(found[key], wanted[key], atol)
  elif isinstance(found, list):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
      assert_close(one, other, atol)
  elif isinstance(found, float):
    assert math.isclose(found, wanted, rel_tol=0, abs_tol=atol)
  else:
    assert found == wanted


def mesh_of(data, fsdp, tensor, prefix='') -> dict[str, int]:
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  return {f'{prefix}mesh.{axis}': size for axis, size in sizes.items()}


def pmap_settings() -> dict:
  return {
    'mapping': 'pmap',
    **mesh_of(-1, 1, 1),
    **mesh_of(-1, 1, 1, 'sampling.'),
  }


@pytest.fixture(scope='session')
def alone(shared_folder):
  """A run of one process on one device; to be read."""

  def make():
    harness.finish_all(start(workdir))
    assert len(harness.losses(workdir, 'cot_raft/stage1')) == 20

  workdir = shared_folder / 'alone'
  return harness.once(workdir, make)


def assert_same_losses(workdir, alone, stage) -> None:
  np.testing.assert_allclose(
    harness.losses(workdir, stage),
    harness.losses(alone, stage),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
  ('num_processes', 'num_devices', 'settings'),
  [
    (1, 8, mesh_of(8, 1, 1)),
    (1, 8, pmap_settings()),
    (2, 1, mesh_of(1, 1, 2) | mesh_of(1, 1, 1, 'sampling.')),
    (2, 4, mesh_of(1, -1, 1)),
    (4, 2, pmap_settings()),
  ],
  ids=['1x8 data', '1x8 pmap', '2x1 tensor', '2x4 fsdp', '4x2 pmap'],
)
def test_losses_are_those_of_one_device(
  alone, tmp_path, num_processes, num_devices, settings
):
  settings = {'methods': '("cot_raft",)', **settings}
  harness.finish_all(
    start(tmp_path, num_processes, num_devices, 'train', **settings)
  )
  assert_same_losses(tmp_path, alone, 'cot_raft/stage1')


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
  ('num_processes', 'num_devices', 'settings'),
  [
    (1, 8, mesh_of(2, 2, 2) | mesh_of(4, 1, 2, 'sampling.')),
    (2, 4, mesh_of(2, 2, 2) | mesh_of(1, 2, 2, 'sampling.')),
    (2, 4, pmap_settings()),
    (4, 2, mesh_of(2, 2, 2) | mesh_of(1, -1, 1, 'sampling.')),
  ],
  ids=['1x8', '2x4', '2x4 pmap', '4x2'],
)
def test_a_run_is_that_of_one_device(
  alone, tmp_path, num_processes, num_devices, settings
):
  harness.finish_all(start(tmp_path, num_processes, num_devices, **settings))
  for stage in harness.STAGES:
    assert_same_losses(tmp_path, alone, stage)
  for found, wanted in zip(cots(tmp_path), cots(alone), strict=True):
    assert found.example_id == wanted.example_id
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.finish_reason == wanted.finish_reason
    np.testing.assert_allclose(
      found.score_probs, wanted.score_probs, rtol=0, atol=1e-5
    )
  assert_close(rows(tmp_path), rows(alone), 1e-4)


@pytest.fixture(scope='session')
def both(shared_folder):
  """A run of two processes that nothing disturbs; to be read."""
  workdir = shared_folder / 'both'
  return harness.once(
    workdir, lambda: harness.finish_all(start(workdir, 2, 1, **LONG))
  )


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_one_is_killed_in_each_phase_and_the_rest_is_done(both, tmp_path):
  for number, (phase, (begun, over)) in enumerate(PHASES.items()):
    processes = start(tmp_path, 2, 1, **LONG)
    harness.wait_for(tmp_path / begun, *processes)
    victim = processes[number % 2]
    victim.send_signal(signal.SIGKILL)
    # The other one leaves by itself.
    harness.finish_all(processes, None)
    assert not (tmp_path / over).exists(), f'{phase} was over before the kill'
  harness.finish_all(start(tmp_path, 2, 1, **LONG))
  assert harness.results(tmp_path) == harness.results(both)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_a_bucket_is_a_workdir_of_several(both, tmp_path, monkeypatch):
  folder = tmp_path / 'bucket' / 'run'
  run = {'workdir': 'gs://bucket/run', 'task': 'train', **LONG}
  run['train.checkpoint_every'] = 8
  with fake_gcs.serve(tmp_path, monkeypatch):
    processes = start(num_processes=2, **run)
    saved = folder / PHASES['stage 2'][0] / 'commit_success.txt'
    harness.wait_for(saved, *processes)
    processes[1].send_signal(signal.SIGKILL)
    harness.finish_all(processes, None)
    assert not (folder / PHASES['stage 2'][1]).exists()
    # It would be watched for a minute.
    (folder / '.lock').unlink(missing_ok=True)
    output, _ = harness.finish_all(start(num_processes=2, **run))
  assert 'tract stage 2 seed 0: continues from step' in output
  for stage in harness.STAGES:
    assert harness.losses(folder, stage) == harness.losses(both, stage)
  texts = 'tract/self_cot/seed0/self_cots.jsonl'
  assert (folder / texts).read_bytes() == (both / texts).read_bytes()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
  ('phase', 'victim', 'sent', 'codes'),
  [
    ('stage 1', 1, signal.SIGTERM, (75, 75)),
    ('sampling', 0, signal.SIGINT, (130, 75)),
  ],
)
def test_a_signal_to_one_stops_both_and_loses_nothing(
  both, tmp_path, phase, victim, sent, codes
):
  processes = start(tmp_path, 2, 1, **LONG)
  harness.wait_for(tmp_path / PHASES[phase][0], *processes)
  processes[victim].send_signal(sent)
  outputs = [
    output
    for process, code in zip(processes, codes, strict=True)
    for output in harness.finish_all([process], code)
  ]
  assert all('the same command continues' in output for output in outputs)
  assert not (tmp_path / PHASES[phase][1]).exists()
  output, _ = harness.finish_all(start(tmp_path, 2, 1, **LONG))
  if phase == 'stage 1':
    assert 'cot_raft stage 1 seed 0: continues from step' in output
  assert harness.results(tmp_path) == harness.results(both)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_hosts_without_a_common_workdir_are_told(tmp_path):
  folders = [tmp_path / 'a', tmp_path / 'b']
  first, second = start(folders, 2, 1)
  (output,) = harness.finish_all([second], 2)
  assert 'host 2 of 2 does not see what the first host wrote' in output
  (output,) = harness.finish_all([first], 1)
  assert 'another host failed' in output
  assert not (folders[0] / 'cot_raft').exists()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_first_host_that_cannot_begin_keeps_nobody_waiting(tmp_path):
  with workdir_lib.use(epath.Path(tmp_path)):
    first, second = start(tmp_path, 2, 1)
    (output,) = harness.finish_all([first], 2)
    assert 'another run is in it' in output
    (output,) = harness.finish_all([second], 1)
    assert 'another host failed' in output


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_process_goes_on_where_two_were_killed(both, tmp_path):
  processes = start(tmp_path, 2, 1, **LONG)
  harness.wait_for(tmp_path / PHASES['stage 1'][0], *processes)
  for process in processes:
    process.send_signal(signal.SIGKILL)
  harness.finish_all(processes, None)
  (output,) = harness.finish_all(start(tmp_path, 1, 1, **LONG))
  assert 'cot_raft stage 1 seed 0: continues from step' in output
  np.testing.assert_allclose(
    harness.losses(tmp_path, 'cot_raft/stage1'),
    harness.losses(both, 'cot_raft/stage1'),
    rtol=1e-4,
    atol=1e-4,
  )
