"""Tiny models that transformers saved give its logits here, to 1e-5.

Each goes the way of a user's model: save_pretrained, config.json, safetensors.
Rows of different lengths are then read and continued token by token.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.models import hf_config, hf_weights, transformer

LENGTH = 40
# Prompts shorter and longer than the windows; each row grows by STEPS tokens.
PROMPTS = (3, 12, 7)
STEPS = LENGTH - max(PROMPTS)

# What the released models of a family have; the sizes are tiny.
FAMILIES = {
  'llama': {'rms_norm_eps': 1e-5},
  'mistral': {'rms_norm_eps': 1e-5, 'sliding_window': None},
  'qwen2': {},
  'qwen3': {'head_dim': 16},
}


def rope(theta, rope_type='default', **fields):
  """The change that sets rotary fields."""
  return {
    'rope_parameters': {'rope_theta': theta, 'rope_type': rope_type, **fields}
  }


def windows(size, **fields):
  """The change that gives all layers of a qwen model a window."""
  return {
    'use_sliding_window': True,
    'sliding_window': size,
    'max_window_layers': 0,
    **fields,
  }


LLAMA3 = rope(
  5e5,
  'llama3',
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
# Rows reach past the trained length, to LENGTH.
LINEAR = {'max_position_embeddings': 10, **rope(1e4, 'linear', factor=4.0)}
YARN = {'factor': 4.0, 'original_max_position_embeddings': 16}

CASES = {
  'llama': ('llama', {}),
  'llama_all_kv_heads_tied': (
    'llama',
    {'num_key_value_heads': 4, 'tie_word_embeddings': True},
  ),
  'llama_1_kv_head_wide': ('llama', {'num_key_value_heads': 1, 'head_dim': 16}),
  'llama_biases': ('llama', {'attention_bias': True, 'mlp_bias': True}),
  'llama_eps': ('llama', {'rms_norm_eps': 0.1}),
  'llama_head_6': ('llama', {'head_dim': 6, **rope(5e5)}),
  'llama_head_10_tied': (
    'llama',
    {'head_dim': 10, 'tie_word_embeddings': True, **rope(5e6)},
  ),
  'llama_llama3': ('llama', {'head_dim': 16, **LLAMA3}),
  'llama_linear': ('llama', LINEAR),
  'llama_dynamic': (
    'llama',
    {'max_position_embeddings': LENGTH, **rope(1e4, 'dynamic', factor=3.3)},
  ),
  'llama_yarn': (
    'llama',
    {
      'max_position_embeddings': 16,
      'head_dim': 32,
      **rope(1e4, 'yarn', **YARN),
    },
  ),
  'llama_yarn_attention_factor': (
    'llama',
    {
      'head_dim': 20,
      **rope(1e4, 'yarn', **YARN, attention_factor=1.4, truncate=False),
    },
  ),
  'llama_yarn_mscale': (
    'llama',
    {
      'head_dim': 32,
      **rope(
        1e4,
        'yarn',
        **YARN,
        mscale=1.0,
        mscale_all_dim=0.5,
        beta_fast=4.0,
        beta_slow=0.5,
      ),
    },
  ),
  'mistral': ('mistral', {'head_dim': 4, **rope(1e6)}),
  'mistral_window': ('mistral', {'sliding_window': 5}),
  'mistral_window_1_kv_head': (
    'mistral',
    {'sliding_window': 7, 'num_key_value_heads': 1, 'head_dim': 10},
  ),
  'mistral_window_1': ('mistral', {'sliding_window': 1}),
  'mistral_window_of_all_but_one': (
    'mistral',
    {'sliding_window': LENGTH - 1, 'tie_word_embeddings': True},
  ),
  'mistral_window_linear': ('mistral', {'sliding_window': 9, **LINEAR}),
  'qwen2': ('qwen2', rope(1e6)),
  'qwen2_tied_1_kv_head': (
    'qwen2',
    {'tie_word_embeddings': True, 'num_key_value_heads': 1},
  ),
  'qwen2_head_6': ('qwen2', {'head_dim': 6, **rope(1e6)}),
  'qwen2_all_kv_heads_eps': (
    'qwen2',
    {'num_key_value_heads': 4, 'rms_norm_eps': 1e-2},
  ),
  'qwen2_window': ('qwen2', windows(5)),
  'qwen2_window_not_used': (
    'qwen2',
    windows(5, use_sliding_window=False, max_window_layers=1),
  ),
  'qwen2_window_layer_types': (
    'qwen2',
    windows(6, max_window_layers=28, layer_types=['sliding_attention'] * 2),
  ),
  'qwen2_yarn': (
    'qwen2',
    {'max_position_embeddings': 16, **rope(1e6, 'yarn', **YARN)},
  ),
  'qwen3': ('qwen3', {'tie_word_embeddings': True, **rope(1e6)}),
  'qwen3_head_by_default': ('qwen3', {'head_dim': None}),
  'qwen3_biases': (
    'qwen3',
    {'attention_bias': True, 'num_key_value_heads': 4},
  ),
  'qwen3_head_6_1_kv_head_eps': (
    'qwen3',
    {'head_dim': 6, 'num_key_value_heads': 1, 'rms_norm_eps': 0.1},
  ),
  'qwen3_window': ('qwen3', {'head_dim': 10, **windows(6)}),
  'qwen3_yarn': ('qwen3', {'head_dim': 20, **rope(1e4, 'yarn', **YARN)}),
  'qwen3_llama3': ('qwen3', LLAMA3),
}


def hf_model(family, changes):
  """A tiny random model of transformers."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  name = family.capitalize()
  fields = {
    'vocab_size': 64,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'max_position_embeddings': 64,
    # Attention is far from uniform; with more, float32 itself is off by 1e-5.
    'initializer_range': 0.15,
    'attn_implementation': 'eager',
    **FAMILIES[family],
    **changes,
  }
  if fields.get('head_dim', 0) is None:
    del fields['head_dim']
  torch.manual_seed(0)
  config = getattr(transformers, f'{name}Config')(**fields)
  model = getattr(transformers, f'{name}ForCausalLM')(config).eval()
  with torch.no_grad():
    for weight_name, weight in model.named_parameters():
      if 'norm' in weight_name or weight_name.endswith('bias'):
        weight.add_(0.3 * torch.randn(weight.shape))
  return model


def hf_logits(model, tokens):
  torch = pytest.importorskip('torch')
  with torch.no_grad():
    return model(torch.tensor(np.array(tokens))).logits.numpy()


def loaded(model, folder, **kwargs):
  """What transformers saves, read here: functions and params."""
  model.save_pretrained(folder)
  fields = json.loads((folder / 'config.json').read_text())
  fns = transformer.make_model(
    hf_config.config_from_hf(fields), remat='none', **kwargs
  )
  abstract = transformer.abstract_params(fns)
  return fns, hf_weights.load_params(folder, abstract)


def full_hidden(fns, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  return fns.hidden(params, tokens, positions, jnp.ones_like(tokens))


def full_and_cached(fns, params, tokens):
  """Logits of whole rows, and of the same tokens read one by one.

  Returns:
    [B, L, V]; and [B, 1 + STEPS, V], from each prompt's last token on.
  """
  rows, lengths = jnp.arange(len(PROMPTS)), jnp.array(PROMPTS)
  prompts = tokens[:, : max(PROMPTS)]
  first, cache = fns.prefill(params, prompts, lengths, LENGTH)

  def step(cache, _):
    hidden, cache = fns.decode(params, tokens[rows, cache.lengths], cache)
    return cache, hidden

  _, others = jax.lax.scan(step, cache, length=STEPS)
  cached = jnp.concatenate([first[None], others])
  return (
    fns.project(params, full_hidden(fns, params, tokens)),
    fns.project(params, jnp.swapaxes(cached, 0, 1)),
  )


def random_tokens():
  return jax.random.randint(jax.random.key(0), (len(PROMPTS), LENGTH), 0, 64)


@pytest.mark.parametrize(('family', 'changes'), CASES.values(), ids=CASES)
def test_logits_equal_those_of_transformers(family, changes, tmp_path):
  model = hf_model(family, changes)
  tokens = random_tokens()
  expected = hf_logits(model, tokens)
  assert np.abs(expected).max() > 1.0
  fns, params = loaded(model, tmp_path)
  both = jax.jit(functools.partial(full_and_cached, fns))
  full, cached = both(params, tokens)
  np.testing.assert_allclose(full, expected, atol=1e-5)
  for row, length in enumerate(PROMPTS):
    np.testing.assert_allclose(
      cached[row], full[row, length - 1 : length + STEPS], atol=1e-5
    )


def test_scalings_and_windows_matter_in_these_rows():
  tokens = random_tokens()
  for name, (family, changes) in CASES.items():
    model = hf_model(family, changes)
    config, expected = model.config, hf_logits(model, tokens)
    scaled = config.rope_parameters['rope_type'] not in ('default', 'dynamic')
    windowed = getattr(config, 'sliding_window', None) is not None
    if scaled:
      theta = config.rope_parameters['rope_theta']
      config.rope_parameters = rope(theta)['rope_parameters']
      model.model.rotary_emb = type(model.model.rotary_emb)(config)
      error = np.abs(hf_logits(model, tokens) - expected).max()
      assert error > 1e-2, f'{name}: without its scaling'
      expected = hf_logits(model, tokens)
    if windowed:
      config.sliding_window = LENGTH
      error = np.abs(hf_logits(model, tokens) - expected).max()
      assert error > 1e-2, f'{name}: without its window'


@pytest.mark.parametrize('family', FAMILIES)
def test_bfloat16_is_near_float32(family, tmp_path):
  model = hf_model(family, {})
  tokens = random_tokens()
  expected = hf_logits(model, tokens)
  fns, params = loaded(model, tmp_path, dtype=jnp.bfloat16)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
  hidden = jax.jit(functools.partial(full_hidden, fns))(params, tokens)
  assert hidden.dtype == jnp.bfloat16
  logits = fns.project(params, hidden)
  assert logits.dtype == jnp.float32
  error = np.abs(logits - expected)
  # A bfloat16 has 8 bits: a few steps of it, on average.
  assert 1e-4 < error.mean() < 0.01 * np.abs(expected).max()
