"""The architecture of a Llama-family model, as numbers.

In: the dictionary of a Hugging Face config.json. Out: a `ModelConfig`, whose
every field changes shapes, results or limits of the model. What the family
here cannot compute is refused by name, never ignored.
"""

from collections.abc import Mapping
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


# config.json's name of each field that has one of its own, in both families.
_HF_NAMES = {
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
  'sliding_window': 'sliding_window',
  'attention_bias': 'attention_bias',
  'mlp_bias': 'mlp_bias',
}
_REQUIRED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
)
# Fields of one family only: in the other they have to be absent or neutral.
_FAMILY_FIELDS = {
  'llama': ('attention_bias', 'mlp_bias'),
  'mistral': ('sliding_window',),
}
# What transformers takes for a field that config.json leaves out.
_FAMILY_DEFAULTS = {
  'llama': {'max_position_embeddings': 2048},
  'mistral': {
    'max_position_embeddings': 131072,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
  },
}
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
  problems = [
    f'config.json: {name} is missing'
    for name in _REQUIRED
    if hf_config.get(name) is None
  ]
  problems += _unsupported(hf_config, family)
  theta, scaling, rope_problems = _rope_from_hf(hf_config)
  problems += rope_problems
  if problems:
    raise types.InputError('\n'.join(problems))

  fields = {
    'num_key_value_heads': hf_config['num_attention_heads'],
    **_FAMILY_DEFAULTS[family],
    **{name: hf_config[name] for name in _HF_NAMES if name in hf_config},
  }
  if fields['num_key_value_heads'] is None:
    fields['num_key_value_heads'] = hf_config['num_attention_heads']
  if fields.get('head_dim') is None:
    fields['head_dim'] = (
      hf_config['hidden_size'] // (hf_config['num_attention_heads'])
    )
  for name in set(_FAMILY_FIELDS['llama'] + _FAMILY_FIELDS['mistral']):
    if name not in _FAMILY_FIELDS[family]:
      fields.pop(name, None)
  return ModelConfig(
    rope_theta=theta,
    rope_scaling=scaling,
    **{_HF_NAMES[name]: value for name, value in fields.items()},
  )


def _unsupported(hf_config: Mapping[str, Any], family: str) -> list[str]:
  """A line for each field whose value this family does not compute."""
  read = {
    name
    for name in _HF_NAMES
    if name
    not in sum((f for k, f in _FAMILY_FIELDS.items() if k != family), ())
  }
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
  hf_config: Mapping[str, Any],
) -> tuple[float, LinearRope | Llama3Rope | None, list[str]]:
  """Base, scaling and problems, from either spelling."""
  old = dict(hf_config.get('rope_scaling') or {})
  new = dict(hf_config.get('rope_parameters') or {})
  if old and new:
    if {**old, 'rope_theta': None} != {**new, 'rope_theta': None}:
      return (
        0.0,
        None,
        [
          f'config.json: rope_scaling={old!r} contradicts '
          f'rope_parameters={new!r}'
        ],
      )
  name = 'rope_parameters' if new else 'rope_scaling'
  fields = new or old
  thetas = [
    theta
    for theta in (fields.pop('rope_theta', None), hf_config.get('rope_theta'))
    if theta is not None
  ]
  if len(set(thetas)) > 1:
    return (
      0.0,
      None,
      [
        f'config.json: rope_theta={thetas[1]!r} contradicts '
        f'{name}.rope_theta={thetas[0]!r}'
      ],
    )
  theta = thetas[0] if thetas else 10000.0
  scaling, problems = _scaling_from_hf(fields, f'config.json: {name}')
  return theta, scaling, problems


def _scaling_from_hf(
  fields: dict[str, Any], place: str
) -> tuple[LinearRope | Llama3Rope | None, list[str]]:
  """The scaling that rope_scaling or rope_parameters describes."""
  fields = dict(fields)
  legacy = fields.pop('type', None)
  kind = fields.pop('rope_type', None) or legacy or 'default'
  if fields.get('partial_rotary_factor') == 1.0:
    del fields['partial_rotary_factor']
  kinds = {'default': None, 'linear': LinearRope, 'llama3': Llama3Rope}
  if kind not in kinds:
    return None, [
      f'{place}.rope_type={kind!r} is not supported; allowed: '
      + ', '.join(kinds)
    ]
  scaling_type = kinds[kind]
  names = (
    {field.name for field in dataclasses.fields(scaling_type)}
    if scaling_type
    else set()
  )
  problems = [f'{place}.{n} is missing' for n in sorted(names - set(fields))]
  problems += [
    f'{place}.{n}={fields[n]!r} is not supported for rope_type {kind}'
    for n in sorted(set(fields) - names)
    if fields[n] is not None
  ]
  if problems or scaling_type is None:
    return None, problems
  return scaling_type(**{n: fields[n] for n in names}), []


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
  fields = {
    'architectures': [f'{family.capitalize()}ForCausalLM'],
    'model_type': family,
    'hidden_act': 'silu',
    'rope_theta': config.rope_theta,
    'rope_scaling': None,
  }
  if config.rope_scaling is not None:
    kind = 'linear' if isinstance(config.rope_scaling, LinearRope) else 'llama3'
    fields['rope_scaling'] = {
      'rope_type': kind,
      **dataclasses.asdict(config.rope_scaling),
    }
  other = 'mistral' if family == 'llama' else 'llama'
  for hf_name, name in _HF_NAMES.items():
    if hf_name not in _FAMILY_FIELDS[other]:
      fields[hf_name] = getattr(config, name)
  return fields
