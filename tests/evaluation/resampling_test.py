"""Resamples of every figure, against explicit ones, and their coverage."""

import zlib

import numpy as np
import pytest
from scipy import stats

from tract_jax.evaluation import (
  figures,
  influence,
  intervals,
  metrics,
  resampling,
)

QUICK = resampling.Bootstrap(num_resamples=300, seed=7)
RANKED = {'spearman': stats.spearmanr, 'kendall': stats.kendalltau}


def judged(n, seed=0, grid=True):
  rng = np.random.default_rng(seed)
  quality = rng.normal(size=n)
  scores = 3 + quality + 0.7 * rng.normal(size=n)
  if grid:
    scores = np.clip(np.round(scores), 1, 5)
  return scores, 3 + quality + 0.7 * rng.normal(size=n)


def resampled(scores, predictions, bootstrap=QUICK):
  ids = tuple(f'{i:05d}' for i in range(len(scores)))
  rows = metrics.Rows('bench', ids, tuple(map(float, scores)))
  return resampling.resample(rows, predictions[None], bootstrap, 0.5)[0]


def chosen(num_rows, bootstrap=QUICK):
  key = [bootstrap.seed, zlib.crc32(b'rows of bench')]
  size = (bootstrap.num_resamples, num_rows)
  return np.random.default_rng(key).integers(num_rows, size=size)


def test_errors_are_those_of_the_resampled_rows():
  scores, predictions = judged(40)
  drawn = resampled(scores, predictions)
  for name, of in (
    ('rmse', figures.rmse),
    ('mae', figures.mae),
    ('accuracy', lambda x, y: figures.accuracy(x, y, 0.5)),
  ):
    expected = [of(scores[i], predictions[i]).value for i in chosen(40)]
    np.testing.assert_allclose(drawn[name].draws, expected, atol=1e-12)
    assert drawn[name].figure == of(scores, predictions)


@pytest.mark.parametrize('name', RANKED)
@pytest.mark.parametrize('grid', [True, False])
def test_rank_correlations_move_as_those_of_resampled_rows(name, grid):
  scores, predictions = judged(400, grid=grid)
  drawn = resampled(scores, predictions)[name]
  expected = np.array(
    [RANKED[name](scores[i], predictions[i]).statistic for i in chosen(400)]
  )
  assert np.corrcoef(drawn.draws, expected)[0, 1] > 0.98
  assert np.std(drawn.draws) == pytest.approx(np.std(expected), rel=0.05)
  assert np.mean(drawn.draws) == pytest.approx(np.mean(expected), abs=3e-3)


@pytest.mark.parametrize('decimals', [0, 3])
def test_influence_is_the_slope_in_a_rows_weight(decimals):
  """Both correlations as functions of weights, moved a little."""
  scores, predictions = judged(30)
  predictions = np.round(predictions, decimals)

  def sign(v):
    return np.sign(v[:, None] - v)

  def tau(weights):
    s = weights @ (sign(scores) * sign(predictions)) @ weights
    u, v = (weights @ sign(x) ** 2 @ weights for x in (scores, predictions))
    return s / np.sqrt(u * v)

  def rho(weights):
    a, b = (sign(x) @ weights for x in (scores, predictions))
    return weights @ (a * b) / np.sqrt((weights @ a**2) * (weights @ b**2))

  even = np.full(30, 1 / 30)
  for of, name in ((tau, 'kendall'), (rho, 'spearman')):
    assert of(even) == pytest.approx(
      RANKED[name](scores, predictions).statistic
    )
    slopes = []
    for i in range(30):
      step = -1e-6 * even
      step[i] += 1e-6
      slopes.append((of(even + step) - of(even - step)) / 2e-6)
    found = getattr(influence, name)(scores, predictions)
    np.testing.assert_allclose(found, slopes, atol=1e-6)
    assert found.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('values', [2, 5, 200])
def test_concordance_by_pairs(values):
  rng = np.random.default_rng(values)
  x, y = rng.integers(0, values, (2, 70))
  signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
  np.testing.assert_array_equal(influence.concordance(x, y), signs.sum(1))


def test_perfect_and_constant_predictions():
  scores, _ = judged(50)
  for name in RANKED:
    sample = resampled(scores, scores)[name]
    np.testing.assert_array_equal(sample.draws, 1.0)
    np.testing.assert_array_equal(resampled(scores, -scores)[name].draws, -1.0)
    lost = resampled(scores, np.full(50, 3.0))[name]
    assert lost.figure.value is None and np.isnan(lost.draws).all()
    near = resampled(scores, scores + 0.3 * judged(50)[1])[name]
    assert near.draws.max() <= 1


def truths(grid):
  """Every figure of `judged` in the long run."""
  scores, predictions = judged(200_000, seed=1, grid=grid)
  return {
    name: figure.value
    for name, figure in figures.all_figures(scores, predictions, 0.5).items()
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  ('n', 'grid', 'least'), [(60, True, 900), (300, True, 930), (300, False, 930)]
)
def test_intervals_cover_the_truth(n, grid, least):
  """95 % intervals of every figure, on 1,000 simulated benchmarks.

  Of 60 rows, percentiles of the errors' resamples are a little too narrow.
  """
  bootstrap = resampling.Bootstrap(num_resamples=500)
  truth = truths(grid)
  covered = dict.fromkeys(truth, 0)
  for seed in range(1000):
    drawn = resampled(*judged(n, seed=10 + seed, grid=grid), bootstrap)
    for name, sample in drawn.items():
      low, high = intervals.mean_figure([[sample]], bootstrap).ci
      covered[name] += low <= truth[name] <= high
  assert not {k: v for k, v in covered.items() if not least <= v <= 970}
