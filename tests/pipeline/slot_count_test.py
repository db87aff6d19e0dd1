"""As many slots as the chips have memory for."""

import types as python_types

import jax
import pytest

from tests.pipeline.plan_programs_test import make_config, make_setup
from tract_jax.parallel import chips
from tract_jax.pipeline import base_weights, build, plan_programs, slot_count


def on_four(**changes):
  """(configuration, model) to sample on four devices, none of them said."""
  config = make_config(**{'sampling__slots': 0, **changes})
  setup = build.for_sampling(make_setup(config), jax.devices()[:4])
  return config, setup.model


@pytest.fixture
def memory(monkeypatch):
  """Gives every device so many bytes."""

  def give(num_bytes):
    monkeypatch.setattr(chips, 'memory_bytes', lambda device: num_bytes)

  return give


def needed(config, model, num_slots):
  """Bytes on a device of the weights and of so many slots, as a run has them.

  Not of `slot_count`, but of the programs of a plan with that many slots.
  """
  config = make_config(
    sampling__slots=num_slots,
    sampling__kv_cache=config.sampling.kv_cache,
    sampling__weights=config.sampling.weights,
    sampling__mesh=config.sampling.mesh,
  )
  setup = build.for_sampling(make_setup(config), jax.devices()[:4])
  _, decode = plan_programs.sampling(setup)
  params, state, _ = decode.args
  assert decode.num_rows == num_slots
  weights = base_weights.device_bytes(params)
  if config.sampling.weights:
    # Those that are read stay beside those in 8 bits.
    weights += base_weights.device_bytes(setup.model.abstract)
  return weights, base_weights.device_bytes(state.cache)


def test_asked_slots_are_taken(memory):
  memory(2**20)
  assert slot_count.num_slots(*on_four(sampling__slots=7)) == 7


def test_without_a_memory_of_its_own_a_device_has_16(memory):
  assert chips.memory_bytes(jax.devices()[0]) is None
  assert slot_count.num_slots(*on_four()) == 16
  memory(None)
  assert slot_count.num_slots(*on_four()) == 16


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'sampling__kv_cache': 'int8'},
    {'sampling__weights': 'int8'},
    {'sampling__mesh': {'data': 1, 'fsdp': 2, 'tensor': 2}},
    {'sampling__mesh': {'data': 4, 'fsdp': 1, 'tensor': 1}},
  ],
)
def test_slots_fill_nine_tenths_of_the_memory(memory, changes):
  config, model = on_four(**changes)
  weights, cache = needed(config, model, 64)
  # Room for the weights, 200 slots and what waits.
  memory(round((weights + cache / 64 * 200) / 0.9))
  num_slots = slot_count.num_slots(config, model)
  weights, cache = needed(config, model, num_slots)
  memory_bytes = chips.memory_bytes(None)
  assert weights + cache < 0.9 * memory_bytes
  # Another tile in each part of the mesh would not, beside prompts that wait:
  # 1,024 tokens, of which the longest row has 120.
  parts = 4 // config.sampling.mesh.tensor
  waiting = 1024 // (120 * parts) * parts
  more = cache * (num_slots + 16 * parts + waiting) / num_slots
  assert weights + more > 0.9 * memory_bytes
  assert num_slots % (16 * parts) == 0
  assert build.make_engine(
    build.for_sampling(make_setup(config), jax.devices()[:4]), with_cot=True
  ).make_tracker().control.starts.shape == (num_slots,)


def test_never_fewer_than_a_tile_nor_more_than_a_host_looks_after(memory):
  config, model = on_four()
  memory(1)
  assert slot_count.num_slots(config, model) == 16 * 2
  memory(2**40)
  assert slot_count.num_slots(config, model) == 1024


def test_memory_of_a_chip_is_known_and_that_of_others_asked():
  tpu = python_types.SimpleNamespace(device_kind='TPU v6 lite')
  assert chips.memory_bytes(tpu) == int(31.25 * 2**30)
  gpu = python_types.SimpleNamespace(
    device_kind='NVIDIA H100', memory_stats=lambda: {'bytes_limit': 123}
  )
  assert chips.memory_bytes(gpu) == 123
