import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.models import config as config_lib
from tract_jax.models import rope

CONFIG = config_lib.ModelConfig(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  max_position_embeddings=128,
  rope_theta=100.0,
)
LLAMA3 = config_lib.Llama3Rope(
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=64,
)


def test_hand_computed_rotation():
  # theta 100 and H 4: the pairs turn by 1 and 0.1 a position. Pairs are
  # (x0, x2) and (x1, x3).
  frequencies = rope.inverse_frequencies(CONFIG)
  np.testing.assert_allclose(frequencies, [1.0, 0.1], rtol=1e-6)
  heads = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
  rotation = rope.rotations(jnp.array([[2]]), frequencies)
  expected = [
    math.cos(2.0) - 3 * math.sin(2.0),
    2 * math.cos(0.2) - 4 * math.sin(0.2),
    3 * math.cos(2.0) + math.sin(2.0),
    4 * math.cos(0.2) + 2 * math.sin(0.2),
  ]
  turned = rope.rotated(heads, rotation)
  np.testing.assert_allclose(turned[0, 0, 0], expected, rtol=1e-6)


def test_scores_depend_on_distance_alone():
  frequencies = rope.inverse_frequencies(CONFIG)
  query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 4))

  def score(i, j):
    turned = [
      rope.rotated(x, rope.rotations(jnp.array([[position]]), frequencies))
      for x, position in ((query, i), (key, j))
    ]
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-5)
  assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_linear_scaling_divides_positions():
  scaled = dataclasses.replace(CONFIG, rope_scaling=config_lib.LinearRope(4.0))
  np.testing.assert_allclose(
    rope.inverse_frequencies(scaled), [0.25, 0.025], rtol=1e-6
  )


def test_llama3_scaling_stretches_long_wavelengths_alone():
  config = dataclasses.replace(CONFIG, head_dim=8, rope_theta=1e4)
  plain = rope.inverse_frequencies(config)  # 1, 0.1, 0.01, 0.001
  scaled = rope.inverse_frequencies(
    dataclasses.replace(config, rope_scaling=LLAMA3)
  )
  # Turns within 64 positions: 10.2, 1.019, 0.102, 0.0102.
  assert scaled[0] == plain[0]
  keep = (6.4 / (2 * math.pi) - 1.0) / (4.0 - 1.0)
  assert scaled[1] == pytest.approx(0.1 * keep + 0.1 / 8 * (1 - keep), rel=1e-5)
  np.testing.assert_allclose(scaled[2:], plain[2:] / 8, rtol=1e-6)


@pytest.mark.parametrize(
  'change',
  [
    {'factor': 4.0},
    {'low_freq_factor': 0.5},
    {'high_freq_factor': 3.0},
    {'original_max_position_embeddings': 48},
  ],
)
def test_every_number_of_llama3_scaling_is_read(change):
  config = dataclasses.replace(CONFIG, head_dim=8, rope_theta=1e4)
  before, after = (
    rope.inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    for scaling in (LLAMA3, dataclasses.replace(LLAMA3, **change))
  )
  assert np.abs(before / after - 1).max() > 1e-2


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_angles_are_float32(dtype):
  # In bfloat16 positions 1000 and 1001 are one number.
  frequencies = rope.inverse_frequencies(CONFIG)
  cos, _ = rope.rotations(jnp.array([[1000, 1001]]), frequencies)
  assert cos.dtype == jnp.float32
  expected = [math.cos(1000), math.cos(1001)]
  np.testing.assert_allclose(cos[0, :, 0, 0], expected, atol=1e-5)
  heads = jnp.ones((1, 2, 1, 4), dtype)
  assert rope.rotated(heads, (cos, cos)).dtype == dtype
