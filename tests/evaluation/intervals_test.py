"""Bootstrap intervals against explicit resampling, and their coverage."""

import dataclasses
import zlib

import numpy as np
import pytest
from scipy import stats

from tract_jax import types
from tract_jax.evaluation import (
  compared_seeds,
  figures,
  intervals,
  metrics,
  resampling,
)

A = metrics.System('tract', 'rail', 1)
B = metrics.System('raft', 'rail', 1)
QUICK = resampling.Bootstrap(num_resamples=200, seed=7)


def _rows(scores, benchmark='mt_bench'):
  ids = tuple(f'{i:05d}' for i in range(len(scores)))
  return metrics.Rows(benchmark, ids, tuple(map(float, scores)))


def _noisy(rng, scores, num_seeds, noise):
  return scores + noise * rng.normal(size=(num_seeds, len(scores)))


def _pearson(rows, predictions, bootstrap):
  """Pearson's r alone, with its resamples, of each line of predictions."""
  drawn = resampling.resample(rows, predictions, bootstrap, 0.5)
  return [d['pearson'] for d in drawn]


def _difference(a, b, seeds, samples_a, samples_b, bootstrap):
  """The difference of systems of which Pearson's r alone is known.

  `seeds` are paired, or a tuple of those of each.
  """
  seeds = seeds if isinstance(seeds, tuple) else (seeds, seeds)

  def all_figures(samples):
    return [[dict.fromkeys(figures.NAMES, s) for s in x] for x in samples]

  found = intervals.difference(
    a, b, seeds, all_figures(samples_a), all_figures(samples_b), bootstrap
  )
  # Each figure has the same gap here, and the first stands on its own.
  for gap in found.figures.values():
    assert (gap.mean, gap.ci) == (found.mean, found.ci)
  assert {'pearson', *found.figures} == set(figures.NAMES)
  return found


def _chosen(bootstrap, name, num_items):
  """The resamples of a stream, as the module draws them."""
  key = [bootstrap.seed, zlib.crc32(name.encode())]
  size = (bootstrap.num_resamples, num_items)
  return np.random.default_rng(key).integers(num_items, size=size)


def _scipy_draws(scores, predictions, chosen):
  return np.array(
    [stats.pearsonr(scores[i], predictions[i]).statistic for i in chosen]
  )


class TestDraws:
  def test_are_pearson_of_the_resampled_rows(self):
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 6, 40).astype(float)
    predictions = _noisy(rng, scores, 3, 1.0)
    draws = _pearson(_rows(scores), predictions, QUICK)
    chosen = _chosen(QUICK, 'rows of mt_bench', 40)
    for line, sample in zip(predictions, draws, strict=True):
      expected = _scipy_draws(scores, line, chosen)
      np.testing.assert_allclose(sample.draws, expected, atol=1e-10)
      assert sample.figure.value == pytest.approx(
        stats.pearsonr(scores, line).statistic
      )

  def test_do_not_depend_on_scale_or_chunks(self, monkeypatch):
    rng = np.random.default_rng(1)
    scores = rng.integers(1, 6, 30).astype(float)
    predictions = _noisy(rng, scores, 1, 1.0)
    (whole,) = _pearson(_rows(scores), predictions, QUICK)
    monkeypatch.setattr(resampling, '_CHUNK_ELEMENTS', 7 * 30)
    (chunked,) = _pearson(_rows(scores), 100.0 + 2.0 * predictions, QUICK)
    np.testing.assert_allclose(chunked.draws, whole.draws, atol=1e-10)

  def test_constant_resamples_are_nan(self):
    scores = np.array([1.0, 1.0, 1.0, 5.0])
    predictions = np.array([[1.0, 2.0, 3.0, 4.0]])
    (sample,) = _pearson(_rows(scores), predictions, QUICK)
    chosen = _chosen(QUICK, 'rows of mt_bench', 4)
    constant = np.ptp(scores[chosen], axis=1) == 0
    constant |= np.ptp(predictions[0][chosen], axis=1) == 0
    assert 0 < constant.sum() < len(constant)
    np.testing.assert_array_equal(np.isnan(sample.draws), constant)

  def test_no_rows(self):
    (sample,) = _pearson(_rows([]), np.zeros((1, 0)), QUICK)
    assert sample.figure == figures.Figure(None, 'fewer than 3 rows')
    assert np.isnan(sample.draws).all()

  def test_another_system_changes_nothing(self):
    rng = np.random.default_rng(2)
    scores = rng.integers(1, 6, 30).astype(float)
    predictions = _noisy(rng, scores, 4, 1.0)
    alone = _pearson(_rows(scores), predictions[2:3], QUICK)[0]
    among = _pearson(_rows(scores), predictions, QUICK)[2]
    np.testing.assert_allclose(alone.draws, among.draws, atol=1e-12)

  def test_benchmarks_of_one_size_are_resampled_apart(self):
    rng = np.random.default_rng(3)
    scores = rng.integers(1, 6, 30).astype(float)
    predictions = _noisy(rng, scores, 1, 1.0)
    first, second = (
      _pearson(_rows(scores, name), predictions, QUICK)[0].draws
      for name in ('vicuna', 'mt_bench')
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


class TestMean:
  def test_one_seed_is_the_percentile_interval_of_its_draws(self):
    rng = np.random.default_rng(4)
    scores = rng.integers(1, 6, 50).astype(float)
    (sample,) = _pearson(_rows(scores), _noisy(rng, scores, 1, 1.0), QUICK)
    estimate = intervals.mean_figure([[sample]], QUICK)
    assert estimate.mean == sample.figure.value
    np.testing.assert_allclose(
      estimate.ci, np.percentile(sample.draws, [2.5, 97.5])
    )

  def test_seeds_and_benchmarks_by_explicit_resampling(self):
    rng = np.random.default_rng(5)
    samples, expected = [], 0.0
    seeds = _chosen(QUICK, 'seeds', 3)
    for name, size in (('flask', 30), ('vicuna', 20)):
      scores = rng.integers(1, 6, size).astype(float)
      predictions = _noisy(rng, scores, 3, 1.0)
      samples.append(_pearson(_rows(scores, name), predictions, QUICK))
      chosen = _chosen(QUICK, f'rows of {name}', size)
      by_seed = np.array([_scipy_draws(scores, p, chosen) for p in predictions])
      of_seeds = np.take_along_axis(by_seed.T, seeds, axis=1)
      expected = expected + of_seeds.mean(axis=1) / 2
    estimate = intervals.mean_figure(samples, QUICK)
    values = [[s.figure.value for s in line] for line in samples]
    assert estimate.mean == pytest.approx(np.mean(values))
    np.testing.assert_allclose(
      estimate.ci, np.percentile(expected, [2.5, 97.5]), atol=1e-9
    )

  def test_a_missing_correlation_is_not_left_out_of_the_mean(self):
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 1.0])
    good, constant = _pearson(
      _rows(scores), np.array([scores, np.full(6, 3.0)]), QUICK
    )
    estimate = intervals.mean_figure([[good, constant]], QUICK)
    assert estimate == intervals.Estimate(
      None, None, 'mt_bench: constant predictions'
    )

  def test_too_many_constant_resamples(self):
    scores = np.array([1.0, 1.0, 1.0, 5.0])
    (sample,) = _pearson(_rows(scores), scores[None], QUICK)
    estimate = intervals.mean_figure([[sample]], QUICK)
    assert estimate.mean == 1.0
    assert estimate.ci is None
    num_lost = int(np.isnan(sample.draws).sum())
    assert estimate.reason == f'{num_lost} of 200 resamples are constant'

  def test_a_seed_that_is_not_drawn_makes_no_resample_constant(self):
    rng = np.random.default_rng(6)
    scores = rng.integers(1, 6, 40).astype(float)
    samples = _pearson(_rows(scores), _noisy(rng, scores, 3, 1.0), QUICK)
    lost = np.where(np.arange(200) < 21, np.nan, samples[0].draws)
    samples[0] = dataclasses.replace(samples[0], draws=lost)
    drawn = (_chosen(QUICK, 'seeds', 3) == 0).any(axis=1)
    assert 0 < drawn[:21].sum() < 20
    estimate = intervals.mean_figure([samples], QUICK)
    # 21 of 200 are more than a tenth; those with the seed are not.
    assert estimate.ci is not None

  def test_level(self):
    rng = np.random.default_rng(6)
    scores = rng.integers(1, 6, 50).astype(float)
    half = resampling.Bootstrap(num_resamples=200, seed=7, level=0.5)
    (sample,) = _pearson(_rows(scores), _noisy(rng, scores, 1, 1.0), half)
    estimate = intervals.mean_figure([[sample]], half)
    np.testing.assert_allclose(
      estimate.ci, np.percentile(sample.draws, [25, 75])
    )


class TestDifference:
  def test_is_paired_by_row_and_seed(self):
    rng = np.random.default_rng(8)
    scores = rng.integers(1, 6, 60).astype(float)
    a = _noisy(rng, scores, 3, 1.0)
    b = a + 0.3 * rng.normal(size=a.shape)
    draws = _pearson(_rows(scores), np.array([*a, *b]), QUICK)
    difference = _difference(A, B, [0, 1, 2], [draws[:3]], [draws[3:]], QUICK)
    chosen = _chosen(QUICK, 'rows of mt_bench', 60)
    gaps = [
      _scipy_draws(scores, x, chosen) - _scipy_draws(scores, y, chosen)
      for x, y in zip(a, b, strict=True)
    ]
    seeds = _chosen(QUICK, 'seeds', 3)
    expected = np.take_along_axis(np.array(gaps).T, seeds, axis=1).mean(axis=1)
    np.testing.assert_allclose(
      difference.ci, np.percentile(expected, [2.5, 97.5]), atol=1e-9
    )
    values = np.array([sample.figure.value for sample in draws])
    assert difference.mean == pytest.approx(
      values[:3].mean() - values[3:].mean()
    )
    assert (difference.num_seeds, difference.num_rows) == (3, 60)
    assert difference.benchmarks == ('mt_bench',)

  @pytest.mark.parametrize('seeds', [(0, 1), (9,)])
  def test_seeds_that_are_not_paired_are_resampled_apart(self, seeds):
    rng = np.random.default_rng(12)
    scores = rng.integers(1, 6, 60).astype(float)
    a = _noisy(rng, scores, 3, 1.0)
    b = _noisy(rng, scores, len(seeds), 1.5)
    draws = _pearson(_rows(scores), np.array([*a, *b]), QUICK)
    both = ((42, 43, 44), seeds)
    difference = _difference(A, B, both, [draws[:3]], [draws[3:]], QUICK)
    assert (difference.seeds, difference.seeds_b) == both
    assert difference.num_seeds == 3
    values = np.array([sample.figure.value for sample in draws])
    assert difference.mean == pytest.approx(
      values[:3].mean() - values[3:].mean()
    )
    rows = _chosen(QUICK, 'rows of mt_bench', 60)
    streams = 'seeds', 'seeds of the second'
    means = []
    for lines, stream in zip((a, b), streams, strict=True):
      of_lines = np.array([_scipy_draws(scores, line, rows) for line in lines])
      chosen = _chosen(QUICK, stream, len(lines))
      of_seeds = np.take_along_axis(of_lines.T, chosen, axis=1)
      means.append(of_seeds.mean(axis=1))
    np.testing.assert_allclose(
      difference.ci,
      np.percentile(means[0] - means[1], [2.5, 97.5]),
      atol=1e-9,
    )

  def test_what_the_same_seeds_have_alike_cancels_in_pairs_alone(self):
    rng = np.random.default_rng(13)
    scores = rng.integers(1, 6, 60).astype(float)
    noise = rng.normal(size=(4, 60)) * np.array([[0.3], [1.0], [2.0], [4.0]])
    draws = _pearson(_rows(scores), scores + noise, QUICK)
    paired, apart = (
      _difference(A, B, seeds, [draws], [draws], QUICK)
      for seeds in ([0, 1, 2, 3], ((0, 1, 2, 3), (4, 5, 6, 7)))
    )
    assert (paired.mean, paired.ci) == (0.0, (0.0, 0.0))
    assert apart.mean == 0.0 and apart.ci[0] < -0.1 and apart.ci[1] > 0.1

  def test_sign_and_whether_zero_is_excluded(self):
    rng = np.random.default_rng(9)
    scores = rng.integers(1, 6, 100).astype(float)
    good, bad = _noisy(rng, scores, 1, 0.5), _noisy(rng, scores, 1, 3.0)
    draws = _pearson(_rows(scores), np.concatenate([good, bad]), QUICK)
    for x, y, sign in ((0, 1, 1), (1, 0, -1)):
      difference = _difference(A, B, [0], [[draws[x]]], [[draws[y]]], QUICK)
      assert difference.mean * sign > 0
      assert difference.excludes_zero is True
    itself = _difference(A, B, [0], [[draws[0]]], [[draws[0]]], QUICK)
    assert (itself.mean, itself.ci) == (0.0, (0.0, 0.0))
    assert itself.excludes_zero is False

  def test_other_rows_are_refused(self):
    rng = np.random.default_rng(10)
    scores = rng.integers(1, 6, 20).astype(float)
    (a,) = _pearson(_rows(scores), _noisy(rng, scores, 1, 1.0), QUICK)
    shorter = scores[:-1]
    (b,) = _pearson(_rows(shorter), _noisy(rng, shorter, 1, 1.0), QUICK)
    difference = _difference(A, B, [0], [[a]], [[b]], QUICK)
    assert difference.mean is None and difference.excludes_zero is None
    assert difference.reason == 'rows of mt_bench differ'

  def test_nothing_in_common(self):
    for samples in ([], [[]]):
      difference = _difference(A, B, [], samples, samples, QUICK)
      assert difference.mean is None and difference.reason

  def test_one_has_no_seed_on_every_benchmark(self):
    scores = np.arange(20.0)
    (one,) = _pearson(_rows(scores), scores[None], QUICK)
    for samples in ([[one]], [[]]), ([[]], [[one]]):
      difference = _difference(A, B, ((), (0,)), *samples, QUICK)
      assert difference.mean is None
      assert difference.reason == 'no seed with predictions on every benchmark'


@pytest.mark.parametrize(
  ('own', 'wanted', 'shown'),
  [
    (([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [0, 1, 2]), '3'),
    (([0, 1, 2], [1, 2, 3]), ([1, 2], [1, 2]), '2'),
    (([0, 1, 2], [2, 3]), ([2], [2]), '1'),
    # A single seed stands beside each of the other's.
    (([0, 1, 2], [1]), ([0, 1, 2], [1]), '3 and 1'),
    (([7], [0, 1, 2]), ([7], [0, 1, 2]), '1 and 3'),
    (([7], [0]), ([7], [0]), '1 and 1'),
    (([7], [7]), ([7], [7]), '1'),
    (([0, 1, 2], [42, 43]), ([0, 1, 2], [42, 43]), '3 and 2'),
    (([], [0, 1]), ([], [0, 1]), '0 and 2'),
  ],
)
def test_which_seeds_are_compared(own, wanted, shown):
  chosen = compared_seeds.choose(own)
  assert chosen == wanted
  assert compared_seeds.shown(chosen) == shown


@pytest.mark.parametrize(
  'wrong', [{'num_resamples': 0}, {'seed': -1}, {'level': 1.0}, {'level': 0.0}]
)
def test_rejects_a_wrong_bootstrap(wrong):
  with pytest.raises(types.InputError, match=str(next(iter(wrong.values())))):
    resampling.Bootstrap(**wrong)


def _mean_r(noises):
  """Pearson's r of q + noise * e with q + e, averaged over the noises."""
  return float(np.mean(1 / np.sqrt(2 * (1 + np.asarray(noises) ** 2))))


@pytest.mark.slow
@pytest.mark.parametrize('num_seeds', [1, 8])
def test_coverage(num_seeds):
  """95 % intervals of the mean and of a difference cover the truth as often.

  The quality q and all noise are normal, so the truth is known in closed
  form; with several seeds the noise of a system differs between seeds.
  """
  num_sets, num_rows = 300, 150
  bootstrap = resampling.Bootstrap(num_resamples=500)
  rng = np.random.default_rng(11)
  spread = 0.0 if num_seeds == 1 else 0.3
  population = rng.uniform(-spread, spread, 200_000)
  truth_a, truth_b = _mean_r(0.7 + population), _mean_r(1.0 + population)
  covered_mean = 0
  # No two runs have anything alike, whatever their numbers.
  first, second = range(num_seeds), range(num_seeds, 2 * num_seeds)
  covered = {(first, first): 0, (first, second): 0}
  for _ in range(num_sets):
    quality = rng.normal(size=num_rows)
    scores = quality + rng.normal(size=num_rows)
    noise = rng.uniform(-spread, spread, (2, num_seeds, 1))
    noise += np.array([0.7, 1.0]).reshape(2, 1, 1)
    predictions = quality + noise * rng.normal(size=(2, num_seeds, num_rows))
    draws = _pearson(
      _rows(scores), predictions.reshape(-1, num_rows), bootstrap
    )
    a, b = [draws[:num_seeds]], [draws[num_seeds:]]
    low, high = intervals.mean_figure(a, bootstrap).ci
    covered_mean += low <= truth_a <= high
    for seeds in covered:
      low, high = _difference(A, B, seeds, a, b, bootstrap).ci
      covered[seeds] += low <= truth_a - truth_b <= high
  # Three standard errors of a share of 300 are .038; crossed resampling
  # counts the noise of a single prediction twice, on the safe side.
  assert 0.91 <= covered_mean / num_sets <= 0.995
  for number in covered.values():
    assert 0.91 <= number / num_sets <= 1.0
