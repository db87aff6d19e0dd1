"""Numbers of well-known models, as their config.json has them.

For what needs an architecture and no weights, where no folder is at hand. They
are read like any config.json, by `hf_config`.
"""

from typing import Any

from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import hf_config

_SHARED = {
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'intermediate_size': 14336,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-5,
  'initializer_range': 0.02,
  'tie_word_embeddings': False,
}

HF_CONFIGS: dict[str, dict[str, Any]] = {
  'Mistral-7B-Instruct-v0.2': {
    **_SHARED,
    'model_type': 'mistral',
    'vocab_size': 32000,
    'max_position_embeddings': 32768,
    'rope_theta': 1_000_000.0,
    'sliding_window': None,
  },
  'Llama-3.1-8B-Instruct': {
    **_SHARED,
    'model_type': 'llama',
    'vocab_size': 128256,
    'max_position_embeddings': 131072,
    'rope_theta': 500_000.0,
    'rope_scaling': {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 8192,
    },
    'attention_bias': False,
    'mlp_bias': False,
  },
}


def architecture(path: str) -> config_lib.ModelConfig:
  """The architecture of a model by its name alone.

  Args:
    path: whose last part is the name: "/models/Mistral-7B-Instruct-v0.2", or
      "mistralai/Mistral-7B-Instruct-v0.2".

  Returns:
    The architecture.

  Raises:
    types.InputError: a name without numbers here.
  """
  name = path.rstrip('/').rpartition('/')[2].partition('@')[0]
  if name not in HF_CONFIGS:
    raise types.InputError(
      f'{path}: no such folder, and the numbers of {name!r} are not known;'
      f' known: {", ".join(HF_CONFIGS)}'
    )
  return hf_config.config_from_hf(HF_CONFIGS[name])
