"""Every number of an architecture is checked, and changes the model."""

import dataclasses
import functools
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import hf_config, transformer

CONFIG = small_models.CONFIG
# Each changed alone.
CHANGES = {
  'vocab_size': 65,
  'hidden_size': 16,
  'intermediate_size': 40,
  'num_layers': 3,
  'num_heads': 2,
  'num_kv_heads': 4,
  'head_dim': 16,
  'max_position_embeddings': 8,
  'norm_eps': 0.1,
  'rope_theta': 100.0,
  'rope_scaling': config_lib.LinearRope(2.0),
  'sliding_window': 3,
  'tie_word_embeddings': True,
  'qkv_bias': True,
  'output_bias': True,
  'mlp_bias': True,
  'qk_norm': True,
  'initializer_range': 0.1,
}
SCALINGS = {
  config_lib.LinearRope: (config_lib.LinearRope(2.0), {'factor': 3.0}),
  config_lib.DynamicRope: (config_lib.DynamicRope(2.0), {'factor': 3.0}),
  config_lib.Llama3Rope: (
    config_lib.Llama3Rope(8.0, 1.0, 4.0, 32),
    {
      'factor': 4.0,
      'low_freq_factor': 0.5,
      'high_freq_factor': 8.0,
      'original_max_position_embeddings': 16,
    },
  ),
  config_lib.YarnRope: (
    config_lib.YarnRope(
      factor=4.0,
      original_max_position_embeddings=64,
      mscale=1.0,
      mscale_all_dim=0.5,
      beta_fast=4.0,
      beta_slow=0.5,
      truncate=False,
    ),
    {
      'factor': 8.0,
      'original_max_position_embeddings': 32,
      'attention_factor': 1.5,
      'mscale': 2.0,
      'mscale_all_dim': 1.5,
      'beta_fast': 8.0,
      'beta_slow': 0.25,
      'truncate': True,
    },
  ),
}
SCALING_FIELDS = [
  (kind, field.name)
  for kind in typing.get_args(config_lib.RopeScaling)
  for field in dataclasses.fields(kind)
]


@functools.cache
def model(config):
  """The model's functions, and params drawn by numpy."""
  fns = transformer.make_model(config, remat='none')
  rng = np.random.default_rng(0)

  def leaf(path, abstract):
    mean = 1.0 if 'norm' in jax.tree_util.keystr(path) else 0.0
    return jnp.array(rng.normal(mean, 0.2, abstract.shape), abstract.dtype)

  return fns, jax.tree_util.tree_map_with_path(
    leaf, transformer.abstract_params(fns)
  )


@functools.cache
def logits(config, length=12):
  """[1, L, V] of one row."""
  fns, params = model(config)

  @jax.jit
  def forward(params):
    tokens = jnp.arange(length)[None]
    hidden = fns.hidden(params, tokens, tokens, jnp.ones_like(tokens))
    return fns.project(params, hidden)

  return forward(params)


def made_lm_head(config):
  """The random [D, V]; compiling `init` for the other weights takes seconds."""
  init = model(config)[0].init
  return jax.jit(lambda key: init(key)['lm_head']['weight'])(jax.random.key(0))


def shapes(config):
  return jax.tree.map(jnp.shape, transformer.abstract_params(model(config)[0]))


def test_every_field_has_a_change():
  assert {field.name for field in dataclasses.fields(CONFIG)} == set(CHANGES)
  for kind in typing.get_args(config_lib.RopeScaling):
    names = {field.name for field in dataclasses.fields(kind)}
    assert names == set(SCALINGS[kind][1])


@pytest.mark.parametrize(
  'name', [field.name for field in dataclasses.fields(CONFIG)]
)
def test_every_field_is_read(name):
  changed = dataclasses.replace(CONFIG, **{name: CHANGES[name]})
  if name == 'max_position_embeddings':
    assert logits(CONFIG).shape == (1, 12, 64)
    with pytest.raises(types.InputError, match='max_position_embeddings=8'):
      logits(changed)
    fns, params = model(changed)
    with pytest.raises(types.InputError, match='max_position_embeddings=8'):
      fns.prefill(params, jnp.zeros((1, 4), jnp.int32), jnp.array([4]), 9)
  elif name == 'initializer_range':
    made, other = (made_lm_head(config) for config in (CONFIG, changed))
    np.testing.assert_allclose(other, 5 * made, rtol=1e-5)
    assert jnp.std(made) == pytest.approx(0.02, rel=0.1)
  elif shapes(changed) == shapes(CONFIG):
    assert jnp.abs(logits(changed) - logits(CONFIG)).max() > 1e-3
  else:
    assert logits(changed).shape == (1, 12, changed.vocab_size)


@pytest.mark.parametrize(
  ('change', 'leaves'),
  [
    (
      {'qkv_bias': True},
      {
        'self_attn/q_proj/bias': (2, 32),
        'self_attn/k_proj/bias': (2, 16),
        'self_attn/v_proj/bias': (2, 16),
      },
    ),
    ({'output_bias': True}, {'self_attn/o_proj/bias': (2, 32)}),
    (
      {'mlp_bias': True},
      {
        'mlp/gate_proj/bias': (2, 48),
        'mlp/up_proj/bias': (2, 48),
        'mlp/down_proj/bias': (2, 32),
      },
    ),
    (
      {'qk_norm': True},
      {'self_attn/q_norm/weight': (2, 8), 'self_attn/k_norm/weight': (2, 8)},
    ),
  ],
)
def test_leaves_that_a_field_adds(change, leaves):
  def flat(config):
    tree = transformer.abstract_params(model(config)[0])
    return {
      '/'.join(key.key for key in path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  before, after = flat(CONFIG), flat(dataclasses.replace(CONFIG, **change))
  added = {f'layers/{name}': shape for name, shape in leaves.items()}
  assert after == before | added


@pytest.mark.parametrize(('kind', 'name'), SCALING_FIELDS)
def test_every_field_of_a_rotary_scaling_is_read(kind, name):
  scaling, changes = SCALINGS[kind]
  base = dataclasses.replace(
    CONFIG, num_layers=1, head_dim=32, rope_scaling=scaling
  )
  changed = dataclasses.replace(
    base, rope_scaling=dataclasses.replace(scaling, **{name: changes[name]})
  )
  error = jnp.abs(logits(changed, 60) - logits(base, 60)).max()
  if kind is config_lib.DynamicRope:
    # It says what becomes of rows that are refused here.
    assert error == 0
    unscaled = dataclasses.replace(base, rope_scaling=None)
    assert (logits(unscaled, 60) == logits(base, 60)).all()
    written = hf_config.config_to_hf(changed)['rope_scaling']
    assert written == {'rope_type': 'dynamic', 'factor': 3.0}
  else:
    assert error > 1e-3


@pytest.mark.parametrize(
  ('scaling', 'longest'),
  [
    (None, 64),
    (config_lib.LinearRope(4.0), 256),
    (config_lib.LinearRope(0.5), 64),
    (config_lib.LinearRope(1e300), 2**53),
    (config_lib.DynamicRope(4.0), 64),
    (config_lib.Llama3Rope(8.0, 1.0, 4.0, 32), 64),
    (config_lib.YarnRope(4.0, 64), 256),
    (config_lib.YarnRope(4.0, 8), 64),
  ],
)
def test_longest_row(scaling, longest):
  config = dataclasses.replace(CONFIG, rope_scaling=scaling)
  assert config.longest_row == longest


@pytest.mark.parametrize(
  ('scaling', 'words'),
  [
    (None, 'row of 300 tokens: longer than max_position_embeddings=64'),
    (
      config_lib.LinearRope(4.0),
      'row of 300 tokens: longer than the 256 that max_position_embeddings=64 '
      'and LinearRope(factor=4.0) give',
    ),
    (config_lib.DynamicRope(4.0), 'which cached keys cannot follow'),
  ],
)
def test_longer_rows_are_refused(scaling, words):
  config = dataclasses.replace(CONFIG, rope_scaling=scaling)
  fns, params = model(config)
  tokens = jax.ShapeDtypeStruct((1, 300), jnp.int32)
  with pytest.raises(types.InputError, match=re.escape(words)) as error:
    jax.eval_shape(fns.hidden, params, tokens, tokens, tokens)
  assert len(str(error.value).splitlines()) == 1


def test_a_stretched_row_is_accepted():
  config = dataclasses.replace(CONFIG, rope_scaling=config_lib.LinearRope(4.0))
  fns, params = model(config)
  tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)
  hidden = jax.eval_shape(fns.hidden, params, tokens, tokens, tokens)
  assert hidden.shape == (1, 256, 32)


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    ({'vocab_size': 64.0}, 'model.vocab_size=64.0: must be a whole number'),
    ({'num_layers': True}, 'model.num_layers=True: must be a whole number'),
    ({'num_layers': 0}, 'model.num_layers=0: must be a whole number over 0'),
    ({'norm_eps': float('nan')}, 'model.norm_eps=nan: must be a number over 0'),
    ({'sliding_window': -1}, 'model.sliding_window=-1: must be a whole number'),
    ({'qk_norm': 1}, 'model.qk_norm=1: must be a bool'),
    ({'num_kv_heads': 3}, 'model.num_kv_heads=3: must divide num_heads=4'),
    ({'head_dim': 7}, 'model.head_dim=7: must be even'),
    ({'rope_scaling': 2.0}, 'model.rope_scaling=2.0: must be None or one of'),
    (
      {'rope_scaling': config_lib.LinearRope(0)},
      'model.rope_scaling.factor=0: must be a number over 0',
    ),
    (
      {'rope_scaling': config_lib.YarnRope(2.0, 64, truncate=None)},
      'model.rope_scaling.truncate=None: must be a bool',
    ),
    (
      {'rope_scaling': config_lib.YarnRope(2.0, 64, beta_fast=0.5)},
      'model.rope_scaling.beta_fast=0.5: must exceed beta_slow=1.0',
    ),
    (
      {'rope_scaling': config_lib.Llama3Rope(8.0, 4.0, 4.0, 64)},
      'model.rope_scaling.high_freq_factor=4.0: must exceed low_freq_factor',
    ),
    (
      {'rope_scaling': config_lib.YarnRope(2.0, 64), 'rope_theta': 1.0},
      'model.rope_theta=1.0: must be over 1',
    ),
  ],
)
def test_bad_values_are_named(change, line):
  with pytest.raises(types.InputError) as error:
    dataclasses.replace(CONFIG, **change)
  assert str(error.value).startswith(line)
  assert len(str(error.value).splitlines()) == 1


def test_all_bad_values_are_reported_at_once():
  with pytest.raises(types.InputError) as error:
    dataclasses.replace(CONFIG, vocab_size=0, norm_eps='small')
  assert len(str(error.value).splitlines()) == 2
