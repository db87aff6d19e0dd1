"""What is built from a configuration, on the demo's tiny world."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from tests.pipeline import tiny_model
from tract_jax import types
from tract_jax.data import loader as loader_lib
from tract_jax.data import packing
from tract_jax.models import lora
from tract_jax.pipeline import (
  base_weights,
  build,
  judge_file,
  methods,
  read_data,
  sample,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import objective as objective_lib


def make_setup(sampling=None, run=None, **model):
  overrides = {
    'data': {'source': 'synthetic', 'synthetic_train': 24, 'synthetic_test': 8},
    'model': {
      **tiny_model.SETTINGS,
      'num_layers': 2,
      **model,
    },
    'train': {'batch_size': 8, 'micro_batch_size': 4, 'lr': 1e-2},
    'mesh': {'data': 2, 'fsdp': 2, 'tensor': 2},
    'sampling': {'max_new_tokens': 4, **(sampling or {})},
    **(run or {}),
  }
  return build.build(config_lib.merge(overrides))


@pytest.fixture(scope='module')
def setup():
  return make_setup()


@pytest.fixture(scope='module')
def rows(setup):
  data = read_data.read_data(setup)
  return read_data.encode_for_stage(setup, data.train, 'annotator', [], 'rows')


def make_trainer(setup, rows, num_steps=3):
  objective = objective_lib.make_objective(setup.config, 'cot_raft')
  targets = loader_lib.static_size([make_loader(rows).max_targets], 8)
  return build.make_trainer(setup, objective, True, num_steps, targets)


def make_loader(rows):
  plan = packing.one_each(len(rows))
  return loader_lib.Loader(
    rows, plan, batch_size=8, length=64, seed=0, num_epochs=1
  )


def test_step_on_a_mesh_is_traced_once_and_learns(setup, rows):
  trainer = make_trainer(setup, rows)
  trainable, frozen = base_weights.init_params(setup.model, seed=0)
  state = trainer.init_state(trainable)
  batch = trainer.to_device(make_loader(rows).batch(0))
  assert batch.inputs.shape == (2, 4, 64)
  losses = []
  for _ in range(3):
    state, metrics = trainer.step(state, frozen, batch)
    losses.append(float(metrics.loss))
  assert trainer.step._cache_size() == 1
  assert losses[-1] < losses[0]
  assert int(state.step) == 3


@pytest.mark.parametrize('mapping', ['jit', 'pmap'])
def test_no_later_step_is_compiled(rows, mapping, caplog):
  setup = make_setup(
    run={
      'mapping': mapping,
      'mesh': {'data': 8, 'fsdp': 1, 'tensor': 1},
      'train': {'batch_size': 8},
    }
  )
  trainer = make_trainer(setup, rows)
  trainable, frozen = base_weights.init_params(setup.model, seed=0)
  state = trainer.init_state(trainable)
  numbers = []
  with jax.log_compiles():
    for step in range(3):
      batch = trainer.to_device(make_loader(rows).batch(step))
      state, _ = jax.block_until_ready(trainer.step(state, frozen, batch))
      lines = [r.getMessage() for r in caplog.records]
      numbers.append(sum('Finished XLA compilation' in x for x in lines))
  assert numbers[0] >= 1
  assert numbers == [numbers[0]] * 3


def test_every_leaf_of_the_state_keeps_its_sharding(setup, rows):
  trainer = make_trainer(setup, rows)
  trainable, frozen = base_weights.init_params(setup.model, seed=0)
  before = trainer.init_state(trainable)
  shardings = jax.tree.map(lambda x: x.sharding, before)
  mu = before.opt_state[1][0].mu['layers']['mlp']['up_proj']['weight']
  weight = trainable['layers']['mlp']['up_proj']['weight']
  assert mu.sharding == weight.sharding
  assert not weight.sharding.is_fully_replicated
  batch = trainer.to_device(make_loader(rows).batch(0))
  after, _ = trainer.step(before, frozen, batch)
  jax.tree.map(
    lambda x, s: np.testing.assert_equal(x.sharding, s), after, shardings
  )


def test_a_state_takes_the_memory_of_what_it_begins_with(setup, rows):
  trainer = make_trainer(setup, rows)
  trainable, _ = base_weights.init_params(setup.model, seed=0)
  state = trainer.init_state(trainable)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trainable))
  described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
  assert described == jax.tree.map(
    lambda x: (x.shape, x.dtype, x.sharding), trainer.abstract_state
  )


def test_adapters_alone_are_trained_with_lora(rows):
  setup = make_setup(lora_rank=4)
  trainable, frozen = base_weights.init_params(setup.model, seed=0)
  names = {
    jax.tree_util.keystr(path[-1:], simple=True)
    for path, _ in jax.tree_util.tree_leaves_with_path(trainable)
  }
  assert names == set(lora.LEAVES)
  trainer = make_trainer(setup, rows)
  old = np.array(trainable['layers']['mlp']['up_proj']['lora_b'])
  state = trainer.init_state(trainable)
  batch = trainer.to_device(make_loader(rows).batch(0))
  state, _ = trainer.step(state, frozen, batch)
  new = np.array(state.params['layers']['mlp']['up_proj']['lora_b'])
  assert not np.array_equal(new, old)


def test_seeds_give_other_weights_and_the_same_seed_the_same(setup):
  def embedding(seed):
    return np.array(
      base_weights.init_params(setup.model, seed)[0]['embed_tokens']['weight']
    )

  np.testing.assert_array_equal(embedding(1), embedding(1))
  assert not np.array_equal(embedding(1), embedding(2))


def test_mesh_that_does_not_fit_names_the_nearest():
  config = config_lib.merge(
    {'data': {'source': 'synthetic'}, 'mesh': {'data': 3, 'fsdp': 1}}
  )
  with pytest.raises(types.InputError, match='nearest valid sizes'):
    build.build(config)


def test_a_host_that_samples_has_a_mesh_of_its_own_devices():
  overrides = {'data': {'source': 'synthetic'}, 'train': {'batch_size': 3}}
  config = config_lib.merge(overrides)
  devices = jax.devices()[2:4]
  setup = build.build(config, trains=False, devices=devices)
  assert list(setup.model.mesh.devices.flat) == devices
  # What could not be trained on them can be sampled from.
  with pytest.raises(types.InputError, match='rows. of size 3'):
    build.build(config)


@pytest.mark.parametrize(
  ('sizes', 'sampling', 'expected'),
  [
    ({'fsdp': 8}, {}, (1, 8, 1)),
    ({'fsdp': 2, 'data': 4}, {}, (4, 2, 1)),
    ({'fsdp': -1}, {'fsdp': 1, 'tensor': 2, 'data': 4}, (4, 1, 2)),
    ({'fsdp': -1}, {'fsdp': 1, 'data': -1}, (8, 1, 1)),
  ],
)
def test_sampling_has_the_mesh_of_training_or_its_own(
  sizes, sampling, expected
):
  overrides = {
    'data': {'source': 'synthetic'},
    'mesh': sizes,
    'sampling': {'mesh': sampling},
  }
  setup = build.build(config_lib.merge(overrides))
  sampler = build.for_sampling(setup)
  assert tuple(sampler.model.mesh.shape.values()) == expected
  assert (sampler is setup) == (not sampling)


def test_system_prompt_is_part_of_the_tokenizer_and_its_place_is_said(capsys):
  overrides = {'data': {'source': 'synthetic'}, 'model': {'lora_rank': 0}}
  plain = build.build(config_lib.merge(overrides))
  assert 'system_prompt' not in capsys.readouterr().out
  overrides['data']['system_prompt'] = 'Be strict.'
  config = config_lib.merge(overrides)
  setup = build.build(config)
  assert setup.tokenizer.system_prompt == 'Be strict.'
  assert setup.tokenizer.digest() != plain.tokenizer.digest()
  assert 'system_prompt' not in capsys.readouterr().out
  bare = copy.deepcopy(plain.tokenizer)
  bare.hf.chat_template = None
  setup = build.join(config, bare, plain.model, plain.as_is)
  assert setup.tokenizer.system_prompt == 'Be strict.'
  said = capsys.readouterr().out
  assert said.count('config.data.system_prompt: the model has no system') == 1


@pytest.mark.parametrize(
  'sampling', [{'weights': 'int8'}, {'kv_cache': 'int8'}]
)
def test_8_bits_change_scores_a_little(setup, sampling):
  params = lora.merge(*base_weights.init_params(setup.model, 0))
  examples = read_data.read_data(setup).train

  def samples(of_setup):
    sampler = sample.Sampler(of_setup, lambda: False)
    return sampler.cots(params, examples, 1, seed=0, purpose='test')

  pairs = zip(samples(setup), samples(make_setup(sampling)), strict=True)
  same = [
    (a.score_probs, b.score_probs)
    for a, b in pairs
    if a.tokens.tolist() == b.tokens.tolist()
  ]
  # A draw on the border of two tokens may tip.
  assert len(same) > len(examples) / 2
  plain, rounded = map(np.stack, zip(*same, strict=True))
  assert 1e-7 < np.abs(rounded - plain).max() < 0.02 * plain.max()


def test_numbers_of_the_optimizer_are_the_configs(monkeypatch):
  numbers = {
    'lr': 0.25,
    'warmup_fraction': 0.5,
    'b1': 0.6,
    'b2': 0.8,
    'eps': 0.1,
    'weight_decay': 0.3,
    'clip_norm': 0.5,
  }
  setup = make_setup(run={'train': {'batch_size': 8, **numbers}})
  made, make = [], build.optimizer_lib.make_optimizer

  def recording(config, num_steps):
    made.append((config, num_steps))
    return make(config, num_steps)

  monkeypatch.setattr(build.optimizer_lib, 'make_optimizer', recording)
  objective = objective_lib.make_objective(setup.config, 'cot_raft')
  build.make_trainer(setup, objective, True, 7, 8)
  ((config, num_steps),) = made
  assert (vars(config), num_steps) == (numbers, 7)


def test_numbers_of_sampling_are_the_configs(monkeypatch):
  given = {
    'temperature': 0.5,
    'top_k': 7,
    'top_p': 0.8,
    'repetition_penalty': 1.5,
    'max_new_tokens': 4,
  }
  setup = make_setup(given)
  made: list = []
  monkeypatch.setattr(
    build.engine_lib,
    'Engine',
    lambda unused_fns, sampling, *_, **__: made.append(sampling),
  )
  for with_cot in (True, False):
    build.make_engine(setup, with_cot)
  assert [vars(one) for one in made] == [given] * 2


def test_methods_of_a_run_predict_as_they_are_trained():
  setup = make_setup(run={'train': {'batch_size': 8, 'expectation': 'grid'}})
  assert setup.methods['raft'].predictor == 'rail_normalized'
  assert judge_file.from_run(setup.config, 'raft').predictor == (
    'rail_normalized'
  )
  own = methods.Method((), 'median', True)
  setup = dataclasses.replace(setup, as_is={'zero_shot': own})
  assert setup.methods['zero_shot'] is own
  assert make_setup().methods == methods.METHODS
