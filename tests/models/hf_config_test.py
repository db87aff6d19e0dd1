"""config.json of each model type gives the architecture transformers builds."""

import dataclasses
import json

import pytest

from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import hf_config as hf_config_lib

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
_BASE = {
  k: v for k, v in LLAMA.items() if k not in ('attention_bias', 'mlp_bias')
}
MISTRAL = {**_BASE, 'model_type': 'mistral', 'sliding_window': 8}
QWEN2 = {
  **{k: v for k, v in _BASE.items() if k not in ('head_dim', 'pretraining_tp')},
  'model_type': 'qwen2',
  'use_sliding_window': False,
  'sliding_window': 8,
  'max_window_layers': 1,
  'use_mrope': False,
}
QWEN3 = {
  **QWEN2,
  'model_type': 'qwen3',
  'head_dim': 16,
  'attention_bias': False,
}
MODELS = {'llama': LLAMA, 'mistral': MISTRAL, 'qwen2': QWEN2, 'qwen3': QWEN3}

LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}
YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32,
}
# As Qwen2 and Qwen3 ask for a window in every layer.
WINDOWED = {'use_sliding_window': True, 'max_window_layers': 0}


def from_hf(base, **changes):
  return hf_config_lib.config_from_hf({**base, **changes})


def error_of(base, **changes):
  """The one line with which a config is refused."""
  with pytest.raises(types.InputError) as error:
    from_hf(base, **changes)
  assert len(str(error.value).splitlines()) == 1
  return str(error.value)


def test_reads_every_field():
  assert from_hf(LLAMA) == config_lib.ModelConfig(
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


@pytest.mark.parametrize('family', MODELS)
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
  ],
)
def test_a_changed_field_changes_its_own_alone(family, hf_field, value, field):
  full = {'head_dim': 16, **MODELS[family]}
  base, changed = from_hf(full), from_hf(full, **{hf_field: value})
  assert changed == dataclasses.replace(base, **{field: value})
  assert changed != base


def test_what_sets_the_families_apart():
  def marks(config):
    return (
      config.qkv_bias,
      config.output_bias,
      config.mlp_bias,
      config.qk_norm,
      config.sliding_window,
    )

  no, yes = False, True
  assert marks(from_hf(LLAMA)) == (no, no, no, no, None)
  assert marks(from_hf(LLAMA, attention_bias=True)) == (yes, yes, no, no, None)
  assert marks(from_hf(LLAMA, mlp_bias=True)) == (no, no, yes, no, None)
  assert marks(from_hf(MISTRAL)) == (no, no, no, no, 8)
  assert marks(from_hf(MISTRAL, sliding_window=None)) == (no, no, no, no, None)
  assert marks(from_hf(QWEN2)) == (yes, no, no, no, None)
  assert marks(from_hf(QWEN2, **WINDOWED)) == (yes, no, no, no, 8)
  assert marks(from_hf(QWEN3)) == (no, no, no, yes, None)
  assert marks(from_hf(QWEN3, attention_bias=True)) == (yes, yes, no, yes, None)
  assert marks(from_hf(QWEN3, **WINDOWED)) == (no, no, no, yes, 8)


@pytest.mark.parametrize('family', MODELS)
def test_absent_fields_have_the_values_of_transformers(family):
  transformers = pytest.importorskip('transformers')
  hf_type = getattr(transformers, f'{family.capitalize()}Config')
  # Every default of a family, with sizes that go with all of them.
  sparse = {
    'model_type': family,
    'vocab_size': 64,
    'hidden_size': 128,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 64,
  }
  theirs = hf_type.from_dict(dict(sparse)).to_dict()
  config = from_hf(sparse)
  assert config == from_hf(theirs)
  # to_dict leaves nothing to a default of ours.
  assert config.num_kv_heads == theirs['num_key_value_heads']
  assert config.norm_eps == theirs['rms_norm_eps']
  assert config.max_position_embeddings == theirs['max_position_embeddings']
  assert config.rope_theta == theirs['rope_parameters']['rope_theta']
  assert config.tie_word_embeddings == theirs['tie_word_embeddings']
  assert config.initializer_range == theirs['initializer_range']
  assert config.head_dim == theirs.get('head_dim', 2)


@pytest.mark.parametrize('family', MODELS)
def test_null_sizes_follow_from_the_others(family):
  base = MODELS[family]
  assert from_hf(base, num_key_value_heads=None).num_kv_heads == 4
  if family == 'qwen3':
    assert 'config.json: head_dim=None' in error_of(base, head_dim=None)
  else:
    assert from_hf(base, head_dim=None).head_dim == 8


# Windows of Qwen2 and Qwen3.

SLIDING, FULL = 'sliding_attention', 'full_attention'


@pytest.mark.parametrize('base', [QWEN2, QWEN3], ids=['qwen2', 'qwen3'])
@pytest.mark.parametrize(
  ('fields', 'window'),
  [
    ({}, None),
    ({'use_sliding_window': True, 'max_window_layers': 2}, None),
    ({'use_sliding_window': True, 'max_window_layers': 28}, None),
    ({'use_sliding_window': True, 'sliding_window': None}, None),
    (WINDOWED, 8),
    ({'use_sliding_window': True, 'layer_types': [SLIDING, SLIDING]}, 8),
    ({'use_sliding_window': True, 'layer_types': [FULL, FULL]}, None),
    ({'layer_types': [FULL, FULL], 'sliding_window': None}, None),
  ],
)
def test_windows_are_those_of_transformers(base, fields, window):
  assert from_hf(base, **fields).sliding_window == window
  transformers = pytest.importorskip('transformers')
  hf_type = getattr(transformers, f'{base["model_type"].capitalize()}Config')
  theirs = hf_type.from_dict({**base, **fields})
  kind = FULL if window is None else SLIDING
  assert theirs.layer_types == [kind, kind]
  assert from_hf(theirs.to_dict()).sliding_window == window


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (
      {'use_sliding_window': True},
      'max_window_layers=1: 1 of 2 layers have a sliding window; only all or',
    ),
    (
      {'use_sliding_window': True, 'layer_types': [FULL, SLIDING]},
      'layer_types: 1 of 2 layers have a sliding window; only all or none',
    ),
    (
      {'layer_types': [SLIDING, SLIDING]},
      'layer_types: sliding_attention, but use_sliding_window=False',
    ),
    (
      {'layer_types': [FULL, 'chunked_attention']},
      'layer_types: a layer is neither full_attention nor sliding_attention',
    ),
    ({'layer_types': [FULL]}, 'layer_types: must be a list of 2 names'),
    ({'layer_types': FULL}, 'layer_types: must be a list of 2 names'),
    ({'use_sliding_window': 'false'}, "use_sliding_window='false': must be a"),
    (
      {'use_sliding_window': True, 'max_window_layers': None},
      'max_window_layers=None: must be a whole number',
    ),
    ({**WINDOWED, 'sliding_window': 0}, 'config.json: sliding_window=0'),
  ],
)
def test_other_windows_are_refused(fields, words):
  assert words in error_of(QWEN2, **fields)


# What is not supported.


@pytest.mark.parametrize(
  ('base', 'field', 'value', 'words'),
  [
    (LLAMA, 'hidden_act', 'gelu', "hidden_act='gelu'"),
    (LLAMA, 'pretraining_tp', 2, 'pretraining_tp=2'),
    # With it, transformers attends both ways; False is not neutral here.
    (LLAMA, 'is_causal', False, 'is_causal=False'),
    (QWEN3, 'is_causal', None, 'is_causal=None'),
    (LLAMA, 'attention_dropout', 0.1, 'attention_dropout=0.1'),
    (LLAMA, 'quantization_config', {'bits': 4}, "quantization_config={'bits'"),
    (LLAMA, 'auto_map', {'AutoModel': 'm.M'}, "auto_map={'AutoModel'"),
    (LLAMA, 'partial_rotary_factor', 0.5, 'partial_rotary_factor=0.5'),
    (LLAMA, 'sliding_window', 8, 'sliding_window=8'),
    (LLAMA, 'layer_types', [SLIDING] * 2, "layer_types=['sliding"),
    (LLAMA, 'num_local_experts', 8, 'num_local_experts=8'),
    (LLAMA, 'logit_scale', 0.5, 'logit_scale=0.5'),
    (LLAMA, 'rope_interleaved', True, 'rope_interleaved=True'),
    (LLAMA, 'model_type', 'phi3', "model_type='phi3'"),
    (LLAMA, 'model_type', ['llama'], "model_type=['llama']"),
    (LLAMA, 'num_key_value_heads', 3, 'num_key_value_heads=3: must divide'),
    (LLAMA, 'num_attention_heads', 0, 'num_attention_heads=0'),
    (LLAMA, 'head_dim', 7, 'head_dim=7'),
    (LLAMA, 'vocab_size', '64', "vocab_size='64'"),
    (LLAMA, 'rms_norm_eps', 0, 'config.json: rms_norm_eps=0'),
    (LLAMA, 'attention_bias', 'x', "config.json: attention_bias='x'"),
    (LLAMA, 'num_hidden_layers', 10**12, 'config.json: num_hidden_layers=1000'),
    (LLAMA, 'hidden_size', None, 'hidden_size is missing'),
    (MISTRAL, 'attention_bias', True, 'attention_bias=True'),
    (MISTRAL, 'mlp_bias', True, 'mlp_bias=True'),
    (MISTRAL, 'sliding_window', 0, 'sliding_window=0'),
    (QWEN2, 'attention_bias', True, 'attention_bias=True'),
    (QWEN2, 'num_experts', 8, 'num_experts=8'),
    (QWEN2, 'use_mrope', True, 'use_mrope=True'),
    (QWEN3, 'mlp_bias', True, 'mlp_bias=True'),
  ],
)
def test_what_is_not_supported_is_named(base, field, value, words):
  assert words in error_of(base, **{field: value})


def test_all_problems_are_reported_at_once():
  with pytest.raises(types.InputError) as error:
    from_hf(LLAMA, hidden_act='relu', rope_scaling={'type': 'longrope'})
  assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize('value', [0, 0.0, None, False, '', [], {}])
def test_unknown_fields_at_neutral_values_are_accepted(value):
  assert from_hf(LLAMA, some_new_field=value) == from_hf(LLAMA)


@pytest.mark.parametrize(
  'fields',
  [
    {'max_sequence_length': 2048, 'pad_token_id': -1},
    {'is_causal': True},
    {'hidden_act': 'swish'},
    {'dtype': 'float32', 'tokenizer_class': 'LlamaTokenizer'},
    {'do_sample': True, 'temperature': 0.9, 'top_p': 0.6, 'max_length': 4096},
  ],
)
def test_fields_without_effect_are_accepted(fields):
  assert from_hf(LLAMA, **fields) == from_hf(LLAMA)


# Writing.


@pytest.mark.parametrize(
  ('base', 'changes', 'family'),
  [
    (LLAMA, {}, 'llama'),
    (LLAMA, {'rope_scaling': LLAMA3, 'attention_bias': True}, 'llama'),
    (LLAMA, {'mlp_bias': True, 'rope_scaling': YARN}, 'llama'),
    (LLAMA, {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, 'llama'),
    (MISTRAL, {}, 'mistral'),
    (MISTRAL, {'rope_scaling': {'type': 'linear', 'factor': 2.0}}, 'mistral'),
    (MISTRAL, {'sliding_window': None}, 'llama'),
    (QWEN2, {}, 'qwen2'),
    (QWEN2, {'head_dim': 6, 'tie_word_embeddings': True, **WINDOWED}, 'qwen2'),
    (QWEN3, {'rope_scaling': {**YARN, 'truncate': False}}, 'qwen3'),
    (QWEN3, {'attention_bias': True, **WINDOWED}, 'qwen3'),
  ],
)
def test_round_trip_through_json_and_transformers(base, changes, family):
  transformers = pytest.importorskip('transformers')
  config = from_hf(base, **changes)
  written = json.loads(json.dumps(hf_config_lib.config_to_hf(config)))
  assert written['model_type'] == family
  assert from_hf(written) == config
  hf_type = getattr(transformers, f'{family.capitalize()}Config')
  assert written['architectures'] == [f'{family.capitalize()}ForCausalLM']
  assert hasattr(transformers, written['architectures'][0])
  assert from_hf(hf_type.from_dict(dict(written)).to_dict()) == config


@pytest.mark.parametrize(
  ('base', 'changes', 'words'),
  [
    (LLAMA, {'sliding_window': 4, 'mlp_bias': True}, 'model.mlp_bias=True'),
    (MISTRAL, {'qkv_bias': True, 'output_bias': True}, 'model.qkv_bias=True'),
    (LLAMA, {'output_bias': True}, 'model.output_bias=True'),
    (QWEN2, {'mlp_bias': True}, 'model.mlp_bias=True'),
    (QWEN3, {'qkv_bias': True}, 'model.output_bias=False'),
  ],
)
def test_what_no_model_type_has_cannot_be_written(base, changes, words):
  config = dataclasses.replace(from_hf(base), **changes)
  with pytest.raises(types.InputError) as error:
    hf_config_lib.config_to_hf(config)
  assert words in str(error.value)
