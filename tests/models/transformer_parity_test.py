"""Logits equal those of transformers on tiny random models, to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.models import config as config_lib
from tract_jax.models import transformer

LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}


def _hf_model(family, changes):
  """A tiny random transformers model."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  names = {'llama': 'Llama', 'mistral': 'Mistral'}[family]
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
  }
  hf_config = getattr(transformers, f'{names}Config')(**{**fields, **changes})
  torch.manual_seed(0)
  model = getattr(transformers, f'{names}ForCausalLM')(hf_config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if 'norm' in name or name.endswith('bias'):
        weight.add_(0.3 * torch.randn(weight.shape))
  return model


def _params_of(hf_model, fns):
  """The state_dict in our tree: layers stacked, linear weights transposed."""
  state = {k: v.numpy() for k, v in hf_model.state_dict().items()}

  def leaf(path, abstract):
    names = [key.key for key in path]
    linear = names[-2].endswith(('_proj', 'lm_head')) and names[-1] == 'weight'
    if names[0] == 'layers':
      value = np.stack(
        [
          state['.'.join(['model', 'layers', str(i), *names[1:]])]
          for i in range(abstract.shape[0])
        ]
      )
    else:
      prefix = [] if names[0] == 'lm_head' else ['model']
      value = state['.'.join([*prefix, *names])]
    return jnp.array(np.swapaxes(value, -1, -2) if linear else value)

  return jax.tree_util.tree_map_with_path(
    leaf, transformer.abstract_params(fns)
  )


@pytest.mark.parametrize(
  ('family', 'changes'),
  [
    ('llama', {}),
    ('llama', {'num_key_value_heads': 4, 'tie_word_embeddings': True}),
    ('llama', {'num_key_value_heads': 1, 'head_dim': 16}),
    ('llama', {'attention_bias': True, 'mlp_bias': True}),
    ('llama', {'rms_norm_eps': 0.1}),
    ('llama', {'rope_parameters': {'rope_theta': 5e5, **LLAMA3}}),
    (
      'llama',
      {
        'rope_parameters': {
          'rope_theta': 1e4,
          'rope_type': 'linear',
          'factor': 4.0,
        }
      },
    ),
    ('mistral', {'sliding_window': 5}),
    (
      'mistral',
      {
        'sliding_window': None,
        'head_dim': 4,
        'rope_parameters': {'rope_theta': 1e6, 'rope_type': 'default'},
      },
    ),
  ],
)
def test_logits_equal_those_of_transformers(family, changes):
  torch = pytest.importorskip('torch')
  hf_model = _hf_model(family, changes)
  config = config_lib.config_from_hf(hf_model.config.to_dict())
  fns = transformer.make_model(config)
  params = _params_of(hf_model, fns)
  tokens = jax.random.randint(jax.random.key(0), (2, 24), 0, 64)
  positions = jnp.broadcast_to(jnp.arange(24)[None], (2, 24))

  @jax.jit
  def logits(params):
    segment_ids = jnp.ones_like(tokens)
    hidden = fns.hidden(params, tokens, positions, segment_ids)
    return fns.project(params, hidden)

  with torch.no_grad():
    expected = hf_model(torch.tensor(np.array(tokens))).logits.numpy()
  assert np.abs(expected).max() > 1.0
  np.testing.assert_allclose(logits(params), expected, atol=1e-5)
