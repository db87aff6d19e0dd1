"""The architecture in a Hugging Face config.json, read and written.

In: the dictionary of a config.json. Out: a `config.ModelConfig`, and back.
What the family here cannot compute is refused by name, never ignored.

    model_type  q/k/v bias      o bias          head norms  sliding window
    llama       attention_bias  attention_bias  no          no
    mistral     no              no              no          sliding_window
    qwen2       yes             no              no          use_sliding_window
    qwen3       attention_bias  attention_bias  yes         use_sliding_window
"""

from collections.abc import Container, Mapping
import re
from typing import Any

from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import hf_rope

# Fields of config.json that every model type has, and ours.
_SHARED_FIELDS = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'hidden_size',
  'intermediate_size': 'intermediate_size',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'num_key_value_heads': 'num_kv_heads',
  'head_dim': 'head_dim',
  'max_position_embeddings': 'max_position_embeddings',
  'rms_norm_eps': 'norm_eps',
  'tie_word_embeddings': 'tie_word_embeddings',
  'initializer_range': 'initializer_range',
}
_REQUIRED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
)
# What transformers takes for a field that config.json leaves out; a model type
# has the shared fields and those named here. None: it follows from others.
_DEFAULTS: dict[str, Any] = {
  'num_key_value_heads': None,
  'head_dim': None,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
  'initializer_range': 0.02,
}
_QWEN_DEFAULTS = {
  **_DEFAULTS,
  'max_position_embeddings': 32768,
  'num_key_value_heads': 32,
  'use_sliding_window': False,
  'sliding_window': 4096,
  'max_window_layers': 28,
  'layer_types': None,
}
_FAMILY_DEFAULTS = {
  'llama': {
    **_DEFAULTS,
    'max_position_embeddings': 2048,
    'attention_bias': False,
    'mlp_bias': False,
  },
  'mistral': {
    **_DEFAULTS,
    'max_position_embeddings': 131072,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
  },
  'qwen2': _QWEN_DEFAULTS,
  'qwen3': {**_QWEN_DEFAULTS, 'head_dim': 128, 'attention_bias': False},
}
_FULL, _SLIDING = 'full_attention', 'sliding_attention'

# Fields with the values under which they change nothing.
_NEUTRAL = {
  'hidden_act': ('silu', 'swish'),
  'is_causal': (True,),
  'pretraining_tp': (1, None),
  **hf_rope.NEUTRAL,
}
# Fields that say nothing about how hidden states and logits are computed; the
# second group is of defaults for sampling, which old files keep here.
_IRRELEVANT = frozenset((
    '_name_or_path', '_attn_implementation_autoset', 'architectures',
    'bos_token_id', 'dtype', 'eos_token_id', 'id2label', 'is_llama_config',
    'label2id', 'max_sequence_length', 'model_type', 'pad_token_id',
    'return_dict', 'tokenizer_class', 'torch_dtype', 'transformers.js_config',
    'transformers_version', 'unk_token_id', 'unsloth_fixed', 'unsloth_version',
    'use_cache',

    'diversity_penalty', 'do_sample', 'length_penalty', 'max_length',
    'max_new_tokens', 'min_length', 'num_beam_groups', 'num_beams',
    'num_return_sequences', 'repetition_penalty', 'temperature', 'top_k',
    'top_p', 'typical_p',
))  # fmt: skip


def config_from_hf(hf_config: Mapping[str, Any]) -> config_lib.ModelConfig:
  """The architecture that a Hugging Face config.json describes.

  Reads the spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5
  (`rope_parameters`). A field that is left out has the value that
  transformers 5 gives it.

  Args:
    hf_config: the parsed config.json of a model of type llama, mistral, qwen2
      or qwen3.

  Returns:
    The architecture.

  Raises:
    types.InputError: for a value that is not supported or a field that is not
      known and not neutral (None, False, 0 or empty); a line for each.
  """
  family = _checked_family(hf_config)
  known = _SHARED_FIELDS.keys() | _FAMILY_DEFAULTS[family].keys()
  fields = _FAMILY_DEFAULTS[family] | {
    name: hf_config[name] for name in known if name in hf_config
  }
  problems = _unsupported(hf_config, known, family)
  for name in _REQUIRED:
    value = fields.get(name)
    if value is None:
      problems.append(f'config.json: {name} is missing')
    elif not config_lib.is_positive(value, whole=True):
      problems.append(
        f'config.json: {name}={value!r}: must be a whole number over 0'
      )
  length = fields['max_position_embeddings']
  theta, scaling = hf_rope.rope_from_hf(hf_config, length, problems)
  if problems:
    raise types.InputError('\n'.join(problems))

  if fields['num_key_value_heads'] is None:
    fields['num_key_value_heads'] = fields['num_attention_heads']
  # Where there is a default, null is a mistake of the file.
  if fields['head_dim'] is None and family != 'qwen3':
    fields['head_dim'] = fields['hidden_size'] // fields['num_attention_heads']
  attention_bias = fields.get('attention_bias', False)
  try:
    return config_lib.ModelConfig(
      rope_theta=theta,
      rope_scaling=scaling,
      sliding_window=_window_from_hf(fields),
      qkv_bias=True if family == 'qwen2' else attention_bias,
      output_bias=attention_bias,
      mlp_bias=fields.get('mlp_bias', False),
      qk_norm=family == 'qwen3',
      **{name: fields[hf_name] for hf_name, name in _SHARED_FIELDS.items()},
    )
  except types.InputError as error:
    raise types.InputError(_in_their_words(str(error))) from error


def _checked_family(hf_config: Mapping[str, Any]) -> str:
  family = hf_config.get('model_type')
  if not isinstance(family, str) or family not in _FAMILY_DEFAULTS:
    raise types.InputError(
      f'config.json: model_type={family!r} is not supported; allowed: '
      + ', '.join(sorted(_FAMILY_DEFAULTS))
    )
  return family


def _in_their_words(lines: str) -> str:
  """Names in problems of a `ModelConfig`, as config.json has them."""
  theirs = {name: hf_name for hf_name, name in _SHARED_FIELDS.items()}
  theirs |= {'qkv_bias': 'attention_bias', 'output_bias': 'attention_bias'}
  named = re.sub(r'\w+', lambda word: theirs.get(word[0], word[0]), lines)
  unique = dict.fromkeys(named.splitlines())
  return '\n'.join(
    f'config.json: {line.removeprefix("model.")}' for line in unique
  )


def _unsupported(
  hf_config: Mapping[str, Any], read: Container[str], family: str
) -> list[str]:
  """A line for each field whose value this family does not compute."""
  problems = []
  for name, value in hf_config.items():
    if name in read or name in hf_rope.FIELDS or name in _IRRELEVANT:
      continue
    if name in _NEUTRAL:
      if value not in _NEUTRAL[name]:
        problems.append(
          f'config.json: {name}={value!r} is not supported; '
          f'allowed: {_NEUTRAL[name][0]!r}'
        )
    elif value:
      problems.append(
        f'config.json: {name}={value!r} is not supported for model_type '
        f'{family}'
      )
  return problems


def _window_from_hf(fields: Mapping[str, Any]) -> Any:
  """The sliding window of all layers; None where they have none."""
  window = fields.get('sliding_window')
  if 'use_sliding_window' not in fields:
    return window
  used = fields['use_sliding_window']
  if not isinstance(used, bool):
    raise types.InputError(
      f'config.json: use_sliding_window={used!r}: must be a bool'
    )
  window = window if used else None
  num_layers, layer_types = fields['num_hidden_layers'], fields['layer_types']
  place, problem = 'layer_types', None
  if layer_types is None:
    # Without a list, the layers from max_window_layers on have the window.
    first = fields['max_window_layers']
    place = f'max_window_layers={first!r}'
    if type(first) is not int or first < 0:
      raise types.InputError(f'config.json: {place}: must be a whole number')
    num_sliding = 0 if window is None else max(num_layers - first, 0)
  elif not isinstance(layer_types, list) or len(layer_types) != num_layers:
    raise types.InputError(
      f'config.json: {place}: must be a list of {num_layers} names'
    )
  else:
    num_sliding = layer_types.count(_SLIDING)
    if num_sliding + layer_types.count(_FULL) < num_layers:
      problem = f'a layer is neither {_FULL} nor {_SLIDING}'
    elif num_sliding and window is None:
      problem = (
        f'{_SLIDING}, but use_sliding_window={used} and '
        f'sliding_window={fields["sliding_window"]}'
      )
  if 0 < num_sliding < num_layers:
    problem = problem or (
      f'{num_sliding} of {num_layers} layers have a sliding window; only all '
      'or none is supported'
    )
  if problem:
    raise types.InputError(f'config.json: {place}: {problem}')
  return window if num_sliding else None


def config_to_hf(config: config_lib.ModelConfig) -> dict[str, Any]:
  """The architecture as config.json fields, in transformers 4's spelling.

  Both versions of transformers read it, and `config_from_hf` gives the same
  `ModelConfig` again. The type is the one whose biases, norms and window these
  are: a model of type mistral without a window is written as one of type llama.

  Args:
    config: the architecture.

  Returns:
    A dictionary that json can write; token ids and the stored dtype are the
    caller's to add.

  Raises:
    types.InputError: for a combination of biases, norms and window that no
      model type has; a line for each field that would be lost.
  """
  family = _family_of(config)
  has = _FAMILY_DEFAULTS[family].keys()
  fields: dict[str, Any] = {
    'architectures': [f'{family.capitalize()}ForCausalLM'],
    'model_type': family,
    'hidden_act': 'silu',
    **{
      hf_name: getattr(config, name) for hf_name, name in _SHARED_FIELDS.items()
    },
    **hf_rope.rope_to_hf(config.rope_theta, config.rope_scaling),
  }
  if 'attention_bias' in has:
    fields['attention_bias'] = config.qkv_bias
  if 'mlp_bias' in has:
    fields['mlp_bias'] = config.mlp_bias
  if 'sliding_window' in has:
    fields['sliding_window'] = config.sliding_window
  if 'use_sliding_window' in has:
    used = config.sliding_window is not None
    fields['use_sliding_window'] = used
    fields['max_window_layers'] = 0 if used else config.num_layers
  read = config_from_hf(fields)
  lost = [
    f'model.{name}={value!r}: cannot be written to a config.json; of the '
    f'model types {family} is the nearest, where it is {getattr(read, name)!r}'
    for name, value in vars(config).items()
    if getattr(read, name) != value
  ]
  if lost:
    raise types.InputError('\n'.join(lost))
  return fields


def _family_of(config: config_lib.ModelConfig) -> str:
  """The model type that can say most of an architecture."""
  if config.qk_norm:
    return 'qwen3'
  if config.qkv_bias and not config.output_bias:
    return 'qwen2'
  return 'llama' if config.sliding_window is None else 'mistral'
