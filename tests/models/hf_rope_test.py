"""The rotary fields of config.json, in both spellings."""

import pytest

from tests.models import hf_config_test as models
from tract_jax.models import config as config_lib


@pytest.mark.parametrize('family', models.MODELS)
@pytest.mark.parametrize(
  ('fields', 'scaling'),
  [
    ({'rope_type': 'default'}, None),
    ({'rope_type': 'linear', 'factor': 4.0}, config_lib.LinearRope(4.0)),
    ({'rope_type': 'dynamic', 'factor': 2.0}, config_lib.DynamicRope(2.0)),
    (models.LLAMA3, config_lib.Llama3Rope(8.0, 1.0, 4.0, 32)),
    (models.YARN, config_lib.YarnRope(4.0, 32)),
    (
      {
        **models.YARN,
        'attention_factor': 1.5,
        'mscale': 0.7,
        'mscale_all_dim': 1.0,
        'beta_fast': 16,
        'beta_slow': 2,
        'truncate': False,
      },
      config_lib.YarnRope(4.0, 32, 1.5, 0.7, 1.0, 16, 2, False),
    ),
  ],
)
def test_both_spellings_of_the_rotary_fields_agree(family, fields, scaling):
  base = models.MODELS[family]
  old = models.from_hf(base, rope_scaling=fields)
  assert old.rope_theta == 5e5
  assert old.rope_scaling == scaling
  parameters = {**fields, 'rope_theta': 5e5}
  new = {k: v for k, v in base.items() if not k.startswith('rope_')}
  new['dtype'] = new.pop('torch_dtype')
  assert models.from_hf(new, rope_parameters=parameters) == old
  # A file written with both is fine while they say the same.
  both = {'rope_scaling': fields, 'rope_parameters': parameters}
  assert models.from_hf(base, **both) == old
  transformers = pytest.importorskip('transformers')
  hf_type = getattr(transformers, f'{family.capitalize()}Config')
  theirs = hf_type.from_dict({**base, 'rope_scaling': fields}).to_dict()
  assert 'rope_theta' not in theirs
  assert models.from_hf(theirs) == old


def test_the_oldest_spelling():
  config = models.from_hf(
    models.LLAMA, rope_scaling={'type': 'linear', 'factor': 4}
  )
  assert config.rope_scaling == config_lib.LinearRope(4)


@pytest.mark.parametrize(
  ('scaling', 'left_out'),
  [
    (models.LLAMA3, 'original_max_position_embeddings'),
    (models.YARN, 'original_max_position_embeddings'),
  ],
)
def test_the_original_length_may_be_left_out(scaling, left_out):
  fields = {k: v for k, v in scaling.items() if k != left_out}
  config = models.from_hf(models.LLAMA, rope_scaling=fields)
  assert config.rope_scaling.original_max_position_embeddings == 128


def test_null_rotary_fields_are_as_if_left_out():
  nulls = {'attention_factor': None, 'beta_fast': None, 'beta_slow': None}
  config = models.from_hf(models.QWEN2, rope_scaling={**models.YARN, **nulls})
  assert config == models.from_hf(models.QWEN2, rope_scaling=models.YARN)


@pytest.mark.parametrize(
  ('base', 'field', 'value', 'words'),
  [
    (
      models.LLAMA,
      'rope_scaling',
      {'type': 'longrope'},
      "rope_type='longrope'",
    ),
    (models.LLAMA, 'rope_scaling', {'type': 'mrope'}, "rope_type='mrope'"),
    (models.LLAMA, 'rope_scaling', {'rope_type': ['a']}, "rope_type=['a']"),
    (
      models.LLAMA,
      'rope_scaling',
      'linear',
      "rope_scaling='linear': must be an",
    ),
    (models.LLAMA, 'rope_theta', [1e4], 'config.json: rope_theta=[10000.0]'),
    (
      models.LLAMA,
      'rope_scaling',
      {**models.LLAMA3, 'attention_factor': 2.0},
      'rope_scaling.attention_factor=2.0',
    ),
    (
      models.QWEN2,
      'rope_scaling',
      {**models.YARN, 'mrope_section': [16, 24, 24]},
      'rope_scaling.mrope_section=[16, 24, 24]',
    ),
    (
      models.LLAMA,
      'rope_scaling',
      {'type': 'linear'},
      'rope_scaling.factor is',
    ),
    (
      models.LLAMA,
      'rope_scaling',
      {'type': 'yarn'},
      'rope_scaling.factor is missing',
    ),
    (
      models.LLAMA,
      'rope_scaling',
      {**models.YARN, 'truncate': None},
      'rope_scaling.truncate=None',
    ),
    (
      models.LLAMA,
      'rope_scaling',
      {'type': 'linear', 'factor': 0},
      'rope_scaling.factor=0',
    ),
    (
      models.LLAMA,
      'rope_scaling',
      {'type': 'linear', 'factor': [2.0]},
      'rope_scaling.factor=[2.0]',
    ),
    (
      models.LLAMA,
      'rope_parameters',
      {'rope_theta': 1e6, 'rope_type': 'default'},
      'rope_parameters.rope_theta=1000000.0 and rope_theta=500000.0 contradict',
    ),
    (
      {**models.LLAMA, 'rope_scaling': models.LLAMA3},
      'rope_parameters',
      {'rope_type': 'linear', 'factor': 8.0},
      'rope_parameters=LinearRope(factor=8.0) and rope_scaling=Llama3Rope',
    ),
  ],
)
def test_what_is_not_supported_is_named(base, field, value, words):
  assert words in models.error_of(base, **{field: value})
