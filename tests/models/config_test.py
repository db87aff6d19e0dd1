import dataclasses
import json

import pytest

from tract_jax import types
from tract_jax.models import config as config_lib

LLAMA = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 64,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 16,
  'max_position_embeddings': 128,
  'rms_norm_eps': 1e-5,
  'rope_theta': 5e5,
  'rope_scaling': None,
  'tie_word_embeddings': False,
  'initializer_range': 0.02,
  'attention_bias': False,
  'attention_dropout': 0.0,
  'mlp_bias': False,
  'hidden_act': 'silu',
  'pretraining_tp': 1,
  'bos_token_id': 1,
  'eos_token_id': [2, 3],
  'torch_dtype': 'bfloat16',
  'use_cache': True,
  'transformers_version': '4.40.0',
}
MISTRAL = {
  **{k: v for k, v in LLAMA.items() if k not in ('attention_bias', 'mlp_bias')},
  'model_type': 'mistral',
  'sliding_window': 8,
}
LLAMA3_SCALING = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}


def test_reads_every_field():
  assert config_lib.config_from_hf(LLAMA) == config_lib.ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    norm_eps=1e-5,
    rope_theta=5e5,
  )


@pytest.mark.parametrize(
  ('hf_field', 'value', 'field'),
  [
    ('vocab_size', 65, 'vocab_size'),
    ('hidden_size', 64, 'hidden_size'),
    ('intermediate_size', 49, 'intermediate_size'),
    ('num_hidden_layers', 3, 'num_layers'),
    ('num_attention_heads', 8, 'num_heads'),
    ('num_key_value_heads', 4, 'num_kv_heads'),
    ('head_dim', 8, 'head_dim'),
    ('max_position_embeddings', 64, 'max_position_embeddings'),
    ('rms_norm_eps', 1e-6, 'norm_eps'),
    ('rope_theta', 1e4, 'rope_theta'),
    ('tie_word_embeddings', True, 'tie_word_embeddings'),
    ('initializer_range', 0.1, 'initializer_range'),
    ('attention_bias', True, 'attention_bias'),
    ('mlp_bias', True, 'mlp_bias'),
  ],
)
def test_a_changed_field_changes_its_own_alone(hf_field, value, field):
  base = config_lib.config_from_hf(LLAMA)
  changed = config_lib.config_from_hf({**LLAMA, hf_field: value})
  assert changed == dataclasses.replace(base, **{field: value})
  assert changed != base


def test_both_spellings_of_the_rotary_fields_agree():
  old = {**LLAMA, 'rope_scaling': LLAMA3_SCALING}
  new = {k: v for k, v in LLAMA.items() if not k.startswith('rope_')}
  new['rope_parameters'] = {**LLAMA3_SCALING, 'rope_theta': 5e5}
  config = config_lib.config_from_hf(new)
  assert config == config_lib.config_from_hf(old)
  assert config.rope_theta == 5e5
  assert config.rope_scaling == config_lib.Llama3Rope(8.0, 1.0, 4.0, 32)
  # A file written with both is fine while they say the same.
  both = {**old, 'rope_parameters': new['rope_parameters']}
  assert config_lib.config_from_hf(both) == config


def test_linear_scaling_in_the_oldest_spelling():
  config = config_lib.config_from_hf(
    {**LLAMA, 'rope_scaling': {'type': 'linear', 'factor': 4}}
  )
  assert config.rope_scaling == config_lib.LinearRope(4)


def test_absent_fields_have_the_values_of_transformers():
  transformers = pytest.importorskip('transformers')
  names = (
    'model_type',
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
  )
  for full, hf_type in (
    ({**LLAMA, 'num_attention_heads': 8}, transformers.LlamaConfig),
    ({**MISTRAL, 'num_attention_heads': 8}, transformers.MistralConfig),
  ):
    sparse = {name: full[name] for name in names}
    theirs = hf_type.from_dict(dict(sparse)).to_dict()
    assert config_lib.config_from_hf(sparse) == config_lib.config_from_hf(
      theirs
    )


@pytest.mark.parametrize('name', ['num_key_value_heads', 'head_dim'])
def test_null_sizes_follow_from_the_others(name):
  config = config_lib.config_from_hf({**LLAMA, name: None})
  expected = {'num_key_value_heads': 4, 'head_dim': 8}[name]
  field = {'num_key_value_heads': 'num_kv_heads', 'head_dim': 'head_dim'}[name]
  assert getattr(config, field) == expected


def test_mistral_window():
  assert config_lib.config_from_hf(MISTRAL).sliding_window == 8
  without = config_lib.config_from_hf({**MISTRAL, 'sliding_window': None})
  assert without.sliding_window is None


@pytest.mark.parametrize(
  ('base', 'field', 'value', 'words'),
  [
    (LLAMA, 'hidden_act', 'gelu', "hidden_act='gelu'"),
    (LLAMA, 'pretraining_tp', 2, 'pretraining_tp=2'),
    (LLAMA, 'attention_dropout', 0.1, 'attention_dropout=0.1'),
    (LLAMA, 'quantization_config', {'bits': 4}, "quantization_config={'bits'"),
    (LLAMA, 'partial_rotary_factor', 0.5, 'partial_rotary_factor=0.5'),
    (LLAMA, 'sliding_window', 8, 'sliding_window=8'),
    (LLAMA, 'num_local_experts', 8, 'num_local_experts=8'),
    (LLAMA, 'logit_scale', 0.5, 'logit_scale=0.5'),
    (LLAMA, 'rope_scaling', {'type': 'yarn'}, "rope_scaling.rope_type='yarn'"),
    (
      LLAMA,
      'rope_scaling',
      {**LLAMA3_SCALING, 'attention_factor': 2.0},
      'rope_scaling.attention_factor=2.0',
    ),
    (LLAMA, 'rope_scaling', {'type': 'linear'}, 'rope_scaling.factor is'),
    (
      LLAMA,
      'rope_scaling',
      {'type': 'linear', 'factor': 0},
      'rope_scaling.factor=0',
    ),
    (
      LLAMA,
      'rope_parameters',
      {'rope_theta': 1e6, 'rope_type': 'default'},
      'rope_parameters.rope_theta=1000000.0 and rope_theta=500000.0 contradict',
    ),
    (
      {**LLAMA, 'rope_scaling': LLAMA3_SCALING},
      'rope_parameters',
      {'rope_type': 'linear', 'factor': 8.0},
      'rope_parameters=LinearRope(factor=8.0) and rope_scaling=Llama3Rope',
    ),
    (LLAMA, 'model_type', 'qwen2', "model_type='qwen2'"),
    (LLAMA, 'num_key_value_heads', 3, 'num_kv_heads=3'),
    (LLAMA, 'num_attention_heads', 0, 'num_attention_heads=0'),
    (LLAMA, 'head_dim', 7, 'head_dim=7'),
    (LLAMA, 'vocab_size', '64', "vocab_size='64'"),
    (LLAMA, 'rms_norm_eps', 0, 'norm_eps=0'),
    (LLAMA, 'hidden_size', None, 'hidden_size is missing'),
    (MISTRAL, 'attention_bias', True, 'attention_bias=True'),
    (MISTRAL, 'sliding_window', 0, 'sliding_window=0'),
  ],
)
def test_what_is_not_supported_is_named(base, field, value, words):
  with pytest.raises(types.InputError) as error:
    config_lib.config_from_hf({**base, field: value})
  assert words in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_all_problems_are_reported_at_once():
  with pytest.raises(types.InputError) as error:
    config_lib.config_from_hf(
      {**LLAMA, 'hidden_act': 'relu', 'rope_scaling': {'type': 'dynamic'}}
    )
  assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize('value', [0, 0.0, None, False, '', [], {}])
def test_unknown_fields_at_neutral_values_are_accepted(value):
  config = config_lib.config_from_hf({**LLAMA, 'some_new_field': value})
  assert config == config_lib.config_from_hf(LLAMA)


@pytest.mark.parametrize(
  'hf_config',
  [
    LLAMA,
    MISTRAL,
    {**LLAMA, 'rope_scaling': LLAMA3_SCALING, 'attention_bias': True},
    {**MISTRAL, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
  ],
)
def test_round_trip_through_json_and_transformers(hf_config):
  transformers = pytest.importorskip('transformers')
  config = config_lib.config_from_hf(hf_config)
  written = json.loads(json.dumps(config_lib.config_to_hf(config)))
  assert config_lib.config_from_hf(written) == config
  hf_type = {
    'llama': transformers.LlamaConfig,
    'mistral': transformers.MistralConfig,
  }[written['model_type']]
  theirs = hf_type.from_dict(dict(written)).to_dict()
  assert config_lib.config_from_hf(theirs) == config


def test_a_window_with_biases_cannot_be_written():
  config = dataclasses.replace(
    config_lib.config_from_hf(LLAMA), sliding_window=4, mlp_bias=True
  )
  with pytest.raises(types.InputError, match='mlp_bias'):
    config_lib.config_to_hf(config)
