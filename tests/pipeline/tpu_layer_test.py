"""A layer of the built model, compiled for TPUs where there is none."""

import functools
import re
import types as python_types

import jax
import jax.numpy as jnp
import pytest

from tract_jax import types
from tract_jax.models import lora
from tract_jax.objectives import losses
from tract_jax.parallel import chips, hlo, hlo_cost, partition, row_placement
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.pipeline import base_model, loss_fn, plan
from tract_jax.pipeline import config as config_lib
from tract_jax.sampling import decode_loop

pytestmark = [
  pytest.mark.usefixtures('compiled_anew'),
  pytest.mark.slow,
  pytest.mark.skipif(
    not plan.has_compiler(),
    reason='libtpu is not installed; `make tpu` gets it',
  ),
]

ROWS, LENGTH, WIDTH, MLP, NUM_LAYERS = 4, 512, 512, 1024, 16


@pytest.fixture(scope='module', name='devices')
def _devices():
  with pytest.MonkeyPatch.context() as patch:
    # Set for each kind of slice.
    patch.delenv('TPU_ACCELERATOR_TYPE', raising=False)
    yield plan.slice_devices(chips.topology('v5e:2x2'))


def _model(devices, lora_rank, num_heads, dtype='bfloat16', **mesh):
  config = config_lib.merge(
    {
      'model': {
        'dtype': dtype,
        'lora_rank': lora_rank,
        'hidden_size': WIDTH,
        'intermediate_size': MLP,
        'num_heads': num_heads,
        'num_kv_heads': 4,
        'num_layers': NUM_LAYERS,
        'remat': 'attention',
      },
      'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1, **mesh},
    }
  )
  mesh = mesh_lib.make_mesh(**config.mesh, devices=devices)
  return base_model.from_scratch(config, 512, mesh)


def _compiled(devices, lora_rank, num_heads, **mesh):
  """The text of the gradient of a sum of hidden states."""
  model = _model(devices, lora_rank, num_heads, **mesh)
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


def _kernels(hlo: str, phase: str) -> list[str]:
  """The first shape, after scratch memory, of each kernel's results."""
  pattern = rf'%splash_mha_{phase}\S* = \((?:f32\S* )*(\S+?)\{{.* custom-call\('
  return re.findall(pattern, hlo)


@pytest.mark.parametrize('lora_rank', [0, 8])
def test_a_layer_runs_the_kernel_and_gathers_its_weights(devices, lora_rank):
  hlo = _compiled(devices, lora_rank, num_heads=4, fsdp=4)
  # Each once: what the forward pass gave is kept by the policy.
  for phase in ('fwd', 'dq', 'dkv'):
    assert len(_kernels(hlo, phase)) == 1, phase
  assert 'collective-permute' not in hlo
  assert re.search(rf'bf16\[(1,)?{WIDTH},{MLP}\]\S* all-gather', hlo)


def test_weights_are_cast_where_they_are_used(devices):
  hlo = _compiled(devices, 0, num_heads=4, fsdp=4)
  layers = rf'\[{NUM_LAYERS},{WIDTH // 4},{MLP}\]'
  assert re.search(f'f32{layers}', hlo)
  assert not re.search(f'bf16{layers}', hlo)


def test_a_frozen_head_is_gathered_once_for_all_chunks_of_logits(devices):
  model = _model(devices, lora_rank=8, num_heads=4, fsdp=4)
  once, often = (
    _gathered_bytes(model, LENGTH // num_chunks) for num_chunks in (1, 8)
  )
  assert once == often


def _gathered_bytes(model, chunk_size):
  """Of the gradient of the loss."""
  of_rows = partition.batch_sharding(model.mesh)
  ints, bools, floats, probs = (
    jax.ShapeDtypeStruct((ROWS, *shape), dtype, sharding=of_rows)
    for shape, dtype in (
      ((LENGTH,), jnp.int32),
      ((LENGTH,), jnp.bool),
      ((LENGTH,), jnp.float32),
      ((1, 2), jnp.float32),
    )
  )
  batch = types.Batch(ints, ints, ints, ints, bools, bools, floats, probs)
  grid = python_types.SimpleNamespace(values=(1.0, 2.0))
  terms = loss_fn.make_loss_fn(
    model,
    python_types.SimpleNamespace(ids=(7, 8), tree=None, grid=grid),
    losses.Objective(1.0, 0.0, ce_includes_score=True),
    num_targets=LENGTH,
    chunk_size=chunk_size,
  )
  trainable, frozen = lora.split_trainable(model.abstract, model.train_base)
  grad = jax.jit(
    jax.grad(lambda *args: terms(*args).ce_sum),
    out_shardings=jax.tree.map(lambda x: x.sharding, trainable),
  )
  text = grad.lower(trainable, frozen, batch).compile().as_text()
  return hlo_cost.measure(hlo.parse(text)).collective_bytes['all-gather']


def test_heads_are_split_over_devices(devices):
  hlo = _compiled(devices, 0, num_heads=8, fsdp=2, tensor=2)
  part = f'{ROWS // 2},{8 // 2},{LENGTH},{WIDTH // 8}'
  assert _kernels(hlo, 'fwd') == [f'bf16[{part}]']


def _decoding(devices, lora_rank, num_heads=4, dtype='bfloat16'):
  """Four steps on two heads of the cache on each chip; and its bytes there.

  With one head, any way of writing does.
  """
  model = _model(devices, lora_rank, num_heads, dtype, data=2, tensor=2)
  placement = row_placement.RowPlacement(model.mesh)
  axes = decode_loop.STATE_AXES.cache
  prompts, rows = (
    jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((16, 1), (16,))
  )
  prefill = functools.partial(model.fns.prefill, cache_length=1024)
  _, cache = jax.eval_shape(prefill, model.abstract, prompts, rows)
  cache, tokens = (
    jax.tree.map(lambda x, sharding: x.update(sharding=sharding), part, split)
    for part, split in (
      (cache, placement.shardings(cache, axes)),
      (rows, placement.shardings(rows, 0)),
    )
  )

  def write(params, tokens, cache):
    def step(_, cache):
      return model.fns.decode(params, tokens, cache)[1]

    return jax.lax.fori_loop(0, 4, step, cache)

  compiled = jax.jit(write, donate_argnums=2).lower(
    model.abstract, tokens, cache
  )
  return compiled.compile(), partition.device_bytes(cache)


@pytest.mark.parametrize(
  ('num_heads', 'dtype'),
  # Of 128 numbers, and of 64, which fill half a tile.
  [(4, 'bfloat16'), (8, 'bfloat16'), (8, 'float32')],
)
def test_the_cache_is_written_where_it_lies(devices, num_heads, dtype):
  compiled, of_chip = _decoding(devices, 0, num_heads, dtype)
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= of_chip
  assert memory.temp_size_in_bytes < 0.25 * of_chip


@pytest.mark.parametrize('lora_rank', [0, 8])
def test_decoding_reads_weights_as_they_lie(devices, lora_rank):
  compiled, _ = _decoding(devices, lora_rank)
  lay = re.findall(
    rf'bf16\[(?:{NUM_LAYERS}|1),{WIDTH},{WIDTH // 2}\]\{{(\d,\d,\d)',
    compiled.as_text(),
  )
  assert set(lay) == {'2,1,0'}
