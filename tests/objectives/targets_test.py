"""What a score is trained towards."""

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from tract_jax import types
from tract_jax.objectives import targets

GRID = (1.0, 2.0, 3.0, 4.0, 5.0)
ROW = types.Example('x', 'p', 4.0, ratings=(4.0, 2.0, 2.5))


@pytest.mark.parametrize(
  ('scores', 'expected'),
  [
    ((1.0,), [1, 0, 0, 0, 0]),
    ((5.0,), [0, 0, 0, 0, 1]),
    ((3.25,), [0, 0, 0.75, 0.25, 0]),
    ((4.0, 4.0, 2.0, 1.0), [0.25, 0.25, 0, 0.5, 0]),
    ((1.5, 4.0), [0.25, 0.25, 0, 0.5, 0]),
  ],
)
def test_distribution_by_hand(scores, expected):
  found = targets.grid_distribution(scores, GRID)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, np.float32(expected))


def test_grid_may_be_uneven_or_of_one():
  found = targets.grid_distribution((2.0,), (-4.0, 0.0, 8.0))
  np.testing.assert_array_equal(found, np.float32([0, 0.75, 0.25]))
  assert targets.grid_distribution((3.0,), (3.0,)) == [1.0]


@pytest.mark.parametrize('score', [0.9, 5.1, float('nan'), float('inf')])
def test_scores_outside_the_grid_are_named(score):
  with pytest.raises(types.InputError, match=f'score {score:g} is outside'):
    targets.grid_distribution((3.0, score), GRID)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(strategies.lists(strategies.floats(1, 5), min_size=1))
def test_distribution_has_the_scores_mean_and_lies_beside_them(scores):
  found = targets.grid_distribution(scores, GRID)
  assert (found >= 0).all()
  np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
  np.testing.assert_allclose(found @ np.array(GRID), np.mean(scores), rtol=1e-5)
  for value, share in zip(GRID, found, strict=True):
    assert share == 0 or any(abs(value - score) < 1 for score in scores)


def test_kinds_of_target():
  by_kind = {k: targets.with_target(ROW, k) for k in targets.KINDS}
  assert (by_kind['score'].score, by_kind['score'].ratings) == (4.0, ())
  assert by_kind['mean'].score == pytest.approx(8.5 / 3)
  assert by_kind['mean'].ratings == ()
  assert by_kind['ratings'].score == by_kind['mean'].score
  assert by_kind['ratings'].ratings == ROW.ratings


def test_row_without_ratings_keeps_its_score():
  row = types.Example('x', 'p', 3.5)
  assert all(targets.with_target(row, k) == row for k in targets.KINDS)


def test_mean_of_equal_ratings_is_that_rating():
  # (.8 + .8 + .8) / 3 is above .8 where the sum is rounded, too.
  row = types.Example('x', 'p', 0.8, ratings=(0.8,) * 3)
  found = targets.with_target(row, 'mean').score
  assert targets.grid_distribution((found,), (0.2, 0.8)).tolist() == [0, 1]


def test_unknown_kind_is_refused():
  with pytest.raises(ValueError, match="'mode' is not one of"):
    targets.with_target(ROW, 'mode')
