"""Several hosts that sample and predict, and processes that die amid it."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from tests.faults import harness
from tract_jax import main as main_lib
from tract_jax.data import orbax_store
from tract_jax.parallel import distributed

DEMO = '--config=configs/demo.py'

# Many small chunks, so that there is something to be killed in; as many slots
# for each, so that a row's shapes are the same wherever it is sampled.
SETTINGS = {**harness.TINY, 'sampling.chunk_size': 2}
NUM_CHUNKS = 32
SELF_COTS = 'tract/self_cot/seed0'
PREDICTIONS = 'predictions/tract/synthetic.jsonl'
PARTS = 'predictions/tract/parts/synthetic/seed0'


def start(workdir, task, host=None, log=subprocess.PIPE) -> subprocess.Popen:
  """A task, as host `host` of two, or on the only one."""
  environment = {}
  if host is not None:
    environment = {'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(host)}
  return harness.start(
    workdir, task, SETTINGS, output=log, environment=environment
  )


def finish_both(workdir, task) -> list[str]:
  return [
    harness.finish(p) for p in [start(workdir, task, host) for host in (0, 1)]
  ]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """All of a run on one host, but for the report."""
  workdir = tmp_path_factory.mktemp('whole')
  harness.finish(start(workdir, 'train'))
  harness.finish(start(workdir, 'predict'))
  return workdir


@pytest.fixture
def workdir(whole, tmp_path):
  """A copy of the run without what is sampled, and what depends on it."""
  folder = tmp_path / 'run'
  shutil.copytree(whole, folder)
  shutil.rmtree(folder / 'tract')
  shutil.rmtree(folder / 'predictions')
  return folder


def chunks(folder: pathlib.Path) -> list[int]:
  with orbax_store.Store(folder / SELF_COTS, local=True) as store:
    return store.steps()


def assert_same_dataset(found: pathlib.Path, wanted: pathlib.Path) -> None:
  """Every array of every chunk, bit for bit, and what stands beside them."""
  with (
    orbax_store.Store(found / SELF_COTS, local=True) as a,
    orbax_store.Store(wanted / SELF_COTS, local=True) as b,
  ):
    assert a.steps() == b.steps() == list(range(NUM_CHUNKS))
    for step in b.steps():
      (arrays, metadata), (expected, recorded) = a.load(step), b.load(step)
      assert arrays.keys() == expected.keys() >= {'tokens', 'score_probs'}
      for name, array in arrays.items():
        assert array.dtype == expected[name].dtype
        assert array.tobytes() == expected[name].tobytes(), (step, name)
        assert np.shape(array) == np.shape(expected[name])
      assert metadata == recorded
  for name in ('dataset.json', 'self_cots.jsonl'):
    path = f'{SELF_COTS}/{name}'
    assert (found / path).read_bytes() == (wanted / path).read_bytes()


def stamps(workdir: pathlib.Path) -> dict[pathlib.Path, int]:
  """When each file of the finished chunks was written."""
  folder = workdir / SELF_COTS
  return {
    path: path.stat().st_mtime_ns
    for chunk in chunks(workdir)
    for path in (folder / str(chunk)).rglob('*')
  }


def assert_unchanged(before: dict[pathlib.Path, int]) -> None:
  assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_hosts_write_the_dataset_of_one(whole, workdir):
  finish_both(workdir, 'self_cot')
  assert_same_dataset(workdir, whole)
  # Again, on one host: nothing is left.
  assert 'nothing to do' in harness.finish(start(workdir, 'self_cot'))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_hosts_predict_what_one_does(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / 'predictions')
  finish_both(workdir, 'predict')
  for path in (PREDICTIONS, f'{PARTS}/manifest.json'):
    assert (workdir / path).read_bytes() == (whole / path).read_bytes()
  assert not list(workdir.rglob('*.tmp'))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize('victim', [0, 1])
def test_a_host_dies_and_returns_alone(whole, workdir, victim):
  processes = [start(workdir, 'self_cot', host) for host in (0, 1)]
  harness.wait_until(
    lambda: any(chunk % 2 == victim for chunk in chunks(workdir)),
    processes[victim],
  )
  processes[victim].send_signal(signal.SIGKILL)
  processes[victim].communicate()
  output = harness.finish(processes[1 - victim])
  done = set(chunks(workdir))
  left = NUM_CHUNKS - len(done)
  # The other one's share is whole, and nobody did the victim's.
  assert set(range(1 - victim, NUM_CHUNKS, 2)) <= done
  assert left > 3
  assert 'done, but other hosts are not' in output
  assert not (workdir / SELF_COTS / 'dataset.json').exists()
  before = stamps(workdir)
  harness.finish(start(workdir, 'self_cot', victim))
  assert_same_dataset(workdir, whole)
  assert_unchanged(before)


def kill_amid(workdir, num_new: int, delay_secs: float | None) -> int:
  """Kills the sampling some chunks on; gives how many are finished then.

  With a delay that long after the last of them, else while one is saved.
  """
  folder = workdir / SELF_COTS
  target = len(chunks(workdir)) + num_new
  process = start(workdir, 'self_cot', log=subprocess.DEVNULL)
  harness.wait_until(lambda: len(chunks(workdir)) >= target, process)
  if delay_secs is None:
    harness.wait_until(
      lambda: any('tmp' in name for name in os.listdir(folder)), process
    )
  else:
    time.sleep(delay_secs)
  process.send_signal(signal.SIGKILL)
  process.wait()
  return len(chunks(workdir))


@pytest.mark.slow
def test_killed_at_three_moments_the_dataset_is_the_same(whole, workdir):
  rng = np.random.default_rng(0)
  before: dict[pathlib.Path, int] = {}
  num_amid_save = 0
  for kill in range(3):
    delay_secs = rng.uniform(0, 0.2) if kill % 2 else None
    num_done = kill_amid(workdir, int(rng.integers(1, 3)), delay_secs)
    assert num_done < NUM_CHUNKS, f'all was over before kill {kill}'
    names = os.listdir(workdir / SELF_COTS)
    num_amid_save += any('tmp' in name for name in names)
    assert_unchanged(before)
    before = stamps(workdir)
  assert num_amid_save
  harness.finish(start(workdir, 'self_cot'))
  assert_unchanged(before)
  assert_same_dataset(workdir, whole)


@pytest.fixture
def second_host(monkeypatch, in_process):
  """This process, as the second of two hosts; jax stays as it is."""
  monkeypatch.chdir(harness.ROOT)
  host = distributed.Host(1, 2)
  monkeypatch.setattr(distributed, 'find_alone', lambda: host)
  monkeypatch.setattr(distributed, 'initialize_alone', lambda: None)


def errors(capsys, *argv) -> list[str]:
  assert main_lib.main([*argv, '--config.data.synthetic_train=64']) == 2
  return capsys.readouterr().err.splitlines()


def test_several_hosts_name_every_stage_that_is_not_trained(
  capsys, tmp_path, second_host
):
  command = [DEMO, f'--workdir={tmp_path}', '--config.seeds=(0,1)']
  lines = errors(capsys, '--task=self_cot', *command)
  assert [line.split(': ')[1] for line in lines] == [
    'cot_raft stage 1 seed 0',
    'cot_raft stage 1 seed 1',
  ]
  advice = (
    'run the same command with --task=train '
    """--config.methods='("cot_raft",)' on one host first"""
  )
  assert all('not trained yet, and 2 hosts train nothing' in x for x in lines)
  assert all(line.endswith(advice) for line in lines)
  lines = errors(capsys, '--task=predict', *command)
  assert {line.split(': ')[1].split(' seed')[0] for line in lines} == {
    'ce stage 1', 'ce_cot stage 1', 'raft stage 1', 'cot_raft stage 1',
  }  # fmt: skip


def test_several_hosts_lack_the_seed_model(capsys, tmp_path, second_host):
  command = [f'{DEMO}:raft', f'--workdir={tmp_path}']
  lines = errors(capsys, '--task=predict', *command)
  assert [line.split(': ')[1] for line in lines] == [
    f'seed model seed {seed}' for seed in range(5)
  ]


@pytest.mark.parametrize('task', ['run', 'train', 'export', 'inspect'])
def test_hosts_that_train_must_be_joined(capsys, tmp_path, monkeypatch, task):
  monkeypatch.chdir(harness.ROOT)
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: False)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  monkeypatch.setenv('JAX_PROCESS_ID', '1')
  lines = errors(capsys, f'--task={task}', DEMO, f'--workdir={tmp_path}')
  assert lines == [
    'error: environment: JAX_COORDINATOR_ADDRESS=None, JAX_NUM_PROCESSES=2,'
    ' JAX_PROCESS_ID=1: all three are needed, or none'
  ]


def test_the_report_is_the_first_hosts(capsys, tmp_path, second_host):
  command = ['--task=evaluate', DEMO, f'--workdir={tmp_path}']
  assert main_lib.main(command) == 0
  said = capsys.readouterr().out
  assert said == 'host 2 of 2: the first one makes the report\n'
  assert not list(tmp_path.iterdir())
