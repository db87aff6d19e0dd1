"""The programs of a plan are those of a run, shape by shape."""

import jax
import numpy as np
import pytest

from tests.pipeline import build_test, fake_gcs
from tract_jax import types
from tract_jax.parallel import partition
from tract_jax.pipeline import base_weights, build, plan_programs, plan_trials
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import methods as methods_lib

STAGE = methods_lib.METHODS['tract'].stages[0]


def make_config(**changes):
  config = config_lib.merge(
    {
      'data': {'source': 'synthetic', 'max_length': 100, 'length_multiple': 16},
      'model': {'lora_rank': 0},
      'train': {'batch_size': 16, 'micro_batch_size': 8},
      'sampling': {
        'max_new_tokens': 20,
        'slots': 16,
        'mesh': {'data': 2, 'fsdp': 1, 'tensor': 2},
      },
      'plan': {'prompt_tokens': 90, 'cot_tokens': 10},
    }
  )
  return plan_trials.changed(
    config, {key.replace('__', '.'): v for key, v in changes.items()}
  )


def make_setup(config):
  architecture = plan_programs.read_architecture(config.model)
  return plan_programs.make_setup(config, jax.devices(), architecture)


def make_programs(**changes):
  config = make_config(**changes)
  setup = make_setup(config)
  train = plan_programs.training(setup, 'train_stage1', STAGE, 10)
  on_host = build.for_sampling(setup, jax.devices()[:4])
  return train, *plan_programs.sampling(on_host)


@pytest.fixture(scope='module')
def programs():
  return make_programs()


def described(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


def test_training_step_is_given_what_a_run_gives_it():
  setup = build_test.make_setup()
  planned = plan_programs.training(setup, 'train_stage1', STAGE, 3)
  state, frozen, batch = planned.args
  trainer = build.make_trainer(
    setup, build_test.objective_lib.make_objective(setup.config, 'cot_raft'),
    True, 3, 8,
  )  # fmt: skip
  trainable, real_frozen = base_weights.init_params(setup.model, 0)
  real = trainer.init_state(trainable)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), real)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
  assert described(frozen) == described(real_frozen)
  rows = jax.tree.map(
    lambda x: np.zeros((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype), batch
  )
  assert described(batch) == described(trainer.to_device(rows))


def test_sampler_is_given_what_a_run_gives_it(programs):
  _, prefill, decode = programs
  setup = make_setup(make_config())
  setup = build.for_sampling(setup, jax.devices()[:4])
  engine = build.make_engine(setup, with_cot=True)
  params = jax.jit(
    setup.model.fns.init,
    out_shardings=jax.tree.map(lambda x: x.sharding, setup.model.abstract),
  )(jax.random.key(0))
  _, state, control = decode.args
  num_slots, cache_length = len(control.starts), state.cache.length
  real = engine.fns.empty_state(params, num_slots, cache_length)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), real
  )
  same = jax.tree.map(
    lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, real
  )
  assert all(jax.tree.leaves(same))
  # Rows of 100 and 20 tokens; prompts of 90 in a bucket of 96.
  assert cache_length == 128
  assert prefill.args[1].shape[1] == 96
  assert decode.num_rows == 16
  assert decode.num_steps == make_config().sampling.steps_per_call


def test_plan_keys_change_the_programs(programs):
  train, prefill, decode = programs
  _, longer, fuller = make_programs(plan__prompt_tokens=30)
  assert (longer.args[1].shape[1], prefill.args[1].shape[1]) == (32, 96)
  assert fuller.ideal_bytes < decode.ideal_bytes
  _, _, more = make_programs(plan__cot_tokens=30)
  assert more.ideal_bytes > decode.ideal_bytes
  packed, *_ = make_programs(data__packing=True, plan__prompt_tokens=30)
  assert packed.args[2].target_probs.shape[2] == 2
  assert train.args[2].target_probs.shape[2] == 1


def test_tokens_and_operations_are_of_all_rows(programs):
  train, _, _ = programs
  half, *_ = make_programs(train__batch_size=8)
  assert train.num_rows == 16
  assert train.num_tokens == 16 * 112
  assert train.ideal_flops == 2 * half.ideal_flops
  assert train.args[2].inputs.shape == (2, 8, 112)


def test_8_bit_weights_are_planned_as_such(programs):
  _, _, decode = programs
  _, _, small = make_programs(sampling__weights='int8')
  dtypes = {x.dtype for x in jax.tree.leaves(small.args[0])}
  assert np.dtype(np.int8) in dtypes
  assert small.ideal_bytes < decode.ideal_bytes
  # They are made of whole ones, which stay.
  whole = partition.device_bytes(decode.args[0])
  assert small.resident_bytes == decode.resident_bytes + whole
  assert all(x.sharding for x in jax.tree.leaves(small.args[0]))


def test_model_of_a_known_name_needs_no_file():
  config = make_config(
    model__path='mistralai/Mistral-7B-Instruct-v0.2',
    model__lora_rank=8,
    model__dtype='bfloat16',
    data__source='files',
  )
  setup = make_setup(config)
  assert setup.model.config.num_layers == 32
  assert setup.tokenizer.vocab_size == 32000
  size = sum(x.size for x in jax.tree.leaves(setup.model.stored))
  assert 7.24e9 < size < 7.28e9
  weights = partition.device_bytes(setup.model.abstract)
  # The adapters' second halves are not split.
  assert weights == pytest.approx(7.24e9 * 2 / 8, rel=0.04)


def write_config(folder):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(
    '{"model_type": "llama", "vocab_size": 512, "hidden_size": 32,'
    ' "intermediate_size": 64, "num_hidden_layers": 3,'
    ' "num_attention_heads": 4, "max_position_embeddings": 256}'
  )


def test_model_of_a_folder_has_its_numbers(tmp_path):
  write_config(tmp_path)
  config = make_config(model__path=str(tmp_path), data__source='files')
  setup = make_setup(config)
  assert setup.model.config.num_layers == 3
  with pytest.raises(types.InputError, match='no such folder, and the numbers'):
    make_setup(plan_trials.changed(config, {'model.path': 'nowhere/at-all'}))


def test_model_of_a_bucket_has_its_numbers_whatever_its_name(
  tmp_path, monkeypatch
):
  folder = tmp_path / 'models' / 'Mistral-7B-Instruct-v0.2'
  write_config(folder)
  (folder / 'model.safetensors').write_bytes(b'weights')
  config = make_config(
    model__path='gs://models/Mistral-7B-Instruct-v0.2', data__source='files'
  )
  with fake_gcs.serve(tmp_path, monkeypatch) as server:
    setup = make_setup(config)
    assert setup.model.config.num_layers == 3
    # No weight is read.
    assert {name.rpartition('/')[2] for name, _ in server.reads} == {
      'config.json'
    }
    config = plan_trials.changed(
      config, {'model.path': 'gs://models/Llama-3.1-8B-Instruct'}
    )
    with pytest.raises(types.InputError, match='gs://models/Llama.*not there'):
      make_setup(config)
