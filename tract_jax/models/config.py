"""The architecture of a Llama-family model, as numbers.

In: the dictionary of a Hugging Face config.json. Out: a `ModelConfig`, whose
every field changes shapes, results or limits of the model. What the family
here cannot compute is refused by name, never ignored.
"""

from collections.abc import Container, Mapping
import dataclasses
import math
from typing import Any

from tract_jax import types


@dataclasses.dataclass(frozen=True)
class LinearRope:
  """Rotary frequencies divided by `factor` (position interpolation)."""

  factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
  """Llama 3.1's rotary scaling: only long wavelengths are stretched.

  Wavelengths over `original_max_position_embeddings / low_freq_factor` are
  stretched by `factor`, those under `original_max_position_embeddings /
  high_freq_factor` are kept, and those between are interpolated.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Numbers that make one model out of the family.

  Attributes:
    vocab_size: V.
    hidden_size: D.
    intermediate_size: F.
    num_layers: number of blocks.
    num_heads: N.
    num_kv_heads: K; divides N.
    head_dim: H; even, and not necessarily D / N.
    max_position_embeddings: longest row and longest cache accepted.
    norm_eps: added to the mean square in every RMSNorm.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: how the rotary frequencies are changed, or None.
    sliding_window: a token sees itself and the `sliding_window - 1` tokens
      before it; None for all tokens before it.
    tie_word_embeddings: whether logits are taken with the embedding itself.
    attention_bias: whether q, k, v and o projections have biases.
    mlp_bias: whether gate, up and down projections have biases.
    initializer_range: standard deviation of random weights.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_position_embeddings: int
  norm_eps: float = 1e-6
  rope_theta: float = 10000.0
  rope_scaling: LinearRope | Llama3Rope | None = None
  sliding_window: int | None = None
  tie_word_embeddings: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  initializer_range: float = 0.02

  def __post_init__(self):
    problems = _problems(self)
    if problems:
      raise types.InputError('\n'.join(problems))


def _problems(config: ModelConfig) -> list[str]:
  """One line for each bad field."""
  problems = []
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name == 'rope_scaling':
      problems.extend(_scaling_problems(value))
    elif field.name == 'sliding_window' and value is None:
      continue
    elif field.type is bool:
      if not isinstance(value, bool):
        problems.append(f'model.{field.name}={value!r}: must be a bool')
    elif not _is_positive(value, whole=field.type is not float):
      kind = 'number' if field.type is float else 'whole number'
      problems.append(f'model.{field.name}={value!r}: must be a {kind} over 0')
  if not problems and config.num_heads % config.num_kv_heads:
    problems.append(
      f'model.num_kv_heads={config.num_kv_heads}: must divide '
      f'num_heads={config.num_heads}'
    )
  if not problems and config.head_dim % 2:
    problems.append(
      f'model.head_dim={config.head_dim}: must be even, for rotary embeddings'
    )
  return problems


def _scaling_problems(scaling: LinearRope | Llama3Rope | None) -> list[str]:
  """One line for each bad number of a rotary scaling."""
  if scaling is None:
    return []
  if not isinstance(scaling, (LinearRope, Llama3Rope)):
    return [
      f'model.rope_scaling={scaling!r}: must be LinearRope, Llama3Rope or None'
    ]
  problems = [
    f'model.rope_scaling.{name}={value!r}: must be a number over 0'
    for name, value in dataclasses.asdict(scaling).items()
    if not _is_positive(value, whole=False)
  ]
  if not problems and isinstance(scaling, Llama3Rope):
    if scaling.high_freq_factor <= scaling.low_freq_factor:
      problems.append(
        f'model.rope_scaling.high_freq_factor={scaling.high_freq_factor}: '
        f'must exceed low_freq_factor={scaling.low_freq_factor}'
      )
  return problems


def _is_positive(value: Any, *, whole: bool) -> bool:
  if isinstance(value, bool) or not isinstance(
    value, int if whole else (int, float)
  ):
    return False
  return math.isfinite(value) and value > 0


# Fields of config.json, and ours. A field of one family has to be absent or
# neutral in the other.
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
_FAMILY_FIELDS = {
  'llama': {'attention_bias': 'attention_bias', 'mlp_bias': 'mlp_bias'},
  'mistral': {'sliding_window': 'sliding_window'},
}
_REQUIRED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
)
# What transformers takes for a field that config.json leaves out.
_FAMILY_DEFAULTS = {
  'llama': {'max_position_embeddings': 2048},
  'mistral': {
    'max_position_embeddings': 131072,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
  },
}
_ROPE_TYPES = {'default': None, 'linear': LinearRope, 'llama3': Llama3Rope}
_ROPE_FIELDS = ('rope_theta', 'rope_scaling', 'rope_parameters')

# Fields with the values under which they change nothing.
_NEUTRAL = {
  'hidden_act': ('silu',),
  'pretraining_tp': (1, None),
  'partial_rotary_factor': (1.0, None),
}
# Fields that say nothing about how hidden states and logits are computed.
_IRRELEVANT = frozenset((
    '_name_or_path', '_attn_implementation_autoset', 'architectures',
    'bos_token_id', 'dtype', 'eos_token_id', 'id2label', 'is_llama_config',
    'label2id', 'model_type', 'pad_token_id', 'return_dict', 'torch_dtype',
    'transformers.js_config', 'transformers_version', 'unk_token_id',
    'unsloth_fixed', 'unsloth_version', 'use_cache',
))  # fmt: skip


def config_from_hf(hf_config: Mapping[str, Any]) -> ModelConfig:
  """The architecture that a Hugging Face config.json describes.

  Reads the spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5
  (`rope_parameters`). A field that is left out has the value that
  transformers gives it.

  Args:
    hf_config: the parsed config.json of a model of type llama or mistral.

  Returns:
    The architecture.

  Raises:
    types.InputError: for a value that is not supported or a field that is not
      known and not neutral (None, False, 0 or empty); a line for each.
  """
  family = hf_config.get('model_type')
  if family not in _FAMILY_FIELDS:
    raise types.InputError(
      f'config.json: model_type={family!r} is not supported; allowed: '
      + ', '.join(sorted(_FAMILY_FIELDS))
    )
  names = _SHARED_FIELDS | _FAMILY_FIELDS[family]
  problems = _unsupported(hf_config, names, family)
  theta, scaling = _rope_from_hf(hf_config, problems)
  for name in _REQUIRED:
    value = hf_config.get(name)
    if value is None:
      problems.append(f'config.json: {name} is missing')
    elif not _is_positive(value, whole=True):
      problems.append(
        f'config.json: {name}={value!r}: must be a whole number over 0'
      )
  if problems:
    raise types.InputError('\n'.join(problems))

  num_heads = hf_config['num_attention_heads']
  fields = {
    'num_key_value_heads': num_heads,
    **_FAMILY_DEFAULTS[family],
    **{name: hf_config[name] for name in names if name in hf_config},
  }
  if fields['num_key_value_heads'] is None:
    fields['num_key_value_heads'] = num_heads
  if fields.get('head_dim') is None:
    fields['head_dim'] = hf_config['hidden_size'] // num_heads
  return ModelConfig(
    rope_theta=theta,
    rope_scaling=scaling,
    **{names[name]: value for name, value in fields.items()},
  )


def _unsupported(
  hf_config: Mapping[str, Any], read: Container[str], family: str
) -> list[str]:
  """A line for each field whose value this family does not compute."""
  problems = []
  for name, value in hf_config.items():
    if name in read or name in _ROPE_FIELDS or name in _IRRELEVANT:
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


def _rope_from_hf(
  hf_config: Mapping[str, Any], problems: list[str]
) -> tuple[float, LinearRope | Llama3Rope | None]:
  """Base and scaling, from either spelling; adds what is wrong to problems."""
  spellings = {
    name: dict(hf_config[name])
    for name in ('rope_parameters', 'rope_scaling')
    if hf_config.get(name)
  }
  thetas = {
    f'{name}.rope_theta': fields.pop('rope_theta')
    for name, fields in spellings.items()
    if fields.get('rope_theta') is not None
  }
  if hf_config.get('rope_theta') is not None:
    thetas['rope_theta'] = hf_config['rope_theta']
  scalings = {
    name: _scaling_from_hf(fields, f'config.json: {name}', problems)
    for name, fields in spellings.items()
  }
  for values in (thetas, scalings):
    if len(set(values.values())) > 1:
      said = ' and '.join(f'{name}={value}' for name, value in values.items())
      problems.append(f'config.json: {said} contradict each other')
  theta = next(iter(thetas.values()), 10000.0)
  return theta, next(iter(scalings.values()), None)


def _scaling_from_hf(
  fields: Mapping[str, Any], place: str, problems: list[str]
) -> LinearRope | Llama3Rope | None:
  """The scaling that rope_scaling or rope_parameters describes."""
  kind = fields.get('rope_type') or fields.get('type') or 'default'
  if kind not in _ROPE_TYPES:
    problems.append(
      f'{place}.rope_type={kind!r} is not supported; allowed: '
      + ', '.join(_ROPE_TYPES)
    )
    return None
  scaling_type = _ROPE_TYPES[kind]
  names = (
    [field.name for field in dataclasses.fields(scaling_type)]
    if scaling_type
    else []
  )
  missing = [name for name in names if fields.get(name) is None]
  problems += [f'{place}.{name} is missing' for name in missing]
  problems += [
    f'{place}.{name}={value!r} is not supported for rope_type {kind}'
    for name, value in fields.items()
    if name not in (*names, 'type', 'rope_type')
    and value not in _NEUTRAL.get(name, (None,))
  ]
  if scaling_type is None or missing:
    return None
  return scaling_type(**{name: fields[name] for name in names})


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
  """The architecture as config.json fields, in transformers 4's spelling.

  Both versions of transformers read it. A model with a sliding window is of
  type mistral, any other of type llama; `config_from_hf` gives the same
  `ModelConfig` again.

  Args:
    config: the architecture.

  Returns:
    A dictionary that json can write; token ids and the stored dtype are the
    caller's to add.

  Raises:
    types.InputError: for biases together with a sliding window, which no
      Hugging Face model type of the two has.
  """
  family = 'llama' if config.sliding_window is None else 'mistral'
  if family == 'mistral' and (config.attention_bias or config.mlp_bias):
    raise types.InputError(
      f'model.sliding_window={config.sliding_window}: cannot be written '
      'together with attention_bias or mlp_bias; model_type mistral has none'
    )
  fields: dict[str, Any] = {
    'architectures': [f'{family.capitalize()}ForCausalLM'],
    'model_type': family,
    'hidden_act': 'silu',
    'rope_theta': config.rope_theta,
    'rope_scaling': None,
  }
  if config.rope_scaling is not None:
    kinds = {scaling: kind for kind, scaling in _ROPE_TYPES.items()}
    fields['rope_scaling'] = {
      'rope_type': kinds[type(config.rope_scaling)],
      **dataclasses.asdict(config.rope_scaling),
    }
  for hf_name, name in (_SHARED_FIELDS | _FAMILY_FIELDS[family]).items():
    fields[hf_name] = getattr(config, name)
  return fields
