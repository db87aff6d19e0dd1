"""What makes an artefact another one, and what does not."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipeline.build_test import make_setup
from tract_jax.pipeline import build, fingerprint

ANOTHER = {
  bool: lambda value: not value,
  int: lambda value: value + 1,
  float: lambda value: value + 1.0,
  str: lambda value: f'{value}?',
  tuple: lambda value: (*value, 1.0),
}


def changed(setup, section, key, value):
  config = setup.config.copy_and_resolve_references()
  with config.unlocked():
    config[section][key] = value
  return build.Setup(**{**vars(setup), 'config': config})


def test_numbers_that_change_the_result_are_in_it_and_speed_is_not():
  setup = make_setup()
  fields = fingerprint.train_fields(setup, 'cot_raft')
  for key, value in setup.config.train.items():
    other = changed(setup, 'train', key, ANOTHER[type(value)](value))
    differs = fingerprint.train_fields(other, 'cot_raft') != fields
    without_effect = key in (
      'micro_batch_size', 'logit_chunk', 'log_every', 'checkpoint_every',
      'max_checkpoints', 'lambda_candidates', 'release_device_batch',
      'release_accumulation',
    )  # fmt: skip
    assert differs != without_effect, key


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('model.dtype', 'bfloat16'),
    ('model.lora_alpha', 3.0),
    ('model.lora_targets', ('q_proj',)),
    ('model.base_quantization', 'int8'),
    ('score.grid', (1.0, 2.0)),
    ('score.format', '{:.1f}'),
    ('score.marker', 'So'),
    ('data.max_length', 99),
    ('data.too_long', 'drop'),
  ],
)
def test_each_key_is_told_by_its_name(key, value):
  setup = make_setup()

  def fields(setup):
    return fingerprint.model_fields(setup) | fingerprint.train_fields(
      setup, 'ce'
    )

  before, after = fields(setup), fields(changed(setup, *key.split('.'), value))
  assert {name for name in before if before[name] != after[name]} == {key}


def test_how_the_model_is_computed_is_not_in_it():
  setup = make_setup()
  for key in ('attention', 'remat'):
    other = changed(setup, 'model', key, 'other')
    assert fingerprint.model_fields(other) == fingerprint.model_fields(setup)


def test_numbers_that_change_cots_are_in_it_by_name_and_speed_is_not():
  setup = make_setup()
  speed = {'slots', 'steps_per_call', 'prefill_tokens', 'mesh'}
  of_dataset = {'num_self_cots'}
  for make_fields, unused in (
    (fingerprint.sampling_fields, speed | of_dataset),
    (fingerprint.self_cot_fields, speed),
  ):
    fields = make_fields(setup)
    for key, value in setup.config.sampling.items():
      other = {'tensor': 2} if key == 'mesh' else ANOTHER[type(value)](value)
      found = make_fields(changed(setup, 'sampling', key, other))
      wanted = {} if key in unused else {f'sampling.{key}': other}
      assert found == fields | wanted, key


def test_scores_that_are_only_read_depend_on_length_and_chunks_alone():
  setup = make_setup()
  fields = fingerprint.sampling_fields(setup, with_cot=False)
  assert set(fields) == {
    'data.max_length',
    'sampling.max_new_tokens',
    'sampling.chunk_size',
  }
  assert fields.items() <= fingerprint.sampling_fields(setup).items()


def test_packing_and_its_row_length_decide_what_an_update_sees():
  setup = make_setup()
  packed = changed(setup, 'data', 'packing', True)
  before = fingerprint.train_fields(packed, 'ce')
  assert before != fingerprint.train_fields(setup, 'ce')
  for base, same in ((setup, True), (packed, False)):
    before = fingerprint.train_fields(base, 'ce')
    other = changed(base, 'data', 'length_multiple', 7)
    assert (fingerprint.train_fields(other, 'ce') == before) == same


def test_lambda_makes_no_other_cross_entropy():
  setup = make_setup()
  other = changed(setup, 'train', 'lambda_value', 5.0)
  for objective, same in (('ce', True), ('raft', True), ('cot_raft', False)):
    before = fingerprint.train_fields(setup, objective)
    assert (fingerprint.train_fields(other, objective) == before) == same


def test_score_loss_makes_no_other_cross_entropy():
  setup = make_setup()
  for key, value in (('score_loss', 'crps'), ('expectation', 'grid')):
    other = changed(setup, 'train', key, value)
    for objective, same in (('ce', True), ('raft', False), ('cot_raft', False)):
      before = fingerprint.train_fields(setup, objective)
      assert (fingerprint.train_fields(other, objective) == before) == same


def test_the_releases_batch_matters_in_its_scale_alone():
  setup = make_setup()
  scaled = changed(setup, 'train', 'score_scale', 'release')
  for base, same in ((setup, True), (scaled, False)):
    other = changed(base, 'train', 'release_accumulation', 2)
    before = fingerprint.train_fields(base, 'cot_raft')
    assert (fingerprint.train_fields(other, 'cot_raft') == before) == same


def test_what_prompts_are_made_by_is_told_by_name():
  setup = make_setup()
  fields = fingerprint.model_fields(setup)
  for key, value in (
    ('template', '{response}'),
    ('use_reference', False),
    ('system_prompt', 'Be fair.'),
    ('fields', 'score=human_score'),
  ):
    other = fingerprint.model_fields(changed(setup, 'data', key, value))
    assert other == fields | {f'data.{key}': value}


def test_architecture_and_adapters_tell_models_apart():
  fields = fingerprint.model_fields(make_setup())
  assert fingerprint.model_fields(make_setup()) == fields
  wider = fingerprint.model_fields(make_setup(intermediate_size=32))
  assert wider['seed_model'] != fields['seed_model']
  adapted = fingerprint.model_fields(make_setup(lora_rank=2))
  assert adapted['model.lora_rank'] == 2


def test_weight_files_tell_models_apart(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  weights = np.zeros(40 << 20, np.uint8)
  (tmp_path / 'model.safetensors').write_bytes(weights.tobytes())
  before = fingerprint._weight_files(tmp_path)
  # Another fine-tune of one base differs in its layers, not in its header.
  weights[20 << 20 : 21 << 20] = 1
  (tmp_path / 'model.safetensors').write_bytes(weights.tobytes())
  assert fingerprint._weight_files(tmp_path) != before


def test_digest_of_params_sees_every_bit_name_and_dtype():
  params = {'a': jnp.ones(3), 'b': None}
  digest = fingerprint.params_digest(params)
  assert fingerprint.params_digest({'a': jnp.ones(3), 'b': None}) == digest
  for other in (
    {'a': jnp.ones(3).at[1].add(1e-6)},
    {'c': jnp.ones(3)},
    {'a': jnp.ones(3, jnp.bfloat16)},
    {'a': np.ones((3, 1), np.float32)},
  ):
    assert fingerprint.params_digest(other) != digest
