"""As many slots as the chips have memory for."""

import dataclasses
import math
import types as python_types

import jax
import pytest

from tests.pipeline import self_cot_test
from tests.pipeline.plan_programs_test import make_config, make_setup
from tract_jax import types
from tract_jax.models import lora
from tract_jax.parallel import chips, partition
from tract_jax.pipeline import (
  base_weights,
  build,
  plan_programs,
  plan_trials,
  read_data,
  sample,
  slot_count,
)


def on_four(**changes):
  """A setup to sample with on four devices, where no slots are asked for."""
  config = make_config(**{'sampling__slots': 0, **changes})
  return build.for_sampling(make_setup(config), jax.devices()[:4])


def slots_of(setup):
  return slot_count.num_slots(setup.config, setup.model, setup.cot_scores)


@pytest.fixture
def memory(monkeypatch):
  """Gives every device so many bytes."""

  def give(num_bytes):
    monkeypatch.setattr(chips, 'memory_bytes', lambda device: num_bytes)

  return give


def needed(setup, num_slots):
  """Bytes on a device of weights, of their copy, and of so many slots' cache.

  Not of `slot_count`, but of the programs of a plan with that many slots.
  """
  config = plan_trials.changed(setup.config, {'sampling.slots': num_slots})
  planned = build.for_sampling(make_setup(config), jax.devices()[:4])
  _, decode = plan_programs.sampling(planned)
  params, state, _ = decode.args
  assert decode.num_rows == num_slots
  weights = partition.device_bytes(params)
  if config.sampling.weights:
    # Those that are read stay beside those in 8 bits.
    weights += partition.device_bytes(planned.model.abstract)
  return weights, partition.device_bytes(state.cache)


def test_asked_slots_are_taken(memory):
  memory(2**20)
  assert slots_of(on_four(sampling__slots=7)) == 7


def test_without_a_memory_of_its_own_a_device_has_16(memory):
  assert chips.memory_bytes(jax.devices()[0]) is None
  assert slots_of(on_four()) == 16
  memory(None)
  assert slots_of(on_four()) == 16


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'sampling__kv_cache': 'int8'},
    {'sampling__weights': 'int8'},
    {'sampling__mesh': {'data': 1, 'fsdp': 2, 'tensor': 2}},
    {'sampling__mesh': {'data': 4, 'fsdp': 1, 'tensor': 1}},
    # Every device has the one head of keys and values.
    {'model__num_heads': 4, 'model__num_kv_heads': 1},
    {
      'mapping': 'pmap',
      'mesh': {'data': 8, 'fsdp': 1, 'tensor': 1},
      'sampling__mesh': {'data': 4, 'fsdp': 1, 'tensor': 1},
    },
  ],
)
def test_slots_fill_nine_tenths_of_the_memory(memory, changes):
  setup = on_four(**changes)
  weights, cache = needed(setup, 64)
  # Room for the weights, for prompts that wait (1,024 tokens, of which the
  # longest row has 120), and for nearly 14 tiles of slots.
  parts = 4 // setup.config.sampling.mesh.tensor
  waiting = 1024 // (120 * parts) * parts
  logits = setup.model.fns.vocab_size * 13 / parts
  room = cache / 64 * (waiting + 223) + logits * 223
  memory(math.ceil((weights + room) / 0.9))
  num_slots = slots_of(setup)
  assert num_slots == 223 // (16 * parts) * (16 * parts)
  engine = build.make_engine(setup, with_cot=True)
  assert engine.num_slots == num_slots
  assert engine.make_tracker().control.starts.shape == (num_slots,)


def test_logits_of_a_tree_of_scores_take_their_part(memory):
  setup = on_four()
  tree = types.TokenTree((5,) * 200, (0,) * 200, ((5, 6),), ((0, 1),))
  scores = dataclasses.replace(setup.cot_scores, tree=tree)
  weights, cache = needed(setup, 64)
  # Each of the two parts of the mesh has half of the slots. Node 0 of the tree
  # is the token before the scores.
  cache /= 32
  logits = setup.model.fns.vocab_size * (1 + 4 * 2 * 201)
  for wanted, num_slots in ((47.9, 32), (48.1, 48)):
    room = 1024 // 240 * cache + wanted * (cache + logits)
    memory(math.ceil((weights + room) / 0.9))
    found = slot_count.num_slots(setup.config, setup.model, scores)
    assert found == 2 * num_slots


def test_never_fewer_than_one_nor_more_than_a_host_looks_after(memory):
  setup = on_four()
  memory(1)
  assert slots_of(setup) == 2
  memory(2**40)
  assert slots_of(setup) == 1024


def test_less_than_a_tile_is_what_fits(memory):
  setup = on_four()
  weights, cache = needed(setup, 64)
  waiting = 1024 // 240
  per_slot = cache / 64 * 2 + setup.model.fns.vocab_size * 13
  room = waiting * cache / 64 * 2 + 5.5 * per_slot
  memory(round((weights + room) / 0.9))
  assert slots_of(setup) == 5 * 2


def test_memory_of_a_chip_is_known_and_that_of_others_asked():
  tpu = python_types.SimpleNamespace(device_kind='TPU v6 lite')
  assert chips.memory_bytes(tpu) == int(31.25 * 2**30)
  for stats, known in (({'bytes_limit': 123}, 123), ({}, None), (None, None)):
    gpu = python_types.SimpleNamespace(
      device_kind='NVIDIA H100', memory_stats=lambda stats=stats: stats
    )
    assert chips.memory_bytes(gpu) == known


def test_what_was_chosen_is_said_before_anything_is_sampled(capsys):
  setup = self_cot_test.make_setup()
  params = lora.merge(*base_weights.init_params(setup.model, 0))
  examples = read_data.read_data(setup).train[:1]
  sampler = sample.Sampler(setup, lambda: False)
  assert not capsys.readouterr().out.count('slots')
  stream = sampler.chunks(params, [examples], 1, seed=0, purpose='test')
  next(stream)
  line = 'sampling: at most 16 slots (config.sampling.slots=0)\n'
  assert capsys.readouterr().out == line
