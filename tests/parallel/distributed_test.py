"""Tests of tract_jax.parallel.distributed, each in processes of its own.

jax.distributed can be initialized once in a process, and before any device is
used; so nothing here runs in the test's own process.
"""

import os
import socket
import subprocess
import sys
import time

import jax
import pytest

from tract_jax import types
from tract_jax.parallel import distributed

_TIMEOUT_SECS = 60


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def _start(source: str, **env: str) -> subprocess.Popen:
  """A Python process with this source and two virtual devices."""
  return subprocess.Popen(
    [sys.executable, '-c', source],
    env={
      **os.environ,
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
      'PYTHONPATH': os.pathsep.join(p for p in sys.path if p),
      **env,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _finish(process: subprocess.Popen) -> tuple[int, str, str]:
  try:
    out, err = process.communicate(timeout=_TIMEOUT_SECS)
  finally:
    process.kill()
  return process.returncode, out, err


_SINGLE = """
import time
import jax
from jax.experimental import multihost_utils
from tract_jax.parallel import distributed

begin = time.perf_counter()
distributed.initialize()
distributed.initialize()
print('secs', time.perf_counter() - begin)
assert jax.distributed.is_initialized()
assert distributed.is_main_process()
# Works only with the service up: this is how notices of preemption arrive.
print('preempted', multihost_utils.reached_preemption_sync_point(0))
"""


def test_one_process_starts_fast_twice_and_ends_cleanly():
  code, out, err = _finish(_start(_SINGLE))
  assert code == 0, err
  assert not err
  secs = float(out.split('\n')[0].split()[1])
  assert secs < 20  # It waits for no others.
  assert 'preempted False' in out


_PSUM = """
import jax
import jax.numpy as jnp
import numpy as np
from tract_jax.parallel import agreement, distributed, mapping, partition
from tract_jax.parallel import mesh as mesh_lib

distributed.initialize()
mesh = mesh_lib.make_mesh(-1, 1, 1)
mine = np.arange(2.0, dtype=np.float32) + 10 * jax.process_index()
rows = jax.make_array_from_process_local_data(
  partition.batch_sharding(mesh), mine
)
total = mapping.map_rows(lambda x: jnp.sum(x), mesh, outputs='sums')(rows)
psum = jax.jit(
  jax.shard_map(
    lambda x: jax.lax.psum(x, 'data'),
    mesh=mesh,
    in_specs=jax.sharding.PartitionSpec('data'),
    out_specs=jax.sharding.PartitionSpec(),
  )
)(rows)
agreement.Agreement(lambda: False, distributed.joined_host()).meet()
print(
  jax.process_count(), jax.device_count(), float(total), float(psum[0]),
  distributed.is_main_process(),
)
"""


@pytest.mark.multiprocess
def test_two_processes_add_up():
  address = f'127.0.0.1:{_free_port()}'
  processes = [
    _start(
      _PSUM,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(i),
    )
    for i in range(2)
  ]
  results = [_finish(process) for process in processes]
  for i, (code, out, err) in enumerate(results):
    assert code == 0, err
    # 0 + 1 + 10 + 11 on four devices. Lines before are of the transport.
    assert out.strip().split('\n')[-1].split() == [
      '2',
      '4',
      '22.0',
      '22.0',
      str(i == 0),
    ]


_MISSING = """
from tract_jax.parallel import distributed

distributed.initialize({address!r}, 2, {index}, timeout_secs=3, notice_secs=1)
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize('index', [0, 1])
def test_missing_process_ends_with_a_message(index):
  address = f'127.0.0.1:{_free_port()}'
  begin = time.perf_counter()
  code, _, err = _finish(_start(_MISSING.format(address=address, index=index)))
  assert code == 75
  assert 'is the same command running on every host?' in err
  assert 'Not all processes of this run came within 3 s' in err
  assert 'Start the same command on every host' in err
  assert time.perf_counter() - begin < 30


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (('host:1', None, None), 'all three are needed, or none'),
    (('host:1', 2, 2), r'must be one of 0 \.\. 1'),
    (('host:1', 2, -1), r'must be one of 0 \.\. 1'),
  ],
)
def test_incomplete_or_wrong_arguments(given, message):
  with pytest.raises(types.InputError, match=message):
    distributed.initialize(*given)


def test_limits_are_given_to_jax(monkeypatch):
  given = {}
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: False)
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_, **limits: given.update(limits)
  )
  distributed.initialize('127.0.0.1:1', 2, 1, timeout_secs=50, heartbeat_secs=7)
  assert given['heartbeat_timeout_seconds'] == 7
  assert given['shutdown_timeout_seconds'] == 7
  assert given['initialization_timeout'] > 50


def test_wrong_environment_is_named(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'host:1')
  monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  with pytest.raises(
    types.InputError, match='environment.*JAX_NUM_PROCESSES=two.*whole number'
  ):
    distributed.initialize()


@pytest.mark.parametrize(
  ('env', 'host'),
  [
    ({}, (0, 1)),
    ({'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}, (3, 4)),
    # With an address it is one of several that join.
    (
      {
        'JAX_NUM_PROCESSES': '4',
        'JAX_PROCESS_ID': '3',
        'JAX_COORDINATOR_ADDRESS': '127.0.0.1:1',
      },
      (0, 1),
    ),
  ],
)
def test_a_host_apart_knows_which_it_is(monkeypatch, env, host):
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  assert distributed.find_alone() == distributed.Host(*host)
  assert str(distributed.Host(*host)) == f'host {host[0] + 1} of {host[1]}'


@pytest.mark.parametrize(
  ('env', 'message'),
  [
    ({'JAX_NUM_PROCESSES': '2'}, 'JAX_PROCESS_ID=None: both are needed'),
    ({'JAX_PROCESS_ID': '0'}, 'JAX_NUM_PROCESSES=None.*both are needed'),
    (
      {'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'},
      r'must be one of 0 \.\. 1',
    ),
    (
      {'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': 'b'},
      'JAX_PROCESS_ID=b: not a whole number',
    ),
  ],
)
def test_a_host_of_no_number_is_named(monkeypatch, env, message):
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(types.InputError, match=message):
    distributed.find_alone()


_APART = """
import jax
from tract_jax.parallel import distributed

host = distributed.find_alone()
distributed.initialize_alone()
distributed.initialize_alone()
assert jax.distributed.is_initialized()
print(host, jax.process_count(), jax.device_count())
"""


@pytest.mark.multiprocess
def test_a_host_apart_waits_for_no_other():
  # The second of two, whose first never comes.
  process = _start(_APART, JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='1')
  code, out, err = _finish(process)
  assert code == 0, err
  assert out.split() == ['host', '2', 'of', '2', '1', '2']
