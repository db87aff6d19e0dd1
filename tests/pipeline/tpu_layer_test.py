"""A layer of the built model, compiled for TPUs where there is none."""

import re

import jax
import jax.numpy as jnp
import pytest

from tract_jax.models import lora
from tract_jax.parallel import partition
from tract_jax.pipeline import base_model
from tract_jax.pipeline import config as config_lib

pytestmark = pytest.mark.slow
pytest.importorskip('libtpu', reason='needs libtpu, the compiler for TPUs')

# Keeps libtpu from looking for the machine that it would run on.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_LOG_DIR': 'disabled',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
ROWS, LENGTH, WIDTH, MLP = 8, 1024, 1024, 2048


@pytest.fixture(scope='module', name='devices')
def _devices():
  topologies = pytest.importorskip('jax.experimental.topologies')
  with pytest.MonkeyPatch.context() as patch:
    for name, value in ENVIRONMENT.items():
      patch.setenv(name, value)
    yield topologies.get_topology_desc('v5e:2x2', platform='tpu').devices


def _compiled(devices, lora_rank, num_heads=8, **mesh):
  """The text of the gradient of a sum of hidden states."""
  config = config_lib.merge(
    {
      'model': {
        'dtype': 'bfloat16',
        'lora_rank': lora_rank,
        'hidden_size': WIDTH,
        'intermediate_size': MLP,
        'num_heads': num_heads,
        'num_kv_heads': 4,
        'remat': 'attention',
      },
      'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1, **mesh},
    }
  )
  model = base_model.from_scratch(config, 512, devices)
  trainable, frozen = lora.split_trainable(model.abstract, model.train_base)

  def loss(trainable, frozen, *rows):
    params = lora.merge(trainable, frozen)
    return model.fns.hidden(params, *rows).astype(jnp.float32).sum()

  rows = jax.ShapeDtypeStruct(
    (ROWS, LENGTH), jnp.int32, sharding=partition.batch_sharding(model.mesh)
  )
  shardings = jax.tree.map(lambda x: x.sharding, trainable)
  grad = jax.jit(jax.grad(loss), out_shardings=shardings)
  return grad.lower(trainable, frozen, rows, rows, rows).compile().as_text()


@pytest.mark.parametrize('lora_rank', [0, 8])
def test_a_layer_runs_the_kernel_and_gathers_its_weights(devices, lora_rank):
  hlo = _compiled(devices, lora_rank, fsdp=4)
  for phase in ('fwd', 'dq', 'dkv'):
    # Once: what the forward pass gave is kept by the policy.
    calls = re.findall(rf'custom-call\(.*splash_mha_{phase}', hlo)
    assert len(calls) == 1, phase
  assert 'collective-permute' not in hlo
  assert re.search(rf'bf16\[(1,)?{WIDTH},{MLP}\]\S* all-gather', hlo)


@pytest.mark.parametrize(
  ('num_heads', 'mesh'), [(16, {'fsdp': 2, 'tensor': 2}), (8, {'tensor': 4})]
)
def test_heads_are_split_over_devices(devices, num_heads, mesh):
  hlo = _compiled(devices, 0, num_heads, **mesh)
  head_dim = WIDTH // num_heads
  parts = ROWS // mesh.get('fsdp', 1), num_heads // mesh['tensor']
  shape = ','.join(map(str, (*parts, LENGTH, head_dim)))
  assert re.search(rf'bf16\[{shape}\].*custom-call\(.*splash_mha_fwd', hlo)
