"""Score losses: hand-computed values and what they have in common."""

import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as hypothesis_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.objectives import score_losses, targets

GRID = (1.0, 2.0, 3.0, 4.0, 5.0)
# Mass .8 on the grid, .2 off it; its expectation is 2.4 in full, 3 on the grid.
PROBS = np.float32([0.1, 0.2, 0.2, 0.2, 0.1])
LOSSES = score_losses.SCORE_LOSSES

log_probs = hypothesis_numpy.arrays(
  np.float32, 5, elements=strategies.floats(-8, 0, width=32)
).map(lambda x: x - np.logaddexp.reduce(np.append(x, np.float32(-2))))
ratings = strategies.lists(strategies.floats(1, 5), min_size=1, max_size=4)
settings = hypothesis.settings(max_examples=60, deadline=None)


def value(name, log_probs, scores, expectation='full', grid=GRID):
  """A score loss against ratings."""
  return LOSSES[name](
    score_losses.on_grid(jnp.asarray(log_probs), expectation),
    np.float32(grid),
    jnp.float32(np.mean(scores)),
    jnp.asarray(targets.grid_distribution(scores, grid)),
  )


@pytest.mark.parametrize(
  ('name', 'expectation', 'expected'),
  [
    ('squared_error', 'full', (2.4 - 4) ** 2),
    ('squared_error', 'grid', (3 - 4) ** 2),
    # F at 0, 1, 2, 3, 4, 5: .2 .3 .5 .7 .9 1; G is 0 up to 4.
    ('crps', 'full', 0.2**2 + 0.3**2 + 0.5**2 + 0.7**2 + 0.1**2),
    ('crps', 'grid', 0.125**2 + 0.375**2 + 0.625**2 + 0.125**2),
    ('wasserstein', 'full', 0.2 + 0.3 + 0.5 + 0.7 + 0.1),
    ('wasserstein', 'grid', 0.125 + 0.375 + 0.625 + 0.125),
    ('distribution_ce', 'full', -np.log(0.2)),
    ('distribution_ce', 'grid', -np.log(0.25)),
  ],
)
def test_whole_score_by_hand(name, expectation, expected):
  found = value(name, np.log(PROBS), [4.0], expectation)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_off_grid_penalty_is_minus_log_mass():
  found = score_losses.off_grid_penalty(jnp.log(PROBS))
  np.testing.assert_allclose(found, -np.log(0.8), rtol=1e-5)


def test_mass_off_a_grid_with_a_zero_lies_at_the_zero():
  probs, grid = np.float32([0.25, 0.25, 0.25]), (-2.0, 0.0, 4.0)
  found = value('wasserstein', np.log(probs), [4.0], grid=grid)
  # E |y - 4|: 6 at -2, 4 at 0, where the missing quarter is, too.
  np.testing.assert_allclose(found, 0.25 * 6 + 0.5 * 4, rtol=1e-6)
  inside = value('wasserstein', np.log(probs), [2.0], grid=(-2.0, 1.0, 4.0))
  # F 1/4, 1/2, 3/4 from -2, 0, 1; G 0 up to 1, then 2/3 up to 4.
  expected = 2 / 4 + 1 / 2 + 3 * (3 / 4 - 2 / 3)
  np.testing.assert_allclose(inside, expected, rtol=1e-6)


@settings
@hypothesis.given(log_probs, ratings, strategies.sampled_from(['full', 'grid']))
def test_wasserstein_bounds_crps_and_the_error_of_the_mean(
  log_probs, scores, expectation
):
  found = {n: value(n, log_probs, scores, expectation) for n in LOSSES}
  assert found['crps'] <= found['wasserstein'] + 1e-5
  assert np.sqrt(found['squared_error']) <= found['wasserstein'] + 1e-4


@settings
@hypothesis.given(log_probs, strategies.integers(1, 5))
def test_wasserstein_of_a_whole_score_is_the_expected_absolute_error(
  log_probs, score
):
  probs = np.exp(log_probs)
  expected = probs @ np.abs(np.array(GRID) - score) + (1 - probs.sum()) * score
  found = value('wasserstein', log_probs, [score])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@settings
@hypothesis.given(
  strategies.sets(strategies.integers(-8, 8), min_size=1, max_size=5),
  log_probs,
  strategies.floats(0, 1),
  strategies.sampled_from(['full', 'grid']),
)
def test_integrals_on_any_grid(numbers, log_probs, place, expectation):
  grid = np.array(sorted(numbers), float)
  log_probs = log_probs[: len(grid)]
  score = grid[0] + place * (grid[-1] - grid[0])
  score = min(score, grid[-1])  # Rounded up, perhaps.
  probs = np.exp(log_probs.astype(float))
  probs = probs / probs.sum() if expectation == 'grid' else probs
  rater = targets.grid_distribution([score], grid)
  # The definitions, from the left of each interval between scores or 0.
  points = np.array(sorted({*grid, 0.0}))
  off_grid = (1 - probs.sum()) * (points >= 0)
  model = (probs * (grid <= points[:, None])).sum(axis=1) + off_grid
  gaps = model - (rater * (grid <= points[:, None])).sum(axis=1)
  widths = np.diff(points)
  wanted = {
    'crps': (gaps[:-1] ** 2 * widths).sum(),
    'wasserstein': (abs(gaps[:-1]) * widths).sum(),
    'squared_error': (probs @ grid - score) ** 2,
  }
  for name, integral in wanted.items():
    found = value(name, log_probs, [score], expectation, tuple(grid))
    np.testing.assert_allclose(found, integral, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('expectation', score_losses.EXPECTATIONS)
@pytest.mark.parametrize('grid', [(3.0,), (0.0,), (-4.0, 0.0, 4.0)])
def test_all_mass_off_the_grid_is_finite(name, expectation, grid):
  log_probs = jnp.full(len(grid), -2e4)

  def loss(log_probs):
    return value(name, log_probs, [grid[-1]], expectation, grid)

  found, grad = jax.value_and_grad(loss)(log_probs)
  assert np.isfinite(found) and np.isfinite(grad).all()
  penalty = score_losses.off_grid_penalty(log_probs)
  np.testing.assert_allclose(penalty, 2e4 - np.log(len(grid)), rtol=1e-6)


@settings
@hypothesis.given(log_probs, ratings)
def test_crps_of_ratings_is_their_mean_less_their_spread(log_probs, scores):
  def excess(log_probs):
    mixed = value('crps', log_probs, scores)
    return np.mean([value('crps', log_probs, [s]) for s in scores]) - mixed

  uniform = np.full(5, -np.log(5), np.float32)
  np.testing.assert_allclose(excess(log_probs), excess(uniform), atol=1e-5)


@settings
@hypothesis.given(log_probs, ratings)
def test_full_cross_entropy_holds_the_off_grid_penalty(log_probs, scores):
  full = value('distribution_ce', log_probs, scores, 'full')
  grid = value('distribution_ce', log_probs, scores, 'grid')
  leak = score_losses.off_grid_penalty(jnp.asarray(log_probs))
  np.testing.assert_allclose(full, grid + leak, rtol=1e-4, atol=1e-5)


@settings
@hypothesis.given(log_probs, ratings, strategies.floats(-30, 0))
def test_on_the_grid_the_mass_does_not_matter(log_probs, scores, shift):
  for name in LOSSES:
    np.testing.assert_allclose(
      value(name, log_probs + np.float32(shift), scores, 'grid'),
      value(name, log_probs, scores, 'grid'),
      rtol=1e-3,
      atol=1e-4,
    )


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('expectation', score_losses.EXPECTATIONS)
def test_certainty_of_the_score_costs_nothing(name, expectation):
  certain = np.float32([-100, -100, 0, -100, -100])
  assert abs(value(name, certain, [3.0], expectation)) < 1e-6


def test_unknown_expectation_is_refused():
  with pytest.raises(ValueError, match="'some' is not one of"):
    score_losses.on_grid(jnp.log(PROBS), 'some')
