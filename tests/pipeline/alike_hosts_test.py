"""Joined hosts that do not have the same: the odd one is named, on all."""

import concurrent.futures
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.parallel import agreement_test
from tract_jax import types
from tract_jax.parallel import agreement, distributed
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import fingerprint, hosts
from tract_jax.training import loop

ROOT = pathlib.Path(__file__).parents[2]
# Processes are threads here, too.
quick = agreement_test.quick
ALIKE = {'task': 'run', 'config.train.lr': '1e-05', 'train': 'abc'}


def compare(*facts, asked=None):
  """What each host raises, or None."""

  def work(index):
    host = distributed.Host(index, len(facts), joined=True)
    stop = agreement.Agreement(lambda: index == asked, host)
    try:
      hosts.check_alike(host, stop, lambda: facts[index])
    except (types.InputError, loop.Interrupted) as error:
      return error
    assert not stop.meet()
    return None

  with concurrent.futures.ThreadPoolExecutor(len(facts)) as pool:
    return list(pool.map(work, range(len(facts)), timeout=20))


def test_hosts_that_have_the_same_go_on():
  assert compare(ALIKE, dict(ALIKE), dict(ALIKE)) == [None] * 3


@pytest.mark.parametrize('odd', range(3))
def test_the_odd_host_is_named_on_all(odd):
  facts = [ALIKE] * 3
  facts[odd] = ALIKE | {'config.train.lr': '2e-05', 'train': 'abd', 'new': '1'}
  usual = 2 if odd == 0 else 1
  expected = [
    f'host {odd + 1} of 3: config.train.lr: has "2e-05", host {usual} has '
    '"1e-05"',
    f'host {odd + 1} of 3: new: has "1", host {usual} has nothing',
    f'host {odd + 1} of 3: train: has "abd", host {usual} has "abc"',
    'give all hosts the same command, code and data',
  ]
  for error in compare(*facts):
    assert isinstance(error, types.InputError)
    assert str(error).splitlines() == expected


def test_of_two_hosts_the_second_is_odd_and_few_lines_are_shown():
  second = {f'code.{i:02}': 'b' for i in range(30)}
  first = {name: 'a' for name in second}
  lines = str(compare(first, second)[0]).splitlines()
  assert lines[0] == 'host 2 of 2: code.00: has "b", host 1 has "a"'
  assert lines[20:] == [
    'and 10 more differences',
    'give all hosts the same command, code and data',
  ]


def test_a_host_that_is_asked_to_stop_keeps_nobody_waiting():
  for error in compare(ALIKE, ALIKE, asked=0):
    assert isinstance(error, loop.Interrupted)


def test_one_host_is_compared_with_nobody():
  stop = agreement.Agreement(lambda: True)
  for host in (distributed.ONLY_HOST, distributed.Host(1, 3)):
    hosts.check_alike(host, stop, lambda: pytest.fail('not asked for'))


def test_facts_are_every_key_the_code_and_the_libraries():
  config = config_lib.default_config()
  fields = fingerprint.host_fields('run', config)
  assert {f'config.{key}' for key in config_lib.keys(config)} <= fields.keys()
  assert {'task', 'version.jax', 'version.python'} <= fields.keys()
  assert 'code.tract_jax/pipeline/hosts.py' in fields
  config.train.lr = 0.5
  changed = fingerprint.host_fields('train', config)
  assert {name for name in fields if fields[name] != changed[name]} == {
    'task',
    'config.train.lr',
  }


def start(workdir, port, index, lr) -> subprocess.Popen:
  """Process `index` of two."""
  env = os.environ | {
    'XLA_FLAGS': '',
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': str(index),
  }
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'tract_jax.main', '--config=configs/demo.py'),
      f'--workdir={workdir}',
      f'--config.train.lr={lr}',
    ],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.multiprocess
def test_two_processes_of_other_configs_are_told(tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  processes = [start(tmp_path, port, i, lr) for i, lr in enumerate((0.1, 0.5))]
  try:
    outputs = [process.communicate(timeout=200)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 2, output
    assert (
      'error: host 2 of 2: config.train.lr: has "0.5", host 1 has "0.1"'
    ) in output
  assert not list(tmp_path.iterdir())
