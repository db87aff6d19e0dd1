"""The architecture of a Llama-family model, as numbers.

Every field of a `ModelConfig` changes shapes, results or limits of the model;
`hf_config` reads one from a Hugging Face config.json.
"""

import dataclasses
import math
import typing
from typing import Any

from tract_jax import types

# A file that says more would fill the memory with names of weights.
_MAX_LAYERS = 10_000


@dataclasses.dataclass(frozen=True)
class LinearRope:
  """Rotary frequencies divided by `factor` (position interpolation)."""

  factor: float


@dataclasses.dataclass(frozen=True)
class DynamicRope:
  """Rotary frequencies that fall as a row grows past the trained length.

  Rows up to `max_position_embeddings` are computed without scaling. In a longer
  one the base grows with the row, and with it the angle of every earlier
  token, so that no key could stay in a cache: such rows are refused. `factor`
  is what config.json says of them; no accepted row depends on it.
  """

  factor: float


@dataclasses.dataclass(frozen=True)
class YarnRope:
  """YaRN: slow pairs are stretched, and queries and keys are scaled.

  Pairs that turn less than `beta_slow` times within the original length are
  slowed down by `factor`, those that turn more than `beta_fast` times are
  kept, and those between are interpolated.

  Attributes:
    factor: by how much slow pairs are slowed down.
    original_max_position_embeddings: the length trained before stretching.
    attention_factor: multiplies cosines and sines, and so the scores by its
      square; None for m(1), where m(s) = 0.1 s ln(factor) + 1, or for
      m(mscale) / m(mscale_all_dim) where both of these are given.
    mscale, mscale_all_dim: see `attention_factor`.
    beta_fast, beta_slow: turns at which the interpolation ends and begins.
    truncate: whether its ends are rounded outwards to whole pairs.

  References:
    Peng et al., "YaRN: Efficient Context Window Extension of Large Language
    Models", arXiv:2309.00071; transformers' modeling_rope_utils.
  """

  factor: float
  original_max_position_embeddings: int
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True


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


RopeScaling = LinearRope | DynamicRope | YarnRope | Llama3Rope


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
    max_position_embeddings: positions the model is made for; see `longest_row`.
    norm_eps: added to the mean square in every RMSNorm.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: how the rotary frequencies are changed, or None.
    sliding_window: a token sees itself and the `sliding_window - 1` tokens
      before it, in all layers; None for all tokens before it.
    tie_word_embeddings: whether logits are taken with the embedding itself.
    qkv_bias: whether q, k and v projections have biases.
    output_bias: whether o projections have biases.
    mlp_bias: whether gate, up and down projections have biases.
    qk_norm: whether each head's query and key goes through an RMSNorm over H
      before it is rotated.
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
  rope_scaling: RopeScaling | None = None
  sliding_window: int | None = None
  tie_word_embeddings: bool = False
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  initializer_range: float = 0.02

  def __post_init__(self):
    problems = _problems(self)
    if problems:
      raise types.InputError('\n'.join(problems))

  @property
  def longest_row(self) -> int:
    """Tokens of the longest row, and of the longest cache, accepted.

    Linear scaling and YaRN are set on checkpoints whose
    `max_position_embeddings` is that of the unstretched model: they reach
    `factor` times the original length.
    """
    scaling = self.rope_scaling
    if isinstance(scaling, LinearRope):
      stretched = scaling.factor * self.max_position_embeddings
    elif isinstance(scaling, YarnRope):
      stretched = scaling.factor * scaling.original_max_position_embeddings
    else:
      stretched = 0
    return max(self.max_position_embeddings, int(min(stretched, 2**53)))


def _problems(config: ModelConfig) -> list[str]:
  """One line for each bad field."""
  problems = []
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name == 'rope_scaling':
      problems += _scaling_problems(value)
    else:
      problems += _value_problems('model', field, value)
  if problems:
    return problems
  if config.num_layers > _MAX_LAYERS:
    problems.append(
      f'model.num_layers={config.num_layers}: more than {_MAX_LAYERS}, which'
      ' no model has'
    )
  if config.num_heads % config.num_kv_heads:
    problems.append(
      f'model.num_kv_heads={config.num_kv_heads}: must divide '
      f'num_heads={config.num_heads}'
    )
  if config.head_dim % 2:
    problems.append(
      f'model.head_dim={config.head_dim}: must be even, for rotary embeddings'
    )
  if isinstance(config.rope_scaling, YarnRope) and config.rope_theta <= 1:
    problems.append(f'model.rope_theta={config.rope_theta}: must be over 1')
  return problems


def _scaling_problems(scaling: Any) -> list[str]:
  """One line for each bad number of a rotary scaling."""
  if scaling is None:
    return []
  if not isinstance(scaling, RopeScaling):
    allowed = [kind.__name__ for kind in typing.get_args(RopeScaling)]
    return [
      f'model.rope_scaling={scaling!r}: must be None or one of '
      + ', '.join(allowed)
    ]
  problems = []
  for field in dataclasses.fields(scaling):
    value = getattr(scaling, field.name)
    problems += _value_problems('model.rope_scaling', field, value)
  if problems:
    return problems
  for smaller, larger in (
    ('low_freq_factor', 'high_freq_factor'),
    ('beta_slow', 'beta_fast'),
  ):
    low, high = getattr(scaling, smaller, 0), getattr(scaling, larger, 1)
    if high <= low:
      problems.append(
        f'model.rope_scaling.{larger}={high}: must exceed {smaller}={low}'
      )
  return problems


def _value_problems(
  place: str, field: dataclasses.Field[Any], value: Any
) -> list[str]:
  """A line if a value is not of its field's type, or not over 0."""
  kinds = typing.get_args(field.type) or (field.type,)
  if value is None and type(None) in kinds:
    return []
  if bool in kinds:
    expected, is_right = 'a bool', isinstance(value, bool)
  elif float in kinds:
    expected, is_right = 'a number over 0', is_positive(value, whole=False)
  else:
    expected, is_right = 'a whole number over 0', is_positive(value, whole=True)
  return (
    [] if is_right else [f'{place}.{field.name}={value!r}: must be {expected}']
  )


def is_positive(value: Any, *, whole: bool) -> bool:
  """Whether a value of any kind is a finite number over 0, and no bool."""
  if isinstance(value, bool) or not isinstance(
    value, int if whole else (int, float)
  ):
    return False
  return math.isfinite(value) and value > 0
