"""One of several joined processes loads for itself, without the others."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tract_jax.data import orbax_store

_SCRIPT = """
import sys
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
from tract_jax.data import orbax_store

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f'127.0.0.1:{port}', 2, rank)
assert len(jax.local_devices()) == 2 and jax.device_count() == 4
if rank:
  own = NamedSharding(Mesh(jax.local_devices(), 'x'), P('x'))
  wanted = {
    'rows': jax.ShapeDtypeStruct((4, 8), 'float32', sharding=own),
    'step': jax.ShapeDtypeStruct((), 'int32'),
  }
  for _ in range(2):
    with orbax_store.Store(folder, local=True) as store:
      loaded, _ = store.load(0, wanted)
  assert loaded['rows'].sharding == own
  whole = np.arange(32, dtype=np.float32).reshape(4, 8)
  np.testing.assert_array_equal(loaded['rows'], whole)
  assert loaded['step'] == 3
print('done', flush=True)
"""


@pytest.mark.multiprocess
def test_one_process_loads_onto_its_own_devices(tmp_path):
  with orbax_store.Store(tmp_path) as store:
    rows = np.arange(32, dtype=np.float32).reshape(4, 8)
    store.save(0, {'rows': rows, 'step': np.int32(3)}, {})
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _SCRIPT, str(rank), str(port), str(tmp_path)],
      env={
        **os.environ,
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for rank in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=60)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert all('done' in output for output in outputs), '\n'.join(outputs)
