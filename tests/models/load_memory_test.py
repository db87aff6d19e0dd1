"""Tests of the memory that loading takes, foretold and measured."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import hf_weights_test as good
from tract_jax.models import config as config_lib
from tract_jax.models import hf_export, hf_weights, transformer
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.parallel import partition

_STRIP_BYTES = 16 * 2**20
_REMOTE_STRIPS = 4


def model_on(mesh, dtype=jnp.bfloat16, **sizes):
  """Functions of a model, and its parameters placed by the partition rules."""
  config = config_lib.ModelConfig(
    rope_theta=1e4, max_position_embeddings=128, **sizes
  )
  fns = transformer.make_model(config, dtype=dtype)
  shapes = transformer.abstract_params(fns)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    partition.tree_shardings(mesh, fns.logical_axes, shapes),
  )


def mistral_7b(mesh):
  return model_on(
    mesh,
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
  )


# Embedding and output matrix; 32 layers of q and o, k and v, the MLP, two
# norms; the last norm. In bfloat16.
_7B_BYTES = 2 * (
  2 * 32000 * 4096
  + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
  + 4096
)
_7B_MLP_BYTES = 2 * 32 * 4096 * 14336
_7B_NORM_BYTES = 2 * (32 * 2 + 1) * 4096


def test_7b_on_one_device():
  mesh = jax.sharding.AbstractMesh((1, 1, 1), mesh_lib.AXES)
  memory = hf_weights.host_memory(mistral_7b(mesh))
  assert memory.device_bytes == memory.read_bytes == _7B_BYTES == 14_483_464_192
  assert 0 < memory.host_bytes - _7B_MLP_BYTES <= _STRIP_BYTES
  assert memory.host_leaf == 'layers.mlp.gate_proj.weight'


@pytest.mark.parametrize('process_index', [0, 3])
def test_7b_on_four_processes_of_four_devices(process_index):
  mesh = jax.sharding.AbstractMesh((1, 16, 1), mesh_lib.AXES)
  local, remote = (
    hf_weights.host_memory(
      mistral_7b(mesh),
      remote=remote,
      process_index=process_index,
      num_processes=4,
    )
    for remote in (False, True)
  )
  # A quarter of all but the norms, which every device holds.
  kernels = _7B_BYTES - _7B_NORM_BYTES
  norms_on_devices = 4 * _7B_NORM_BYTES
  assert local.device_bytes == kernels // 4 + norms_on_devices
  assert local.device_bytes == remote.device_bytes
  assert local.read_bytes == kernels // 4 + _7B_NORM_BYTES
  assert 0 < local.host_bytes - _7B_MLP_BYTES // 16 <= _STRIP_BYTES
  # The tensors' columns are split, but for o_proj and down_proj: a bucket gives
  # their rows whole, to the four devices at once.
  rows = 2 * 32 * (4096**2 + 4096 * 14336)
  assert remote.read_bytes == (kernels - rows + rows // 4 + _7B_NORM_BYTES)
  strips_bytes = remote.host_bytes - _7B_MLP_BYTES // 4
  assert 0 < strips_bytes <= _REMOTE_STRIPS * _STRIP_BYTES


def test_copies_count_on_every_device_and_are_read_once():
  params = model_on(
    jax.make_mesh((8, 1, 1), mesh_lib.AXES),
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
  )
  total = sum(2 * x.size for x in jax.tree.leaves(params))
  memory = hf_weights.host_memory(params)
  assert (memory.device_bytes, memory.read_bytes) == (8 * total, total)


def test_adapters_are_not_counted():
  with_adapters, without = (
    hf_weights.host_memory(good.abstract_tree(lora_rank=rank))
    for rank in (2, 0)
  )
  assert with_adapters == without


_SIZES = dict(
  dtype=jnp.float32,
  vocab_size=12000,
  hidden_size=1024,
  intermediate_size=1536,
  num_layers=3,
  num_heads=8,
  num_kv_heads=2,
  head_dim=128,
)


class _Peak:
  """The most anonymous memory of this process while it is open.

  Pages of the mapped files are not in it: the system drops them at need.
  """

  def __enter__(self):
    self.begin = self.most = self._now()
    self._done = threading.Event()
    self._watcher = threading.Thread(target=self._watch)
    self._watcher.start()
    return self

  def __exit__(self, *args):
    self._done.set()
    self._watcher.join()

  def _watch(self):
    while not self._done.wait(0.001):
      self.most = max(self.most, self._now())

  def _now(self):
    status = pathlib.Path('/proc/self/status').read_text()
    line = next(x for x in status.splitlines() if x.startswith('RssAnon'))
    return int(line.split()[1]) * 1024


def _measure(folder):
  """Loads a small model, then the large one; prints foretold and measured."""
  hf_weights.load_params(f'{folder}/small', good.abstract_tree())
  abstract = model_on(jax.make_mesh((1, 2, 1), mesh_lib.AXES), **_SIZES)
  memory = hf_weights.host_memory(abstract)
  with _Peak() as peak:
    params = hf_weights.load_params(f'{folder}/large', abstract)
  assert len(jax.tree.leaves(params)) == 12
  print(
    json.dumps(
      {
        'device': memory.device_bytes,
        'host': memory.host_bytes,
        'measured': peak.most - peak.begin,
      }
    )
  )


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/status').exists(), reason='measures by /proc'
)
def test_memory_is_as_foretold(tmp_path):
  for name in ('small', 'large'):
    (tmp_path / name).mkdir()
  hf_export.write_tensors(
    tmp_path / 'small/model.safetensors', good.random_tensors()
  )
  mesh = jax.make_mesh((1, 1, 1), mesh_lib.AXES, devices=jax.devices()[:1])
  tensors = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(
    model_on(mesh, **_SIZES)
  ):
    path = tuple(key.key for key in keys)
    names = hf_weights.hf_names(path, leaf.shape)
    shape = leaf.shape[1:] if len(names) > 1 else leaf.shape
    if hf_weights.is_transposed(path):
      shape = shape[::-1]
    tensors |= {name: np.ones(shape, leaf.dtype) for name in names}
  hf_export.write_tensors(tmp_path / 'large/model.safetensors', tensors)
  total = sum(tensor.nbytes for tensor in tensors.values())
  assert total > 150e6
  code = (
    'import sys; from tests.models import load_memory_test as t;'
    't._measure(sys.argv[1])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    cwd=pathlib.Path(__file__).parents[2],
    env={
      **os.environ,
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
      # Else the allocator keeps what is freed, for the next time.
      'MALLOC_MMAP_THRESHOLD_': '65536',
    },
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  memory = json.loads(done.stdout.splitlines()[-1])
  # At the end all is there. The most is when the last kernel, the output
  # matrix, is read, which is of the largest: a second shard of it would exceed
  # the slack of 8 MiB, which is for threads and Python itself.
  shard_bytes = 12000 * 1024 * 4 // 2
  slack = 8 * 2**20
  assert shard_bytes > 2 * slack
  foretold = memory['device'] + memory['host']
  assert foretold - shard_bytes - slack < memory['measured'] < foretold + slack
