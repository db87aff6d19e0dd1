"""The rater's arithmetic."""

import numpy as np
import pytest

from tract_jax.data import synthetic_rater
from tract_jax.text import prompts

TEN = prompts.make_score_grid(range(11))
HALVES = prompts.make_score_grid([i / 2 for i in range(2, 11)], '{:.1f}')


def test_ideal_pearson_by_hand():
  assert synthetic_rater.ideal_pearson((1.0,)) == pytest.approx((1.0, 1.0))
  np.testing.assert_allclose(
    synthetic_rater.expected_scores((0.0, 0.0, 1.0)), [2, 3, 4, 5, 5]
  )
  # e = -1 or 1, evenly. Quality 1..5 gives the scores {1, 2}, {1, 3}, {2, 4},
  # {3, 5}, {4, 5} with means 1.5, 2, 3, 4, 4.5: variance 1.3 of 2.
  ceiling, one_sample = synthetic_rater.ideal_pearson((0.5, 0.0, 0.5))
  assert one_sample == pytest.approx(1.3 / 2.0)
  assert ceiling == pytest.approx((1.3 / 2.0) ** 0.5)


def test_levels_lie_evenly_over_the_grid():
  def indices(grid):
    levels = range(1, 6)
    return [synthetic_rater.level_index(level, grid) for level in levels]

  assert indices(synthetic_rater.GRID) == [0, 1, 2, 3, 4]
  assert indices(HALVES) == [0, 2, 4, 6, 8]
  assert indices(TEN) == [0, 3, 5, 8, 10]
  assert indices(prompts.make_score_grid([1, 2])) == [0, 0, 1, 1, 1]


def test_noise_of_a_grid_of_five_is_as_it_is_given():
  for noise in ((1.0,), (0.3, 0.4, 0.3), (0.1, 0.1, 0.2, 0.5, 0.1)):
    found = synthetic_rater.deviations(noise, synthetic_rater.GRID)
    np.testing.assert_array_equal(found, noise)


def test_noise_between_levels_by_hand():
  # Half a level a step: .3 and .4 at levels, .35 and .15 between them.
  found = synthetic_rater.deviations(synthetic_rater.NOISE, HALVES)
  wanted = np.array([0.15, 0.3, 0.35, 0.4, 0.35, 0.3, 0.15])
  np.testing.assert_allclose(found, wanted / 2.0)
  # Exact raters stay within half a level.
  found = synthetic_rater.deviations((1.0,), HALVES)
  np.testing.assert_allclose(found, [0.25, 0.5, 0.25])


@pytest.mark.parametrize('grid', [HALVES, TEN])
def test_a_finer_grid_leaves_as_much_to_learn(grid):
  ceiling, one_sample = synthetic_rater.ideal_pearson(grid=grid)
  assert 0.85 < ceiling < 0.9
  assert one_sample == pytest.approx(ceiling**2)
