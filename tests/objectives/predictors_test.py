"""Predictors against hand-computed values."""

import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.objectives import predictors

GRID = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])


def test_score_probs_are_taken_over_the_whole_vocabulary():
  logits = jnp.log(jnp.array([0.2, 0.1, 0.3, 0.4]))
  probs = predictors.score_probs(logits, jnp.array([3, 1]))
  np.testing.assert_allclose(probs, [0.4, 0.1], rtol=1e-6)


def test_score_probs_of_bfloat16_logits_are_finite_and_float32():
  logits = jnp.array([[1e4, -1e4, 0.0]], jnp.bfloat16)
  probs = predictors.score_probs(logits, jnp.array([0, 1]))
  assert probs.dtype == jnp.float32
  np.testing.assert_array_equal(probs, [[1.0, 0.0]])


def test_rail_counts_mass_off_the_grid_as_zero():
  probs = jnp.array([0.1, 0.0, 0.3, 0.2, 0.0])  # Mass .6.
  np.testing.assert_allclose(predictors.rail(probs, GRID), 1.8, rtol=1e-6)
  np.testing.assert_allclose(
    predictors.rail_normalized(probs, GRID), 3.0, rtol=1e-6
  )


def test_one_hot_distribution_gives_that_score():
  for i, value in enumerate(GRID):
    one_hot = jnp.eye(5)[i]
    for name in predictors.FROM_PROBS:
      assert predictors.FROM_PROBS[name](one_hot, GRID) == value


def test_median_is_where_half_the_mass_is_reached():
  probs = jnp.array([0.1, 0.1, 0.1, 0.3, 0.0])
  assert predictors.median(probs, GRID) == 3.0
  assert predictors.median(jnp.array([0.4, 0, 0, 0, 0.5]), GRID) == 5.0


def test_no_mass_is_no_prediction():
  assert np.isnan(predictors.rail_normalized(jnp.zeros(5), GRID))
  assert np.isnan(predictors.median(jnp.zeros(5), GRID))


def test_mean_over_cots_leaves_out_invalid_ones():
  values = jnp.array([[1.0, jnp.nan, 2.0], [jnp.nan] * 3])
  np.testing.assert_array_equal(
    predictors.mean_over_cots(values), [1.5, np.nan]
  )


def test_predict_by_name():
  probs = jnp.stack([jnp.eye(5)[1], jnp.eye(5)[3]])[None]
  decoded = jnp.array([[5.0, jnp.nan]])
  assert predictors.predict('rail', probs, decoded, GRID)[0] == 3.0
  assert predictors.predict('decode', probs, decoded, GRID)[0] == 5.0
  with pytest.raises(ValueError, match="'mode' is not one of"):
    predictors.predict('mode', probs, decoded, GRID)
