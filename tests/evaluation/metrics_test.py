"""Metrics against hand-computed values and scipy, and what has no value."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
from scipy import stats

from tract_jax import types
from tract_jax.evaluation import figures, intervals, metrics, resampling

CORRELATIONS = [figures.pearson, figures.spearman, figures.kendall]


def _predictions(**changes):
  base = metrics.SystemPredictions(
    method='tract',
    predictor='rail',
    num_cots=1,
    benchmark='mt_bench',
    seed=0,
    example_ids=('c', 'a', 'd', 'b'),
    scores=np.array([3.0, 1.0, 4.0, 2.0]),
    predictions=np.array([2.0, 1.0, np.nan, 4.0]),
    grid_mass=np.array([0.5, 1.0, np.nan, 0.9]),
    finish_reasons={'marker': 3, 'length': 1},
  )
  return dataclasses.replace(base, **changes)


def _row(system, fallback=3.0):
  bootstrap = resampling.Bootstrap(num_resamples=100)
  filled, _ = metrics.fill_invalid(system.predictions, fallback)
  (drawn,) = resampling.resample(system.rows, filled[None], bootstrap, 0.5)
  return intervals.metric_row(system, drawn, bootstrap)


class TestFigures:
  def test_pearson_by_hand(self):
    # Deviations (-1.5, -.5, .5, 1.5) and (-1, 1, -1, 1): 2 / sqrt(5 * 4).
    figure = figures.pearson(
      np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 1.0, 3.0])
    )
    assert figure.value == pytest.approx(2 / math.sqrt(20), abs=1e-12)

  def test_spearman_by_hand(self):
    # Ranks (1, 2, 3, 4) and (1, 4, 2, 3): 1 - 6 * (0 + 4 + 1 + 1) / 60.
    figure = figures.spearman(
      np.array([1.0, 2.0, 4.0, 5.0]), np.array([0.1, 9.0, 0.2, 0.3])
    )
    assert figure.value == pytest.approx(0.4, abs=1e-12)

  def test_kendall_is_tau_b(self):
    # Of 6 pairs 3 agree, 2 disagree, 1 is tied in the predictions: tau-b is
    # (3 - 2) / sqrt(6 * 5), tau-a would be 1 / 6.
    figure = figures.kendall(
      np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 2.0, 1.5])
    )
    assert figure.value == pytest.approx(1 / math.sqrt(30), abs=1e-12)

  def test_spearman_gives_ties_their_mean_rank(self):
    # Ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5).
    found = figures.spearman(
      np.array([1.0, 2.0, 2.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0])
    )
    assert found.value == pytest.approx(4.5 / math.sqrt(22.5), abs=1e-12)

  def test_errors_by_hand(self):
    scores, predictions = np.array([1.0, 2.0]), np.array([4.0, 6.0])
    assert figures.rmse(scores, predictions).value == pytest.approx(
      math.sqrt(12.5)
    )
    assert figures.mae(scores, predictions).value == 3.5

  def test_accuracy_by_hand(self):
    # A float32 may stand a little past half a step.
    predictions = np.array([1.5 + 1e-8, 2.51, 2.5, 9.0])
    found = figures.accuracy(np.array([1.0, 2.0, 3.0, 4.0]), predictions, 0.5)
    assert found.value == 0.5
    assert figures.half_step([1.0, 2.0, 4.0]) == 0.5
    assert figures.half_step([0.0, 0.25, 1.0]) == 0.125
    assert figures.half_step([3.0]) == 0.0

  @pytest.mark.parametrize('n', [3, 17, 200])
  def test_agrees_with_scipy_on_tied_scores(self, n):
    rng = np.random.default_rng(n)
    scores = np.concatenate([[1.0, 5.0], rng.integers(1, 6, n - 2)])
    predictions = scores + rng.normal(size=n)
    for ours, theirs in zip(
      CORRELATIONS,
      [stats.pearsonr, stats.spearmanr, stats.kendalltau],
      strict=True,
    ):
      expected = theirs(scores, predictions).statistic
      assert ours(scores, predictions).value == pytest.approx(expected)

  @pytest.mark.parametrize('correlation', CORRELATIONS)
  @pytest.mark.parametrize(
    ('scores', 'predictions', 'reason'),
    [
      ([1, 2], [1, 2], 'fewer than 3 rows'),
      ([], [], 'fewer than 3 rows'),
      ([2, 2, 2], [1, 2, 3], 'constant scores'),
      ([1, 2, 3], [4, 4, 4], 'constant predictions'),
      # One unit in the last place of float32 apart.
      ([1, 2, 3], [3, 3 + 2.4e-7, 3], 'constant predictions'),
    ],
  )
  def test_missing_has_a_reason_and_no_warning(
    self, correlation, scores, predictions, reason
  ):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      figure = correlation(
        np.array(scores, np.float64), np.array(predictions, np.float64)
      )
    assert figure == figures.Figure(None, reason)

  def test_errors_without_rows(self):
    empty = np.zeros(0)
    assert figures.rmse(empty, empty) == figures.Figure(None, 'no rows')
    assert figures.mae(empty, empty) == figures.Figure(None, 'no rows')


class TestFillInvalid:
  def test_counts_and_fills(self):
    given = np.array([1.0, np.nan, np.inf, 5.0], np.float32)
    filled, num_invalid = metrics.fill_invalid(given, 3.0)
    np.testing.assert_array_equal(filled, [1.0, 3.0, 3.0, 5.0])
    assert num_invalid == 2
    assert np.isnan(given[1])

  def test_rejects_a_fallback_that_is_no_score(self):
    with pytest.raises(ValueError, match='fallback nan'):
      metrics.fill_invalid(np.array([1.0]), float('nan'))


class TestMetricRow:
  def test_by_hand(self):
    row = _row(_predictions())
    # The invalid row counts as 3: errors -1, 0, -1, 2.
    assert (row.num_examples, row.num_invalid) == (4, 1)
    assert row.rmse == pytest.approx(math.sqrt(6 / 4))
    assert row.mae == 1.0
    # Deviations of the scores (.5, -1.5, 1.5, -.5) times (2, 1, 3, 4).
    assert row.pearson == pytest.approx(2 / math.sqrt(5 * 5))
    assert row.grid_mass == pytest.approx(0.8)
    assert row.num_grid_mass == 3
    assert row.finish_reasons == {'length': 1, 'marker': 3}
    assert row.accuracy == 0.25
    assert row.rmse_ci[0] < row.rmse < row.rmse_ci[1]
    assert row.kendall_ci[0] < row.kendall < row.kendall_ci[1]
    assert row.reason is None

  def test_reason_of_an_interval_alone(self):
    # One rater's score of four differs: many resamples do not have it.
    row = _row(_predictions(scores=np.array([1.0, 1.0, 1.0, 5.0])))
    assert row.pearson is not None and row.pearson_ci is None
    assert re.fullmatch(
      r'pearson_ci: \d+ of 100 resamples are constant', row.reason
    )

  def test_reason_names_every_missing_figure(self):
    system = _predictions(
      predictions=np.full(4, np.nan), grid_mass=np.full(4, np.nan)
    )
    row = _row(system)
    assert row.num_invalid == 4
    assert row.pearson is None and row.spearman is None and row.kendall is None
    assert row.rmse == pytest.approx(math.sqrt(1.5))
    assert row.reason == (
      'pearson, spearman, kendall: constant predictions; '
      'grid_mass: no row has one'
    )


class TestSystemPredictions:
  def test_sorted_by_id_keeps_rows_together(self):
    system = metrics.sorted_by_id(_predictions())
    assert system.example_ids == ('a', 'b', 'c', 'd')
    np.testing.assert_array_equal(system.scores, [1, 2, 3, 4])
    np.testing.assert_array_equal(system.predictions, [1, 4, 2, np.nan])
    np.testing.assert_array_equal(system.grid_mass, [1, 0.9, 0.5, np.nan])

  def test_same_rows_are_equal(self):
    system = _predictions()
    same = _predictions(method='raft', predictions=np.zeros(4))
    other = _predictions(scores=np.array([3.0, 1.0, 4.0, 5.0]))
    assert system.rows == same.rows
    assert system.rows != other.rows

  def test_rejects_a_score_that_is_no_number(self):
    with pytest.raises(types.InputError, match='mt_bench, d: score nan'):
      _predictions(scores=np.array([3.0, 1.0, np.nan, 2.0]))

  def test_rejects_an_id_that_comes_twice(self):
    with pytest.raises(types.InputError, match='mt_bench, a: predicted twice'):
      _predictions(example_ids=('c', 'a', 'd', 'a'))

  def test_rejects_other_lengths(self):
    with pytest.raises(ValueError, match='4 ids'):
      _predictions(predictions=np.zeros(3))


def test_mean_or_none():
  assert figures.mean_or_none([1.0, 2.0]) == 1.5
  assert figures.mean_or_none([1.0, None]) is None
  assert figures.mean_or_none([]) is None


def test_cot_gap():
  gap = metrics.CotGap('tract', 1, 0, 100, 0.12, 0.63)
  assert gap.gap == pytest.approx(0.51)
  assert dataclasses.replace(gap, rmse_self_cot=None).gap is None


def test_rows_without_any_score_have_no_figures_but_are_counted():
  row = _row(_predictions(scores=np.full(4, np.nan)))
  for name in figures.NAMES:
    assert getattr(row, name) is getattr(row, f'{name}_ci') is None
  assert row.reason == (
    'pearson, spearman, kendall, rmse, mae, accuracy: no scores'
  )
  assert (row.num_examples, row.num_invalid) == (4, 1)
  assert row.grid_mass == pytest.approx(0.8)
