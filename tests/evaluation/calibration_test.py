"""Calibration: against closed forms, quadrature and simulated judges."""

import dataclasses
import math

import numpy as np
import pytest
import scipy

from tract_jax.evaluation import calibration, metrics

GRID = np.arange(1.0, 6.0)


def _system(scores, **changes):
  n = len(scores)
  fields = {
    'method': 'tract',
    'predictor': 'rail',
    'num_cots': 1,
    'benchmark': 'flask',
    'seed': 0,
    'example_ids': tuple(str(i) for i in range(n)),
    'scores': np.asarray(scores, np.float64),
    'predictions': np.zeros(n),
    'grid_mass': np.ones(n),
  }
  return metrics.SystemPredictions(**(fields | changes))


def _judge(n, seed=0, sharpness=3.0):
  """Scores that are drawn from the very distributions: a perfect judge's."""
  rng = np.random.default_rng(seed)
  logits = sharpness * rng.normal(size=(n, len(GRID)))
  probs = scipy.special.softmax(logits, axis=-1)
  scores = GRID[(probs.cumsum(axis=-1) > rng.random((n, 1))).argmax(axis=-1)]
  return scores, probs


@pytest.mark.parametrize('score', [1.0, 2.0, 3.7, 5.0, 6.5])
def test_crps_is_the_integral_of_the_squared_distance(score):
  probs = np.array([0.1, 0.2, 0.4, 0.25, 0.05])
  places = np.linspace(-1, 9, 200_001)
  below = (GRID <= places[:, None]) @ probs
  wanted = scipy.integrate.trapezoid(
    np.square(below - (places >= score)), places
  )
  (found,) = calibration.crps(np.array([score]), probs[None], GRID)
  assert found == pytest.approx(wanted, abs=1e-4)


def test_crps_of_a_certain_judge_is_its_absolute_error():
  found = calibration.crps(np.array([2.0, 4.5]), np.eye(5)[[3, 0]], GRID)
  np.testing.assert_allclose(found, [2.0, 3.5])


def test_entropy_is_that_of_scipy():
  _, probs = _judge(50)
  probs[0] = np.eye(5)[2]
  np.testing.assert_allclose(
    calibration.entropy(probs), scipy.stats.entropy(probs, axis=-1), atol=1e-12
  )


@pytest.mark.parametrize(
  ('level', 'held'), [(0.3, {3.0}), (0.5, {2.0, 3.0, 4.0}), (0.7, {2, 3, 4})]
)
def test_central_intervals_by_hand(level, held):
  probs = np.array([[0.1, 0.2, 0.4, 0.2, 0.1]] * 5)
  found = calibration.central_coverage(GRID, probs, GRID, level)
  assert found == len(held) / 5


def test_a_perfect_judge_is_calibrated_and_a_boaster_is_not():
  scores, probs = _judge(4000)
  good = calibration.calibrate(_system(scores), probs, GRID)
  assert good.calibration_error < 0.1
  assert good.coverage[0] >= 0.5 - 0.02
  assert good.coverage[1] >= 0.9 - 0.02
  # The same expectations, with all mass on the likeliest score.
  boasting = np.eye(5)[probs.argmax(axis=-1)]
  bad = calibration.calibrate(_system(scores), boasting, GRID)
  assert bad.coverage[1] < 0.85
  assert bad.crps > good.crps
  assert bad.entropy == 0 < good.entropy


@pytest.mark.parametrize('level', [0.5, 0.8, 0.95])
def test_conformal_intervals_hold_their_level(level):
  covered = []
  for seed in range(60):
    scores, probs = _judge(400, seed)
    # A judge that is wrong by a point: wider, and just as true.
    half_width, coverage = calibration.split_conformal(
      scores, probs @ GRID + 1, level
    )
    assert half_width > 0
    covered.append(coverage)
  assert np.mean(covered) == pytest.approx(level, abs=0.02)


def test_the_curve_has_every_row_once_in_order():
  scores, probs = _judge(103)
  curve = calibration.reliability_curve(scores, probs @ GRID)
  assert sum(b.num_rows for b in curve) == 103
  assert len(curve) == 10
  means = [b.mean_prediction for b in curve]
  assert means == sorted(means)
  total = sum(b.num_rows * b.mean_score for b in curve) / 103
  assert total == pytest.approx(scores.mean())


def test_rows_without_distribution_or_mass_are_counted():
  scores, probs = _judge(40)
  probs[3] = np.nan
  probs[5] = 0.0
  found = calibration.calibrate(_system(scores), probs, GRID)
  assert (found.num_rows, found.num_left_out) == (38, 2)
  left = np.delete(np.arange(40), [3, 5])
  other = calibration.calibrate(_system(scores[left]), probs[left], GRID)
  same = dataclasses.replace(other, num_left_out=2)
  assert found == same


def test_mass_off_the_grid_changes_nothing():
  scores, probs = _judge(40)
  assert calibration.calibrate(
    _system(scores), probs / 2, GRID
  ).crps == pytest.approx(
    calibration.calibrate(_system(scores), probs, GRID).crps
  )


@pytest.mark.parametrize(
  ('scores', 'num_rows'), [([3.0] * 5, 5), ([math.nan] * 30, 0), ([], 0)]
)
def test_too_few_rows_are_none_with_a_reason(scores, num_rows):
  probs = np.full((len(scores), 5), 0.2)
  found = calibration.calibrate(_system(scores), probs, GRID)
  assert found.crps is found.coverage is found.conformal_coverage is None
  assert found.curve == ()
  assert found.reason == (
    f'{num_rows} rows with score and distribution, below 20'
  )


def test_a_level_that_the_rows_cannot_give_is_none():
  scores, probs = _judge(24)
  found = calibration.calibrate(
    _system(scores), probs, GRID, conformal_level=0.99
  )
  assert found.conformal_half_width is found.conformal_coverage is None
  assert found.crps is not None
  assert found.reason == (
    'conformal_half_width, conformal_coverage: 24 rows are too few for a level'
    ' of 0.99'
  )


def test_the_table_has_means_over_seeds():
  scores, probs = _judge(40)
  records = [
    calibration.calibrate(_system(scores, seed=seed), probs, GRID)
    for seed in (0, 1)
  ]
  none = calibration.calibrate(_system([3.0], benchmark='mt'), probs[:1], GRID)
  header, lines = calibration.cells([*records, none])
  assert [line[:4] for line in lines] == [
    ['tract', 1, 'flask', 2],
    ['tract', 1, 'mt', 1],
  ]
  assert {len(line) for line in lines} == {len(header)}
  assert lines[0][4] == f'{records[0].crps:.3f}'.lstrip('0')
  assert set(lines[1][4:]) == {'n/a'}
