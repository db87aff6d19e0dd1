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

  changed by the configured scaling: divided by a factor (linear), or only
  where the wavelength is long (Llama 3.1).

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
  frequencies = np.reciprocal(powers.astype(np.float32))
  scaling = config.rope_scaling
  if isinstance(scaling, config_lib.LinearRope):
    frequencies = frequencies / scaling.factor
  elif isinstance(scaling, config_lib.Llama3Rope):
    frequencies = _llama3_frequencies(frequencies, scaling)
  return frequencies.astype(np.float32)


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


def rotations(
  positions: types.Array, frequencies: np.ndarray
) -> tuple[types.Array, types.Array]:
  """Cosines and sines of each position's angles.

  Float32: bfloat16 cannot tell positions over 256 apart.

  Args:
    positions: [B, L] int32.
    frequencies: [H/2] float32, of `inverse_frequencies`.

  Returns:
    cos and sin, each [B, L, 1, H/2] float32, to be used for all heads.
  """
  positions = positions.astype(jnp.float32)[:, :, None, None]
  angles = positions * jnp.asarray(frequencies)[None, None, None, :]
  return jnp.cos(angles), jnp.sin(angles)


def rotated(
  heads: types.Array, rotation: tuple[types.Array, types.Array]
) -> types.Array:
  """Queries or keys, turned by their positions.

      [x1, x2] -> [x1 cos - x2 sin, x2 cos + x1 sin]

  Args:
    heads: [B, L, N or K, H].
    rotation: of `rotations`.

  Returns:
    The same shape and dtype; computed in float32.
  """
  cos, sin = rotation
  first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(heads.dtype)
