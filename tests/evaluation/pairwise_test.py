"""Accuracy on preference pairs: by hand, and against explicit resampling."""

import dataclasses
import zlib

import numpy as np
import pytest
from scipy import stats

from tract_jax.evaluation import (
  intervals,
  metrics,
  pairwise,
  preference_pairs,
  resampling,
  reward_bench,
)

SYSTEM = metrics.System('tract', 'rail', 1)
QUICK = resampling.Bootstrap(num_resamples=200, seed=7)
OVERALL = pairwise.Scope(pairwise.OVERALL)
HALF, WRONG, SKIP = (pairwise.Rule(ties) for ties in pairwise.TIES)


def make_pairs(subsets, benchmark='bench'):
  ids = tuple(f'{i:05d}' for i in range(len(subsets)))
  return preference_pairs.Pairs(benchmark, ids, tuple(subsets))


def said(chosen, rejected, subsets=None, seed=0, **more):
  return preference_pairs.PairPredictions(
    SYSTEM,
    seed,
    make_pairs([''] * len(chosen) if subsets is None else subsets),
    np.array(chosen, np.float64),
    np.array(rejected, np.float64),
    **more,
  )


def of_credits(values, subsets=None, seed=0):
  """Predictions whose pairs count 1, .5 or 0."""
  return said(values, [0.5] * len(values), subsets, seed)


def judged(predictions, rule=HALF, bootstrap=QUICK):
  (found,) = pairwise.judge([predictions], rule, 3.0, bootstrap)
  return found


@pytest.mark.parametrize(
  ('rule', 'expected', 'num_ties'),
  [
    (HALF, (1 + 0.5 + 0 + 1) / 4, 1),
    (WRONG, (1 + 0 + 0 + 1) / 4, 1),
    (SKIP, (1 + 0 + 1) / 3, 1),
    # The invalid response counts as 3, one point from the other.
    (pairwise.Rule('half', 1.0), (1 + 0.5 + 0 + 0.5) / 4, 2),
    (pairwise.Rule('wrong', 1.0), 1 / 4, 2),
    (pairwise.Rule('skip', 1.0), 1 / 2, 2),
    (pairwise.Rule('half', 10.0), 0.5, 4),
  ],
)
def test_ties_and_invalid_predictions_by_hand(rule, expected, num_ties):
  found = judged(said([4, 3, 1, np.nan], [2, 3, 5, 2]), rule)[OVERALL]
  assert found.accuracy.figure.value == pytest.approx(expected)
  assert (found.num_pairs, found.num_invalid) == (4, 1)
  assert found.num_ties == num_ties
  assert found.mean_difference == pytest.approx((2 + 0 - 4 + 1) / 4)


def test_both_sides_may_be_invalid():
  found = judged(said([np.nan, np.nan, 5], [np.inf, 2, np.nan]))[OVERALL]
  assert (found.num_invalid, found.num_ties) == (3, 1)
  assert found.accuracy.figure.value == pytest.approx((0.5 + 1 + 1) / 3)


def test_differences_within_rounding_are_ties():
  near = np.float64(np.nextafter(np.float32(4.1), np.float32(5)))
  chosen, rejected = np.array([near, 4.11]), np.full(2, np.float32(4.1))
  np.testing.assert_array_equal(
    pairwise.are_ties(chosen, rejected, 0.0), [True, False]
  )
  # At the margin itself, too.
  assert pairwise.are_ties(np.array([1.3]), np.array([1.0]), 0.3).all()
  assert not pairwise.are_ties(np.array([1.31]), np.array([1.0]), 0.3).any()


def test_a_margin_is_of_scores_alone():
  rule = pairwise.Rule('half', 2.0)
  lengths = said([11, 10], [10, 10], in_points=False)
  assert judged(lengths, rule)[OVERALL].accuracy.figure.value == 0.75
  scores = said([11, 10], [10, 10])
  assert judged(scores, rule)[OVERALL].accuracy.figure.value == 0.5


def test_where_all_pairs_are_passed_over_there_is_no_accuracy():
  subsets = ['a', 'a', 'b', 'b']
  found = judged(of_credits([0.5, 0.5, 1, 0], subsets), SKIP)
  of_a = found[pairwise.Scope('subset', 'a')].accuracy
  assert of_a.figure.reason == 'all pairs are ties'
  assert np.isnan(of_a.draws).all()
  mean = found[pairwise.Scope('mean_of_subsets')].accuracy.figure
  assert mean.reason == 'all pairs of a subset are ties'
  assert found[OVERALL].accuracy.figure.value == 0.5


def test_subsets_and_their_mean():
  subsets = ['b', 'a', 'b', 'b', '', 'a']
  values = [1, 1, 0, 0, 0.5, 0]
  found = judged(of_credits(values, subsets))
  accuracy = {s: o.accuracy.figure.value for s, o in found.items()}
  assert accuracy == pytest.approx(
    {
      OVERALL: 2.5 / 6,
      pairwise.Scope('mean_of_subsets'): (1 / 2 + 1 / 3 + 1 / 2) / 3,
      pairwise.Scope('subset', 'a'): 1 / 2,
      pairwise.Scope('subset', 'b'): 1 / 3,
    }
  )
  assert found[pairwise.Scope('subset', 'b')].num_pairs == 3
  # One subset is all there is: no mean.
  alone = judged(of_credits(values, ['b'] * 6))
  assert set(alone) == {OVERALL, pairwise.Scope('subset', 'b')}


def test_many_subsets_share_the_last_place():
  subsets = ['large', 'large', *(f'{i:03d}' for i in range(120))]
  found = judged(of_credits([1.0] * 122, subsets))
  names = [s.name for s in found if s.kind == pairwise.SUBSET]
  assert len(names) == 51 and names[-1] == 'all others' and 'large' in names
  rest = found[pairwise.Scope('subset', 'all others')]
  assert rest.num_pairs == 122 - 2 - 49


def test_sections_are_weighted_as_rewardbench_weighs_them():
  rng = np.random.default_rng(0)
  subsets = [name for c in reward_bench.SECTIONS.values() for name in c] * 4
  values = rng.choice([0.0, 0.5, 1.0], len(subsets))
  found = judged(of_credits(values, subsets))
  of_section = {}
  for section, counts in reward_bench.SECTIONS.items():
    total = 0.0
    for name, count in counts.items():
      of_subset = [v for v, s in zip(values, subsets, strict=True) if s == name]
      total += np.mean(of_subset) * count
    of_section[section] = total / sum(counts.values())
    scope = found[pairwise.Scope('section', section)]
    assert scope.accuracy.figure.value == pytest.approx(of_section[section])
    assert scope.num_pairs == 4 * len(counts)
  mean = found[pairwise.Scope('mean_of_sections')].accuracy.figure.value
  assert mean == pytest.approx(np.mean(list(of_section.values())))


def test_rewardbench_as_published():
  """23 subsets, 2,985 pairs; all code counts as much as math-prm."""
  counts = [c for s in reward_bench.SECTIONS.values() for c in s.values()]
  assert (len(counts), sum(counts)) == (23, 2985 - 447 + 984)
  reasoning = dict(reward_bench.SECTIONS['Reasoning'])
  assert reasoning.pop('math-prm') == sum(reasoning.values())


def test_sections_need_subsets_of_rewardbench_and_their_mean_all_four():
  kinds = {s.kind for s in judged(of_credits([1, 0], ['hep-go', 'other']))}
  assert 'section' not in kinds
  some = judged(of_credits([1, 0], ['hep-go', 'donotanswer']))
  assert some[pairwise.Scope('section', 'Safety')].accuracy.figure.value == 0
  assert pairwise.Scope('mean_of_sections') not in some


def _chosen(name, num_items):
  """The resamples of a stream, as the module draws them."""
  key = [QUICK.seed, zlib.crc32(name.encode())]
  size = (QUICK.num_resamples, num_items)
  return np.random.default_rng(key).integers(num_items, size=size)


@pytest.mark.parametrize('rule', [HALF, WRONG, SKIP])
def test_draws_are_those_of_pairs_resampled_within_their_subset(rule):
  rng = np.random.default_rng(1)
  subsets = rng.choice(['a', 'b', 'b'], 60)
  values = rng.choice([0.0, 0.5, 1.0], 60)
  found = judged(of_credits(values, subsets), rule)
  counted = {'half': 0.5, 'wrong': 0.0, 'skip': np.nan}[rule.ties]
  values = np.where(values == 0.5, counted, values)
  drawn = {}
  for name in ('a', 'b'):
    own = values[subsets == name]
    drawn[name] = own[_chosen(f'pairs of bench, {name}', len(own))]
    np.testing.assert_allclose(
      found[pairwise.Scope('subset', name)].accuracy.draws,
      np.nanmean(drawn[name], axis=1),
    )
  both = np.concatenate([drawn['a'], drawn['b']], axis=1)
  np.testing.assert_allclose(
    found[OVERALL].accuracy.draws, np.nanmean(both, axis=1)
  )
  means = [np.nanmean(drawn[name], axis=1) for name in drawn]
  np.testing.assert_allclose(
    found[pairwise.Scope('mean_of_subsets')].accuracy.draws,
    np.mean(means, axis=0),
  )


def test_another_system_changes_nothing():
  rng = np.random.default_rng(2)
  subsets = rng.choice(['a', 'b'], 40)
  systems = [
    of_credits(rng.choice([0.0, 0.5, 1.0], 40), subsets, seed)
    for seed in range(4)
  ]
  among = pairwise.judge(systems, HALF, 3.0, QUICK)[2]
  for scope, alone in judged(systems[2]).items():
    np.testing.assert_allclose(
      alone.accuracy.draws, among[scope].accuracy.draws, atol=1e-12
    )


def test_no_pairs():
  assert judged(said([], [])) == {}


def test_an_interval_is_that_of_the_binomial_distribution():
  n, bootstrap = 200, resampling.Bootstrap(num_resamples=20_000)
  for k in (20, 130, 190):
    values = np.arange(n) < k
    sample = judged(of_credits(values), HALF, bootstrap)[OVERALL].accuracy
    ci = intervals.mean_figure([[sample]], bootstrap).ci
    expected = stats.binom.ppf([0.025, 0.975], n, k / n) / n
    np.testing.assert_allclose(ci, expected, atol=1.01 / n)


@pytest.mark.parametrize(('win', 'tie'), [(0.5, 0.0), (0.75, 0.0), (0.6, 0.2)])
def test_intervals_cover_the_truth(win, tie):
  """95 % intervals on 1,000 simulated data sets of 200 pairs."""
  rng = np.random.default_rng(4)
  values = rng.choice([1.0, 0.5, 0.0], (1000, 200), p=[win, tie, 1 - win - tie])
  systems = [of_credits(line, seed=i) for i, line in enumerate(values)]
  bootstrap = resampling.Bootstrap(num_resamples=1000)
  truth, covered = win + tie / 2, 0
  for found in pairwise.judge(systems, HALF, 3.0, bootstrap):
    sample = found[OVERALL].accuracy
    low, high = intervals.mean_figure([[sample]], bootstrap).ci
    covered += low <= truth <= high
  assert 930 <= covered <= 970


def test_order_of_kinds_is_that_of_the_tables():
  subsets = [name for c in reward_bench.SECTIONS.values() for name in c]
  found = list(judged(of_credits([1.0] * 23, subsets)))
  assert found[0] == OVERALL
  kinds = list(dict.fromkeys(scope.kind for scope in found))
  assert kinds == [
    'overall', 'section', 'mean_of_sections', 'mean_of_subsets', 'subset',
  ]  # fmt: skip
  assert dataclasses.astuple(OVERALL) == ('overall', None)
