"""What the report says of preference pairs, in all that it is written as."""

import dataclasses
import json

import numpy as np
import pytest

from tests.evaluation import pairwise_test, reports
from tract_jax import types
from tract_jax.evaluation import (
  charts,
  intervals,
  metrics,
  page,
  pair_report,
  pairwise,
  references,
  report_sections,
  report_writing,
  resampling,
)

TRACT = metrics.System('tract', 'rail', 1)
RAFT = metrics.System('raft', 'rail', 1)
HALF = pairwise.Rule()
QUICK = resampling.Bootstrap(num_resamples=200)
CONSTANT = references.Constant(3.0, references.GRID_MIDDLE)


def said(values, system=TRACT, seed=0, subsets=None):
  found = pairwise_test.of_credits(values, subsets, seed)
  return dataclasses.replace(found, system=system)


def made(judges, comparisons=(), rule=HALF, **more):
  paired = pair_report.Paired(
    judges, own=frozenset({TRACT, RAFT}), rule=rule, **more
  )
  return pair_report.make(paired, 3.0, QUICK, comparisons)


def overall(rows):
  return [row for row in rows if row.kind == pairwise.OVERALL]


def credit(share, n=60, seed=0):
  return (np.random.default_rng(seed).random(n) < share).astype(float)


class TestRows:
  def test_of_each_seed_and_over_seeds(self):
    lines = [[1, 1, 1, 0.5], [1, 0, 0, 0]]
    found = made([said(line, seed=i) for i, line in enumerate(lines)])
    one, two = overall(found.rows)
    assert (one.seed, one.num_seeds, one.num_pairs) == (0, 1, 4)
    assert (one.accuracy, two.accuracy) == pytest.approx((3.5 / 4, 1 / 4))
    assert (one.num_ties, two.num_ties) == (1, 0)
    (both,) = overall(found.combined)
    assert (both.seed, both.num_seeds, both.num_pairs) == (None, 2, 8)
    assert both.accuracy == pytest.approx((3.5 + 1) / 8)
    assert (both.num_ties, both.reason) == (1, None)
    low, high = both.accuracy_ci
    # Seeds are resampled, too.
    assert low < two.accuracy + 0.1 and high > one.accuracy - 0.1

  def test_order_of_the_input_does_not_matter(self):
    judges = [
      said(credit(0.7, seed=s), system, s)
      for system in (TRACT, RAFT)
      for s in (0, 1)
    ]
    assert made(judges[::-1]) == made(judges)

  @pytest.mark.parametrize(
    ('values', 'reason'),
    [
      ([1, 0], 'accuracy_ci: fewer than 3 pairs'),
      ([1, 1, 1, 1], 'accuracy_ci: all pairs count the same'),
      ([0.5, 0.5, 0.5], 'accuracy_ci: all pairs count the same'),
    ],
  )
  def test_no_interval_and_why(self, values, reason):
    (row,) = overall(made([said(values)]).rows)
    assert row.accuracy == np.mean(values)
    assert (row.accuracy_ci, row.reason) == (None, reason)

  def test_no_accuracy_and_why(self):
    skip = pairwise.Rule('skip')
    (row,) = overall(made([said([0.5, 0.5, 0.5])], rule=skip).rows)
    assert (row.accuracy, row.accuracy_ci) == (None, None)
    assert row.reason == 'bench: all pairs are ties'

  def test_other_pairs_of_another_seed_are_not_averaged(self):
    other = said([1, 0, 1, 1, 1], seed=1)
    found = made([said([1, 0, 1, 1]), other])
    (both,) = overall(found.combined)
    assert (both.accuracy, both.reason) == (None, 'rows of bench differ')


class TestDifferences:
  def test_are_paired(self):
    a = credit(0.7)
    b = a.copy()
    b[:6] = 1 - b[:6]
    found = made([said(a), said(b, RAFT)], [(TRACT, RAFT)])
    (one,) = found.differences
    assert one.mean == pytest.approx(a.mean() - b.mean())
    assert (one.num_pairs, one.num_seeds, one.seeds) == (60, 1, (0,))
    # Only six pairs differ: far narrower than either one's own interval.
    own = overall(found.rows)[0].accuracy_ci
    assert one.ci[1] - one.ci[0] < 0.7 * (own[1] - own[0])
    draws = [
      pairwise.judge([s], pairwise.Rule(), 3.0, QUICK)[0][pairwise_test.OVERALL]
      for s in (said(a), said(b, RAFT))
    ]
    gaps = draws[0].accuracy.draws - draws[1].accuracy.draws
    assert one.ci == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))
    assert one.excludes_zero == (one.ci[0] > 0 or one.ci[1] < 0)

  def test_cover_no_difference(self):
    """Two systems that are equally good and err alike half of the time."""
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
      shared = rng.random(200) < 0.5
      a, b = (rng.random((2, 200)) < 0.7).astype(float)
      b = np.where(shared, a, b)
      judges = [said(a, seed=seed), said(b, RAFT, seed=seed)]
      (one,) = made(judges, [(TRACT, RAFT)]).differences
      covered += one.ci[0] <= 0 <= one.ci[1]
    assert 180 <= covered <= 198

  def test_a_single_seed_stands_beside_each_of_the_others(self):
    lines = [credit(0.7, seed=s) for s in range(4)]
    judges = [said(line, seed=i) for i, line in enumerate(lines[:3])]
    found = made([*judges, said(lines[3], RAFT, seed=9)], [(TRACT, RAFT)])
    (one,) = found.differences
    assert (one.seeds, one.seeds_b) == ((0, 1, 2), (9,))
    assert one.mean == pytest.approx(np.mean(lines[:3]) - lines[3].mean())

  def test_without_a_seed_in_common_all_count(self):
    lines = [credit(0.7, seed=s) for s in range(5)]
    judges = [said(line, seed=i) for i, line in enumerate(lines[:3])]
    judges += [said(line, RAFT, 42 + i) for i, line in enumerate(lines[3:])]
    (one,) = made(judges, [(TRACT, RAFT)]).differences
    assert (one.seeds, one.seeds_b) == ((0, 1, 2), (42, 43))
    assert one.mean == pytest.approx(np.mean(lines[:3]) - np.mean(lines[3:]))
    assert one.ci[0] < one.mean < one.ci[1] and one.reason is None

  def test_of_systems_that_are_the_same_there_is_no_interval(self):
    values = credit(0.7)
    found = made([said(values), said(values, RAFT)], [(TRACT, RAFT)])
    (one,) = found.differences
    assert (one.mean, one.ci, one.excludes_zero) == (0, None, None)
    assert one.reason == 'ci: all pairs count the same'

  def test_other_pairs_and_no_pairs(self):
    other = said(credit(0.7, n=59), RAFT)
    (one,) = made([said(credit(0.7)), other], [(TRACT, RAFT)]).differences
    assert (one.mean, one.reason) == (None, 'rows of bench differ')
    assert made([said(credit(0.7))], [(TRACT, RAFT)]).differences == ()

  def test_by_subset(self):
    subsets = ['a', 'b'] * 30
    judges = [said(credit(0.7), TRACT, 0, subsets)]
    judges.append(said(credit(0.5, seed=1), RAFT, 0, subsets))
    found = made(judges, [(TRACT, RAFT)])
    kinds = [(d.kind, d.subset, d.num_pairs) for d in found.differences]
    assert kinds == [
      ('overall', None, 60),
      ('mean_of_subsets', None, 60),
      ('subset', 'a', 30),
      ('subset', 'b', 30),
    ]


class TestReferences:
  def examples(self):
    texts = [('long', 'no'), ('no', 'longer'), ('same', 'also'), ('more', 'a')]
    return [
      types.Example(
        f'{i}-{side}', 'x', None, pair_id=str(i), category='s', response=text
      )
      for i, pair in enumerate(texts)
      for side, text in zip(('chosen', 'rejected'), pair, strict=True)
    ]

  def found(self, examples, rule=HALF):
    paired = references.of_pairs({'bench': examples}, CONSTANT)
    rows = overall(made([], rule=rule, references=paired).references)
    return {row.method: row for row in rows}

  def test_constant_ties_all_and_the_longer_response_wins(self):
    found = self.found(self.examples())
    constant, length = found['constant'], found['response_length']
    assert (constant.accuracy, constant.num_ties) == (0.5, 4)
    assert constant.reason == 'accuracy_ci: all pairs count the same'
    assert length.accuracy == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert length.accuracy_ci is not None
    assert length.mean_difference == pytest.approx((2 - 4 + 0 + 3) / 4)
    wrong = self.found(self.examples(), pairwise.Rule('wrong', 2.5))
    assert wrong['constant'].accuracy == 0
    assert wrong['response_length'].accuracy == 0.5

  def test_without_all_responses_or_pairs(self):
    examples = self.examples()
    lost = [dataclasses.replace(examples[0], response=''), *examples[1:]]
    assert set(self.found(lost)) == {'constant'}
    alone = [dataclasses.replace(e, pair_id='') for e in examples]
    assert references.of_pairs({'bench': alone}, CONSTANT) == []


def with_pairs(benchmarks=('flask',), subsets=None, **more):
  """A report with preference pairs of "bench" beside rated benchmarks."""
  systems = reports.systems(('tract', 'raft'), benchmarks, (0,))
  for method in ('tract', 'raft'):
    unrated = reports.system(method, 'bench', 0)
    nothing = np.full(40, np.nan)
    systems.append(dataclasses.replace(unrated, scores=nothing))
  judges = [
    said(credit(0.8), TRACT, 0, subsets),
    said(credit(0.6, seed=1), RAFT, 0, subsets),
  ]
  paired = pair_report.Paired(
    judges,
    references.of_pairs({'bench': TestReferences().examples()}, CONSTANT),
    own=frozenset({TRACT, RAFT}),
    **more,
  )
  return reports.report(systems, paired=paired)


def section(report, title):
  (found,) = [s for s in report_sections.sections(report) if s.title == title]
  return found


class TestWritten:
  def test_metrics_json(self):
    report = with_pairs(rule=pairwise.Rule('wrong', 0.25))
    content = json.loads(report_writing.metrics_json(report))
    row = content['pairwise'][0]
    assert (row['method'], row['benchmark'], row['seed']) == (
      *('raft', 'bench'),
      0,
    )
    assert row['accuracy'] == pytest.approx(credit(0.6, seed=1).mean())
    assert len(row['accuracy_ci']) == 2
    assert content['pairwise_rule'] == {'ties': 'wrong', 'margin': 0.25}
    (gap,) = content['pairwise_differences']
    assert gap['a']['method'] == 'tract' and gap['b']['method'] == 'raft'
    methods = {row['method'] for row in content['pairwise_references']}
    assert methods == {'constant', 'response_length'}
    assert {row['seed'] for row in content['pairwise_combined']} == {None}
    # Rated or not, its rows stand where they stood.
    assert 'bench' in {row['benchmark'] for row in content['rows']}

  def test_tables(self):
    report = with_pairs(subsets=['a', 'b'] * 30)
    found = section(report, 'Preference pairs')
    first, by_subset, gaps = (
      part for part in found.parts if isinstance(part, report_sections.Table)
    )
    tract = next(line for line in first.lines if line[1] == 'tract')
    (row,) = [
      r for r in overall(report.preferences.combined) if r.method == 'tract'
    ]
    shown = f'{row.accuracy:.3f} ({row.accuracy_ci[0]:.3f}'.replace('0.', '.')
    assert tract[5].startswith(shown)
    assert tract[-3:-1] == ['0/60', '0/60']
    # References on the same pairs stand below, without subsets here.
    assert [line[1] for line in first.lines] == [
      'raft', 'tract', 'constant', 'response_length',
    ]  # fmt: skip
    assert [line[1] for line in by_subset.lines].count('a') == 2
    assert len(gaps.lines) == 2

  def test_other_predictors_have_no_table_by_subset(self):
    decode = dataclasses.replace(TRACT, predictor='decode')
    judges = [said(credit(0.7), s, 0, ['a', 'b'] * 30) for s in (TRACT, decode)]
    report = reports.report(paired=pair_report.Paired(
      judges, own=frozenset({TRACT})
    ))  # fmt: skip
    first, by_subset = (
      part
      for part in section(report, 'Preference pairs').parts
      if isinstance(part, report_sections.Table)
    )
    assert [line[2] for line in first.lines] == ['decode', 'rail']
    assert len(by_subset.lines) == 2

  def test_they_are_in_no_table_of_rated_benchmarks(self):
    report = with_pairs(('flask', 'mt_bench'))
    assert report.unrated == {'bench'} and report.rated == ['flask', 'mt_bench']
    header = report_sections.results(report).header
    assert 'bench' not in header and 'mean' in header
    text = report_writing.report_markdown(report)
    others = text.split('## Preference pairs')
    assert '| bench |' not in others[0] and 'no scores' not in text
    assert 'in a section of their own' in others[0]
    # A single rated one is its own mean.
    assert 'mean' not in report_sections.results(with_pairs()).header

  def test_where_there_are_pairs_alone(self):
    report = with_pairs(())
    assert report.pairs_alone
    titles = [s.title for s in report_sections.sections(report)]
    assert titles[:2] == ['Results', 'Preference pairs']
    assert 'Other figures' not in titles and 'Differences' not in titles
    (text,) = section(report, 'Results').parts
    assert 'stand in a section of their own' in text
    assert 'no benchmark in common' not in report_writing.report_markdown(
      report
    )
    table = report_writing.results_table(report)
    assert 'all pairs' in table and 'mean rho' not in table
    assert max(map(len, table.split('\n'))) <= 100

  def test_without_pairs_nothing_is_said_of_them(self):
    report = reports.report()
    assert not report.unrated and not report.pairs_alone
    titles = [s.title for s in report_sections.sections(report)]
    assert 'Preference pairs' not in titles
    assert 'all pairs' not in report_writing.results_table(report)

  def test_missing_figures_are_explained(self):
    paired = pair_report.Paired([said([1, 0]), said([1, 1, 1], RAFT)])
    text = report_writing.report_markdown(reports.report(paired=paired))
    for line in (
      'tract/rail/1 on pairs of bench, all pairs: accuracy_ci: fewer than 3',
      'raft/rail/1 on pairs of bench, all pairs: accuracy_ci: all pairs count',
    ):
      assert line.replace('_', '\\_') in text
    assert 'constant/' not in report_writing.report_markdown(with_pairs())

  def test_the_rule_of_ties_is_told(self):
    rule = pairwise.Rule('skip', 0.25)
    text = section(with_pairs(rule=rule), 'Preference pairs').parts[0]
    assert 'of 0.25 points at most, is left out' in text

  def test_forest_is_around_one_half(self):
    report = with_pairs(subsets=['a', 'b<c>'] * 30)
    first, second = charts.pairs(report)
    assert '<figcaption>raft on bench</figcaption>' in first
    assert '<figcaption>tract on bench</figcaption>' in second
    assert 'b&lt;c&gt;' in first and first.count('<circle') == 4
    # Its scale begins near one half, not at zero.
    assert '>0.2<' not in first and 'class="zero"' in first
    text = page.report_html(report, page.NOTHING)
    assert first in text and '<h2 id="preference-pairs">' in text

  def test_many_forests_are_counted(self):
    systems = [dataclasses.replace(TRACT, method=f'm{i}') for i in range(14)]
    report = reports.report(
      paired=pair_report.Paired(
        [said(credit(0.7), s) for s in systems], own=frozenset(systems)
      )
    )
    found = charts.pairs(report)
    assert len(found) == 13 and found[-1] == '<p>2 more plots are left out.</p>'


def test_intervals_of_means_stay_those_of_the_report():
  """One implementation: seeds are combined as in `rows`."""
  lines = [credit(0.7, seed=s) for s in range(3)]
  judges = [said(line, seed=i) for i, line in enumerate(lines)]
  (both,) = overall(made(judges).combined)
  found = pairwise.judge(judges, pairwise.Rule(), 3.0, QUICK)
  samples = [one[pairwise_test.OVERALL].accuracy for one in found]
  assert both.accuracy_ci == intervals.mean_figure([samples], QUICK).ci
