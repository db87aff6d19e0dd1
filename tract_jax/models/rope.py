"""Rotary position embeddings, in Hugging Face's rotate-half convention.

In: positions. Out: cosines and sines, and heads turned by them. Axes as in
types.py; H is split into two halves, not into neighbouring pairs.
"""

import math

import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.models import config as config_lib


def inverse_frequencies(config: config_lib.ModelConfig) -> np.ndarray:
  """Angle per position of each rotated pair.

      f_i = theta^(-2 i / H),  i = 0 .. H/2 - 1

  changed by the configured scaling: divided by a factor everywhere (linear),
  only where the wavelength is long (Llama 3.1), or for the later pairs (YaRN).
  Dynamic scaling changes nothing in the rows that a model accepts.

  Args:
    config: gives H, theta and the scaling.

  Returns:
    [H/2] float32.
  """
  # Rounded where transformers rounds: an angle of hundreds of radians shows
  # the last bit of its frequency, and that is what models were trained with.
  exponents = np.arange(0, config.head_dim, 2) / config.head_dim
  exponents = exponents.astype(np.float32)
  powers = config.rope_theta ** exponents.astype(np.float64)
  powers = powers.astype(np.float32)
  frequencies = np.reciprocal(powers)
  scaling = config.rope_scaling
  if isinstance(scaling, config_lib.LinearRope):
    frequencies = frequencies / scaling.factor
  elif isinstance(scaling, config_lib.Llama3Rope):
    frequencies = _llama3_frequencies(frequencies, scaling)
  elif isinstance(scaling, config_lib.YarnRope):
    slowed = np.reciprocal(scaling.factor * powers)
    keep = _yarn_kept(config.head_dim, config.rope_theta, scaling)
    frequencies = keep * frequencies + (1.0 - keep) * slowed
  return frequencies.astype(np.float32)


def attention_factor(config: config_lib.ModelConfig) -> float:
  """What cosines and sines are multiplied by: 1 but for YaRN.

      m(1)  or  m(mscale) / m(mscale_all_dim),  m(s) = 0.1 s ln(factor) + 1

  where the scaling does not give the number itself (YaRN, arXiv:2309.00071,
  equation 22, in transformers' generalisation).

  Args:
    config: gives the scaling.

  Returns:
    The factor.
  """
  scaling = config.rope_scaling
  if not isinstance(scaling, config_lib.YarnRope):
    return 1.0
  if scaling.attention_factor is not None:
    return scaling.attention_factor
  stretched = math.log(max(scaling.factor, 1.0))
  if scaling.mscale is None or scaling.mscale_all_dim is None:
    return 0.1 * stretched + 1.0
  return (0.1 * scaling.mscale * stretched + 1.0) / (
    0.1 * scaling.mscale_all_dim * stretched + 1.0
  )


def _llama3_frequencies(
  frequencies: np.ndarray, scaling: config_lib.Llama3Rope
) -> np.ndarray:
  """[H/2] frequencies, the low ones divided by the factor."""
  turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
  # 1 where a pair turns often within the original length, 0 where it does not.
  keep = (turns - scaling.low_freq_factor) / (
    scaling.high_freq_factor - scaling.low_freq_factor
  )
  keep = np.clip(keep, 0.0, 1.0)
  return keep * frequencies + (1.0 - keep) * frequencies / scaling.factor


def _yarn_kept(
  head_dim: int, theta: float, scaling: config_lib.YarnRope
) -> np.ndarray:
  """[H/2] float32: 1 for pairs kept as they are, 0 for those slowed down."""

  def pair_of(turns: float) -> float:
    """Index, not rounded, of the pair with so many turns in that length."""
    per_radian = scaling.original_max_position_embeddings / (
      turns * 2 * math.pi
    )
    return head_dim * math.log(per_radian) / (2 * math.log(theta))

  first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  # The bound is H - 1, although there are H/2 pairs: so in transformers.
  first, last = max(first, 0), min(last, head_dim - 1)
  if first == last:
    last += 0.001
  pairs = np.arange(head_dim // 2, dtype=np.float32)
  return 1.0 - np.clip((pairs - first) / (last - first), 0.0, 1.0)


def rotations(
  positions: types.Array, frequencies: np.ndarray, factor: float = 1.0
) -> tuple[types.Array, types.Array]:
  """Cosines and sines of each position's angles.

  Float32: bfloat16 cannot tell positions over 256 apart.

  Args:
    positions: [B, L] int32.
    frequencies: [H/2] float32, of `inverse_frequencies`.
    factor: of `attention_factor`.

  Returns:
    cos and sin, each [B, L, 1, H] float32, to be used for all heads; both
    numbers of a pair have the same.
  """
  positions = positions.astype(jnp.float32)[:, :, None, None]
  frequencies = jnp.asarray(np.tile(frequencies, 2))
  angles = positions * frequencies[None, None, None, :]
  return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotated(
  heads: types.Array, rotation: tuple[types.Array, types.Array]
) -> types.Array:
  """Queries or keys, turned by their positions.

      [x1, x2] -> [x1, x2] cos + [-x2, x1] sin

  The halves change places by a product with a matrix of 0, 1 and -1, which is
  exact: a TPU's matrix unit has room for it, while to move half a row of
  numbers past the other half takes it a tenth of a layer's time.

  Args:
    heads: [B, L, N or K, H].
    rotation: of `rotations`.

  Returns:
    The same shape and dtype; computed in float32.
  """
  cos, sin = rotation
  half = np.eye(heads.shape[-1] // 2, dtype=np.float32)
  swap = np.block([[0 * half, half], [-half, 0 * half]])
  swapped = jnp.matmul(
    heads,
    swap.astype(heads.dtype),
    precision='highest',
    preferred_element_type=jnp.float32,
  )
  turned = heads.astype(jnp.float32) * cos + swapped * sin
  return turned.astype(heads.dtype)
