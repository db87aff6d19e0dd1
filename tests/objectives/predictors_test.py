"""Predictors against hand-computed values."""

import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as hypothesis_numpy
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.objectives import predictors

GRID = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
PROBS = np.float32([0.1, 0.2, 0.1, 0.3, 0.0])  # Mass .7.

# Nothing tiny: denormal numbers are 0 to XLA, but not to numpy.
distributions = hypothesis_numpy.arrays(
  np.float32, 5, elements=strategies.floats(0, 1, width=32)
).map(
  lambda x: np.where(x < 1e-6, 0, x) / np.float32(max(x.sum() * 1.25, 1e-6))
)
settings = hypothesis.settings(max_examples=60, deadline=None)
# Of one score or several, negative ones too; the smallest steps are .25.
grids = strategies.sets(
  strategies.integers(-40, 40), min_size=1, max_size=6
).map(lambda quarters: np.float32(sorted(quarters)) / 4)


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


@pytest.mark.parametrize('name', predictors.PREDICTORS)
def test_one_hot_distribution_gives_that_score(name):
  probs = jnp.eye(5)[:, None]
  found = predictors.predict(
    name,
    probs,
    GRID[:, None],
    GRID,
    temperature=3.0,
    uniforms=GRID[:, None] / 6,
  )
  np.testing.assert_allclose(found, GRID, rtol=1e-6)


@settings
@hypothesis.given(distributions, strategies.floats(0.05, 20))
def test_what_is_renormalised_lies_within_the_grid(probs, temperature):
  hypothesis.assume(probs.sum() > 1e-3)
  for found in (
    predictors.rail_normalized(probs, GRID),
    predictors.median(probs, GRID),
    predictors.tempered(probs, GRID, temperature),
  ):
    assert 1 - 1e-5 <= found <= 5 + 1e-5


@settings
@hypothesis.given(grids, strategies.data(), strategies.floats(0.05, 20))
def test_any_grid_one_hot_and_renormalised(grid, data, temperature):
  probs = data.draw(
    hypothesis_numpy.arrays(
      np.float32, len(grid), elements=strategies.floats(2**-10, 1, width=32)
    )
  )
  probs = probs / np.float32(probs.sum() * data.draw(strategies.floats(1, 9)))
  picked = data.draw(strategies.integers(0, len(grid) - 1))
  one_hot = np.eye(len(grid), dtype=np.float32)[picked]
  for name in ('rail', 'rail_normalized', 'median', 'tempered'):
    found = predictors.per_cot(
      name, np.stack([one_hot, probs]), None, grid, temperature=temperature
    )
    np.testing.assert_allclose(found[0], grid[picked], rtol=1e-6)
    if name == 'rail':  # What is off the grid counts as 0.
      low, high = min(grid[0], 0), max(grid[-1], 0)
    else:
      low, high = grid[0], grid[-1]
    assert low - 1e-4 <= found[1] <= high + 1e-4


def test_hardly_any_mass_still_gives_a_score_of_the_grid():
  probs, grid = np.float32([2e-38, 2e-38]), np.float32([0.125, 0.375])
  found = predictors.rail_normalized(probs, grid)
  np.testing.assert_allclose(found, 0.25, rtol=1e-5)


@pytest.mark.parametrize('temperature', [1e-30, 1e-9, 1e9, 1e300])
def test_extreme_temperatures(temperature):
  # A score without probability has none at any temperature.
  probs = np.float32([[0.1, 0.4, 0.3, 0, 0], [0] * 5, [np.nan] * 5])
  found = predictors.tempered(probs, GRID, temperature)
  np.testing.assert_allclose(found, [2.0, np.nan, np.nan], rtol=1e-5)


def test_temperature_by_hand():
  # Square roots of the probabilities, renormalised.
  roots = np.sqrt(PROBS)
  np.testing.assert_allclose(
    predictors.tempered(PROBS, GRID, 2.0), roots @ GRID / roots.sum(), rtol=1e-5
  )


@settings
@hypothesis.given(distributions)
def test_temperatures_between_the_likeliest_score_and_the_mean(probs):
  hypothesis.assume(probs.sum() > 1e-3)
  np.testing.assert_allclose(
    predictors.tempered(probs, GRID, 1.0),
    predictors.rail_normalized(probs, GRID),
    rtol=1e-5,
  )
  likeliest = np.flatnonzero(probs >= probs.max())
  if len(likeliest) == 1 and np.sort(probs)[-2] < 0.9 * probs.max():
    cold = predictors.tempered(probs, GRID, 0.01)
    np.testing.assert_allclose(cold, GRID[likeliest[0]], rtol=1e-2)
  hot = predictors.tempered(probs, GRID, 1e6)
  np.testing.assert_allclose(hot, GRID[probs > 0].mean(), rtol=1e-3)


def test_sampled_decoding_draws_each_score_with_its_probability():
  uniforms = jnp.arange(0.005, 1, 0.01)
  found = predictors.decode_sampled(jnp.tile(PROBS, (100, 1)), GRID, uniforms)
  counts = [int(np.sum(found == value)) for value in GRID]
  assert counts == [10, 20, 10, 30, 0]
  assert np.isnan(found).sum() == 30


def test_choices_depend_on_seed_row_and_cot_alone():
  found = predictors.decode_uniforms(0, ['a', 'b'], 3)
  assert (found >= 0).all() and (found < 1).all()
  assert len(np.unique(found)) == 6
  np.testing.assert_array_equal(
    predictors.decode_uniforms(0, ['b'], 2)[0], found[1, :2]
  )
  assert (predictors.decode_uniforms(1, ['a', 'b'], 3) != found).all()
  many = predictors.decode_uniforms(0, [str(i) for i in range(2000)], 1)
  np.testing.assert_allclose(np.mean(many), 0.5, atol=0.02)


def test_median_is_where_half_the_mass_is_reached():
  probs = jnp.array([0.1, 0.1, 0.1, 0.3, 0.0])
  assert predictors.median(probs, GRID) == 3.0
  assert predictors.median(jnp.array([0.4, 0, 0, 0, 0.5]), GRID) == 5.0


def test_no_mass_is_no_prediction():
  assert np.isnan(predictors.rail_normalized(jnp.zeros(5), GRID))
  assert np.isnan(predictors.median(jnp.zeros(5), GRID))
  assert np.isnan(predictors.tempered(jnp.zeros(5), GRID, 2.0))


@pytest.mark.parametrize('name', predictors.PREDICTORS)
def test_invalid_cots_give_no_prediction(name):
  probs = jnp.stack([jnp.full(5, jnp.nan), jnp.eye(5)[3]])[None]
  decoded = jnp.array([[jnp.nan, 4.0]])
  uniforms = jnp.array([[0.5, 0.5]])
  each = predictors.per_cot(name, probs, decoded, GRID, uniforms=uniforms)
  np.testing.assert_array_equal(each, [[np.nan, 4.0]])
  mean = predictors.predict(name, probs, decoded, GRID, uniforms=uniforms)
  assert mean == 4.0


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
  with pytest.raises(ValueError, match='needs uniforms'):
    predictors.predict('decode_sampled', probs, decoded, GRID)
