"""Intervals without resamples: by hand, beside the bootstrap, and coverage."""

import numpy as np
import pytest

from tract_jax.evaluation import influence, jackknife, metrics, resampling


def draw(rng, num_rows, num_seeds=1):
  """Scores, predictions with r of .6 and a bias of .25, and their rows."""
  scores = np.repeat(rng.normal(size=num_rows), num_seeds)
  shared = np.repeat(rng.normal(size=num_rows), num_seeds)
  own = rng.normal(size=num_rows * num_seeds) if num_seeds > 1 else 0.0
  noise = np.sqrt(0.5) * (shared + own) if num_seeds > 1 else shared
  predictions = 0.6 * scores + 0.8 * noise + 0.25
  return scores, predictions, np.repeat(np.arange(num_rows), num_seeds)


def test_influence_is_the_slope_in_a_rows_weight():
  scores, predictions, _ = draw(np.random.default_rng(0), 12)
  found = influence.pearson(scores, predictions)
  assert found.mean() == pytest.approx(0, abs=1e-12)
  step = 1e-6
  for i in range(12):
    weights = np.full(12, (1 - step) / 12)
    weights[i] += step
    moved = np.cov(scores, predictions, aweights=weights, ddof=0)
    r = moved[0, 1] / np.sqrt(moved[0, 0] * moved[1, 1])
    slope = (r - np.corrcoef(scores, predictions)[0, 1]) / step
    assert slope == pytest.approx(found[i], abs=1e-4)


def test_they_are_those_of_the_bootstrap_on_many_rows():
  scores, predictions, rows = draw(np.random.default_rng(1), 2000)
  found = jackknife.intervals(scores, predictions, rows, 0.95, True)
  ids = tuple(map(str, rows))
  of_rows = metrics.Rows('flask', ids, tuple(scores))
  (drawn,) = resampling.resample(
    of_rows, predictions[None], resampling.Bootstrap(4000), 0.5
  )
  for name in ('pearson', 'rmse'):
    expected = np.quantile(drawn[name].draws, [0.025, 0.975])
    width = expected[1] - expected[0]
    np.testing.assert_allclose(found[name], expected, atol=0.07 * width)


def test_several_predictions_of_a_row_count_as_one_row():
  scores, predictions, rows = draw(np.random.default_rng(2), 50)
  alone = jackknife.intervals(scores, predictions, rows, 0.95, True)
  again = [np.tile(x, 3) for x in (scores, predictions, rows)]
  found = jackknife.intervals(*again, 0.95, True)
  for name, ci in alone.items():
    assert found[name] == pytest.approx(ci)


@pytest.mark.parametrize('num_seeds', [1, 2])
def test_intervals_cover_the_truth(num_seeds):
  rng = np.random.default_rng(3)
  # RMSE: E (0.6 x + .8 n + .25 - x)^2 = .16 + .64 + .0625.
  truth = {'pearson': 0.6, 'rmse': np.sqrt(0.8625), 'bias': 0.25}
  covered = dict.fromkeys(truth, 0)
  for _ in range(1000):
    found = jackknife.intervals(*draw(rng, 40, num_seeds), 0.95, True)
    for name, (low, high) in found.items():
      covered[name] += low <= truth[name] <= high
  for name, number in covered.items():
    assert 910 <= number <= 975, name


def test_few_rows_have_none_and_no_error_has_no_spread():
  scores = np.arange(10.0)
  rows = np.arange(10)
  assert jackknife.intervals(scores[:9], scores[:9], rows[:9], 0.9, True) == {}
  same = jackknife.intervals(scores, scores, rows, 0.9, True)
  assert same['bias'] == same['rmse'] == (0.0, 0.0)
  assert same['pearson'] == pytest.approx((1.0, 1.0))
  constant = jackknife.intervals(scores, np.full(10, 4.5), rows, 0.9, False)
  assert set(constant) == {'bias', 'rmse'}
  wider = jackknife.intervals(scores, np.full(10, 4.5), rows, 0.99, False)
  assert wider['bias'][1] > constant['bias'][1] > 0
