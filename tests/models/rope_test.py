import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tract_jax.models import config as config_lib
from tract_jax.models import hf_rope, rope

CONFIG = dataclasses.replace(
  small_models.CONFIG, head_dim=4, max_position_embeddings=128, rope_theta=100.0
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


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_halves_change_places_without_rounding(dtype):
  heads = jax.random.normal(jax.random.key(1), (2, 3, 4, 64), dtype)
  cos, sin = jnp.zeros((2, 3, 1, 64)), jnp.ones((2, 3, 1, 64))
  first, second = np.split(np.asarray(heads), 2, axis=-1)
  np.testing.assert_array_equal(
    rope.rotated(heads, (cos, sin)), np.concatenate([-second, first], axis=-1)
  )


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


# H 8 and theta 1e4: the pairs turn by 1, 0.1, 0.01 and 0.001 a position.
YARN = config_lib.YarnRope(
  factor=4.0,
  original_max_position_embeddings=64,
  beta_fast=6.4 / (2 * math.pi),
  beta_slow=0.064 / (2 * math.pi),
)


def _yarn(**changes):
  return dataclasses.replace(
    CONFIG,
    head_dim=8,
    rope_theta=1e4,
    rope_scaling=dataclasses.replace(YARN, **changes),
  )


@pytest.mark.parametrize(
  ('changes', 'keep'),
  [
    # Pair 1 turns beta_fast times within 64 positions, pair 3 beta_slow times;
    # pair 2 lies in the middle.
    ({'truncate': False}, [1.0, 1.0, 0.5, 0.0]),
    # 0.9 and 3.1 are rounded outwards to 0 and 4.
    (
      {
        'beta_fast': 64 * 10**-0.9 / (2 * math.pi),
        'beta_slow': 64 * 10**-3.1 / (2 * math.pi),
      },
      [1.0, 0.75, 0.5, 0.25],
    ),
    # Ends past the pairs: 0 and H - 1 are the bounds.
    ({'beta_fast': 1e9, 'beta_slow': 1e-9}, [1.0, 6 / 7, 5 / 7, 4 / 7]),
  ],
)
def test_yarn_interpolates_between_two_numbers_of_turns(changes, keep):
  plain = np.array([1.0, 0.1, 0.01, 0.001])
  keep = np.array(keep)
  np.testing.assert_allclose(
    rope.inverse_frequencies(_yarn(**changes)),
    keep * plain + (1 - keep) * plain / 4,
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ('changes', 'factor'),
  [
    ({}, 0.1 * math.log(4) + 1),
    ({'mscale': 2.0}, 0.1 * math.log(4) + 1),
    (
      {'mscale': 2.0, 'mscale_all_dim': 0.5},
      (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
    ),
    ({'attention_factor': 1.5, 'mscale': 2.0, 'mscale_all_dim': 0.5}, 1.5),
    ({'factor': 0.5}, 1.0),
  ],
)
def test_yarn_scales_cosines_and_sines(changes, factor):
  config = _yarn(**changes)
  assert rope.attention_factor(config) == pytest.approx(factor)
  frequencies = rope.inverse_frequencies(config)
  cos, sin = rope.rotations(jnp.array([[7]]), frequencies, 1.5)
  np.testing.assert_allclose(cos**2 + sin**2, 1.5**2, rtol=1e-5)


def test_other_scalings_leave_cosines_alone():
  for scaling in (None, LLAMA3, config_lib.LinearRope(4.0)):
    config = dataclasses.replace(CONFIG, rope_scaling=scaling)
    assert rope.attention_factor(config) == 1.0


def test_dynamic_scaling_changes_no_accepted_row():
  scaled = dataclasses.replace(CONFIG, rope_scaling=config_lib.DynamicRope(4.0))
  assert (
    rope.inverse_frequencies(scaled) == rope.inverse_frequencies(CONFIG)
  ).all()


@pytest.mark.parametrize(
  ('theta', 'scaling'),
  [
    (1e4, config_lib.YarnRope(4.0, 32768)),
    (1e6, config_lib.YarnRope(4.0, 32768)),
    (5e6, config_lib.YarnRope(32.0, 4096, truncate=False)),
    (5e5, config_lib.Llama3Rope(8.0, 1.0, 4.0, 8192)),
    (1e5, config_lib.LinearRope(4.0)),
    (1e4, None),
  ],
)
def test_frequencies_of_full_size_equal_those_of_transformers(theta, scaling):
  rope_utils = pytest.importorskip('transformers.modeling_rope_utils')
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('torch')
  config = dataclasses.replace(
    CONFIG, head_dim=128, rope_theta=theta, rope_scaling=scaling
  )
  hf_config = transformers.LlamaConfig.from_dict(
    {
      'num_attention_heads': 32,
      'head_dim': 128,
      'max_position_embeddings': 131072,
      **hf_rope.rope_to_hf(theta, scaling),
    }
  )
  rope_type = hf_config.rope_parameters['rope_type']
  if rope_type == 'default':
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    expected, factor = rotary.compute_default_rope_parameters(hf_config)
  else:
    expected, factor = rope_utils.ROPE_INIT_FUNCTIONS[rope_type](hf_config)
  # An ulp: at position 30,000 two show in the fifth digit of an angle's sine.
  np.testing.assert_allclose(
    rope.inverse_frequencies(config), expected.numpy(), rtol=1.2e-7
  )
  assert rope.attention_factor(config) == pytest.approx(factor, rel=1e-12)


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
