"""The report: its contract, its order, and what stands in its tables."""

import dataclasses
import json

import numpy as np
import pytest

from tests.evaluation import reports
from tract_jax import types
from tract_jax.evaluation import (
  calibration,
  lambda_curve,
  metrics,
  report_sections,
  report_writing,
  self_cots,
)

ROW_FIELDS = {
  'method',
  'predictor',
  'num_cots',
  'benchmark',
  'seed',
  'num_examples',
  'num_invalid',
  'pearson',
  'pearson_ci',
  'spearman',
  'spearman_ci',
  'kendall',
  'kendall_ci',
  'rmse',
  'rmse_ci',
  'mae',
  'mae_ci',
  'accuracy',
  'accuracy_ci',
  'grid_mass',
  'num_grid_mass',
  'finish_reasons',
  'num_invalid_cots',
  'reason',
}


def _content(systems=None, **changes):
  return json.loads(
    report_writing.metrics_json(reports.report(systems, **changes))
  )


class TestMetricsJson:
  def test_schema(self):
    gap = metrics.CotGap('tract', 1, 0, 9, 0.12, 0.63, 2.5, 3.5)
    content = _content(cot_gaps=[gap])
    assert content['schema'] == 1
    assert content['config'] == {'name': 'demo', 'seeds': [0, 1]}
    assert len(content['rows']) == 3 * 2 * 2
    for row in content['rows']:
      assert set(row) == ROW_FIELDS
    row = content['rows'][-1]
    assert (row['method'], row['benchmark']) == ('zero_shot', 'mt_bench')
    assert row['pearson'] is None and row['pearson_ci'] is None
    assert row['reason'] == ('pearson, spearman, kendall: constant predictions')
    assert content['cot_gap'] == [
      {
        'method': 'tract',
        'stage': 1,
        'seed': 0,
        'num_examples': 9,
        'rmse_annotator_cot': 0.12,
        'rmse_self_cot': 0.63,
        'perplexity_annotator_cot': 2.5,
        'perplexity_self_cot': 3.5,
        'reason': None,
        'gap': 0.51,
      }
    ]

  def test_curve_of_lambda_is_there_and_empty_without_candidates(self):
    point = lambda_curve.LambdaPoint('tract', 2, 0, 0.2, 0.5, None, 0.1, True)
    found = _content(lambda_points=[point])['lambda_curve']
    assert found == [dataclasses.asdict(point)]
    assert _content()['lambda_curve'] == []
    text = report_writing.report_markdown(reports.report(lambda_points=[point]))
    assert '| tract | 2 | 0 | 0.2 | .500 | n/a | .100 | yes |' in text
    assert 'Choice of lambda' not in report_writing.report_markdown(
      reports.report()
    )
    lost = dataclasses.replace(point, score_rmse=None, reason='not finite: a')
    text = report_writing.report_markdown(reports.report(lambda_points=[lost]))
    assert '- tract stage 2, seed 0, lambda 0.2: not finite: a' in text

  def test_counts_of_self_cots_are_there_and_empty_without_any(self):
    reasons = {'marker': 6, 'length': 3}
    counts = self_cots.SelfCotCounts('tract', 0, 5, 9, reasons, 4, 2, 1)
    assert _content(self_cot_counts=[counts])['self_cots'] == [
      {
        'method': 'tract',
        'seed': 0,
        'num_examples': 5,
        'num_samples': 9,
        'finish_reasons': reasons,
        'num_retries': 4,
        'num_unusable': 2,
        'num_without_usable': 1,
      }
    ]
    assert _content()['self_cots'] == []
    text = report_writing.report_markdown(
      reports.report(self_cot_counts=[counts])
    )
    assert '| rows | CoTs | marker | length | retries | unusable |' in text
    assert '| tract | 0 | 5 | 9 | 6 | 3 | 4 | 2 | 1 |' in text
    assert 'Self-CoTs' not in report_writing.report_markdown(reports.report())

  def test_calibrations_are_there_and_their_reasons_told(self):
    grid = np.arange(1.0, 6.0)
    system = reports.system('tract', 'flask', 0)
    known = calibration.calibrate(system, np.full((40, 5), 0.2), grid)
    few = calibration.calibrate(
      reports.system('raft', 'flask', 0, n=5), np.full((5, 5), 0.2), grid
    )
    content = _content(calibrations=[known, few])['calibration']
    assert [row['method'] for row in content] == ['raft', 'tract']
    assert content[0]['crps'] is None
    assert content[1]['crps'] == pytest.approx(known.crps)
    assert _content()['calibration'] == []
    text = report_writing.report_markdown(
      reports.report(calibrations=[known, few])
    )
    assert '| tract | 1 | flask | 1 |' in text
    assert 'calibration of raft on flask, seed 0: 5 rows' in text
    assert 'Calibration' not in report_writing.report_markdown(reports.report())

  def test_order_of_input_and_of_rows_changes_nothing(self):
    systems = reports.systems()
    order = np.random.default_rng(0).permutation(40)
    shuffled = [
      dataclasses.replace(
        system,
        example_ids=tuple(system.example_ids[i] for i in order),
        scores=system.scores[order],
        predictions=system.predictions[order],
      )
      for system in reversed(systems)
    ]
    first = report_writing.metrics_json(reports.report(systems))
    assert report_writing.metrics_json(reports.report(shuffled)) == first

  def test_another_method_and_benchmark_change_no_row(self):
    few = _content(reports.systems(('tract',), ('flask',)))['rows']
    many = _content()['rows']
    assert [row for row in many if row in few] == few

  def test_invalid_rows_are_counted_and_scored_as_the_fallback(self):
    system = reports.system('tract', 'flask', 0)
    predictions = system.predictions.copy()
    predictions[:4] = np.nan
    invalid = dataclasses.replace(system, predictions=predictions)
    filled = dataclasses.replace(
      system, predictions=np.where(np.isnan(predictions), 2.0, predictions)
    )
    row = _content([invalid], fallback=2.0)['rows'][0]
    expected = _content([filled], fallback=2.0)['rows'][0]
    assert row == expected | {'num_invalid': 4}
    assert row['num_examples'] == 40

  def test_infinity_is_refused(self):
    gap = metrics.CotGap('tract', 1, 0, 9, 0.1, float('inf'))
    with pytest.raises(ValueError, match='not JSON compliant'):
      report_writing.metrics_json(reports.report(cot_gaps=[gap]))


class TestCombined:
  def test_is_the_mean_of_the_rows(self):
    content = _content()
    rows = [r for r in content['rows'] if r['method'] == 'raft']
    by_name = {
      c['benchmark']: c for c in content['combined'] if c['method'] == 'raft'
    }
    assert list(by_name) == ['flask', 'mt_bench', 'mean']
    for name, combined in by_name.items():
      own = [r for r in rows if name in ('mean', r['benchmark'])]
      for figure in ('pearson', 'spearman', 'kendall', 'rmse', 'grid_mass'):
        mean = np.mean([r[figure] for r in own])
        assert combined[figure] == pytest.approx(mean, abs=1e-9)
      low, high = combined['pearson_ci']
      assert low < combined['pearson'] < high
      assert combined['num_seeds'] == 2
      assert combined['num_examples'] == 40 * len(own)

  def test_no_mean_where_a_correlation_is_missing(self):
    combined = _content()['combined'][-1]
    assert (combined['method'], combined['benchmark']) == ('zero_shot', 'mean')
    assert combined['pearson'] is None and combined['rmse'] is not None
    assert 'constant predictions' in combined['reason']

  def test_no_mean_over_fewer_benchmarks_than_others_have(self):
    systems = [reports.system('tract', 'flask', 0), *reports.systems(('raft',))]
    means = [c for c in _content(systems)['combined'] if c['method'] == 'tract']
    assert [c['benchmark'] for c in means] == ['flask', 'mean']
    assert means[0]['pearson'] is not None
    assert means[1]['pearson'] is None and means[1]['rmse'] is None
    assert means[1]['reason'] == 'no seed with predictions on every benchmark'

  def test_mean_takes_the_seeds_that_every_benchmark_has(self):
    systems = [
      *reports.systems(('tract',)),
      reports.system('tract', 'flask', 2),
    ]
    means = {c['benchmark']: c for c in _content(systems)['combined']}
    assert means['flask']['seeds'] == [0, 1, 2]
    assert means['mean']['seeds'] == [0, 1]


class TestDifferences:
  def test_default_is_tract_against_each_other_method(self):
    differences = reports.report().differences
    assert [(d.a.method, d.b.method) for d in differences] == [
      ('tract', 'raft'),
      ('tract', 'zero_shot'),
    ]
    first, second = differences
    combined = {
      c.method: c.pearson
      for c in reports.report().combined
      if c.benchmark == 'mean'
    }
    assert first.mean == pytest.approx(combined['tract'] - combined['raft'])
    assert (first.seeds, first.num_rows) == ((0, 1), 80)
    # Fewer errors: of every figure an own interval.
    assert first.figures['rmse'].mean < 0 < first.figures['accuracy'].mean
    assert first.figures['rmse'].excludes_zero
    json_ = _content()['differences'][0]['figures']
    assert json_['kendall']['ci'][0] < json_['kendall']['mean']
    assert second.mean is None
    assert second.reason == 'flask: constant predictions'

  def test_without_tract_the_next_of_the_family_stands_in(self):
    (difference,) = reports.report(reports.systems(('raft', 'ce'))).differences
    assert (difference.a.method, difference.b.method) == ('raft', 'ce')
    assert reports.report(reports.systems(('ce_cot', 'ce'))).differences == ()

  def test_primary_predictor_and_fewest_cots(self):
    systems = [
      reports.system('tract', 'flask', 0, num_cots=5),
      reports.system('tract', 'flask', 0, num_cots=2),
      reports.system('ce', 'flask', 0, predictor='rail'),
      reports.system('ce', 'flask', 0, predictor='decode'),
      reports.system('raft', 'flask', 0, predictor='median'),
    ]
    primary = {'ce': 'decode', 'raft': 'decode'}
    differences = reports.report(
      systems, primary_predictors=primary
    ).differences
    assert [(str(d.a), str(d.b)) for d in differences] == [
      ('tract/rail/2', 'ce/decode/1'),
      ('tract/rail/2', 'raft/median/1'),
    ]

  def test_configured_pairs(self):
    pairs = [('raft/rail', 'tract')]
    (difference,) = reports.report(comparisons=pairs).differences
    assert (difference.a.method, difference.b.method) == ('raft', 'tract')
    assert difference.mean < 0
    assert reports.report(comparisons=[]).differences == ()

  def test_a_name_means_the_primary_predictor_and_the_fewest_cots(self):
    systems = [
      reports.system('tract', 'flask', 0, predictor=predictor, num_cots=n)
      for predictor in ('decode', 'rail')
      for n in (2, 5)
    ]
    pairs = [
      ('tract', 'tract/rail/2'),
      ('tract/rail', 'tract'),
      ('tract/rail/5', 'tract/decode/5'),
    ]
    report = reports.report(
      systems, comparisons=pairs, primary_predictors={'tract': 'decode'}
    )
    assert [(str(d.a), str(d.b)) for d in report.differences] == [
      ('tract/decode/2', 'tract/rail/2'),
      ('tract/rail/2', 'tract/decode/2'),
      ('tract/rail/5', 'tract/decode/5'),
    ]
    first, second, _ = report.differences
    assert first.mean == -second.mean

  def test_every_two_systems(self):
    report = reports.report(comparisons='all')
    names = ['raft/rail/1', 'tract/rail/1', 'zero_shot/rail/1']
    assert [(str(d.a), str(d.b)) for d in report.differences] == [
      *((names[0], name) for name in names[1:]),
      (names[1], names[2]),
    ]
    ours = reports.report().differences[0]
    assert report.differences[0].mean == pytest.approx(-ours.mean)
    # A reader may choose from them whatever is compared, of few systems.
    chosen = reports.report(comparisons=[]).choice
    assert [d.mean for d in chosen] == [d.mean for d in report.differences]
    many = [reports.system(f'm{i:02d}', 'flask', 0) for i in range(17)]
    assert len(reports.report(many[:16]).choice) == 120
    assert reports.report(many).choice == ()

  def test_only_seeds_that_both_have(self):
    systems = [
      *reports.systems(('tract',)),
      *reports.systems(('raft',), seeds=(1, 2)),
    ]
    (difference,) = reports.report(systems).differences
    assert difference.seeds == (1,)

  def test_nothing_in_common(self):
    systems = [
      reports.system('tract', 'flask', 0),
      reports.system('raft', 'mt_bench', 0),
    ]
    (difference,) = reports.report(systems).differences
    assert difference.mean is None
    assert difference.reason == 'no benchmark in common'

  def test_unknown_system(self):
    pairs = [('tract/rail', 'raft/decode')]
    with pytest.raises(
      types.InputError, match='comparison of raft/decode: .*tract/rail/1'
    ):
      reports.report(comparisons=pairs)


class TestInput:
  def test_given_twice(self):
    with pytest.raises(
      types.InputError, match='given twice: tract/rail/1, flask, seed 0'
    ):
      reports.report([reports.system('tract', 'flask', 0)] * 2)

  def test_name_of_the_mean_is_taken(self):
    with pytest.raises(types.InputError, match="benchmark 'mean'"):
      reports.report([reports.system('tract', 'mean', 0)])

  def test_nothing_at_all(self):
    empty = reports.report([])
    assert json.loads(report_writing.metrics_json(empty))['rows'] == []
    assert 'None.' in report_writing.report_markdown(empty)
    assert report_writing.results_table(empty).startswith('method')


def test_seeds_of_a_system_that_lacks_a_benchmark_are_counted():
  alone = [reports.system('other', 'flask', seed) for seed in (5, 6, 7)]
  table = report_sections.results(reports.report(reports.systems() + alone))
  at = table.header.index('seeds')
  assert {line[0]: line[at] for line in table.lines} == {
    'tract': 2,
    'raft': 2,
    'zero_shot': 2,
    'other': 3,
  }
