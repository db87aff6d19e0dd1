"""References beside the judges: by hand, and on the real judgements."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from tests.evaluation import reports
from tract_jax import types
from tract_jax.data import records
from tract_jax.evaluation import (
  metrics,
  references,
  report_writing,
  resampling,
)
from tract_jax.text import prompts

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
MT_BENCH = (
  pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'mt_bench_eval.json'
)
MIDDLE = references.Constant(3.0, references.GRID_MIDDLE)
QUICK = resampling.Bootstrap(num_resamples=200)


def example(i, score, response='', ratings=()):
  return types.Example(
    f'row {i}', 'x', score, ratings=ratings, response=response
  )


def found(examples, constant=MIDDLE):
  """{method: (row, draws)} of every reference."""
  pairs = [
    references.judge(reference, QUICK, 0.5)
    for reference in references.references('bench', examples, constant)
  ]
  return {row.method: (row, draws) for row, draws in pairs}


def test_constant_is_the_mean_of_what_is_trained_on_or_the_middle():
  grid = [1.0, 2.0, 6.0]
  assert references.constant([], grid) == references.Constant(
    3.5, references.GRID_MIDDLE
  )
  mean = references.constant([1.0, 2.0], grid)
  assert mean == references.Constant(1.5, references.TRAINING_MEAN)
  examples = [example(0, 1.0), example(1, 2.0), example(2, 6.0)]
  row, _ = found(examples, mean)['constant']
  assert (row.predictor, row.num_examples) == ('training_mean', 3)
  assert row.rmse == pytest.approx(np.sqrt((0.25 + 0.25 + 4.5**2) / 3))
  assert row.pearson is None and 'constant predictions' in row.reason


def test_length_has_correlations_and_no_errors():
  texts = ['a' * n for n in (5, 1, 9, 7)]
  scores = [2.0, 1.0, 5.0, 3.0]
  examples = [
    example(i, s, t) for i, (s, t) in enumerate(zip(scores, texts, strict=True))
  ]
  row, _ = found(examples)['response_length']
  assert row.pearson == pytest.approx(
    stats.pearsonr([5, 1, 9, 7], scores).statistic
  )
  assert row.spearman == pytest.approx(1.0)
  assert row.rmse is None and row.mae is None
  assert 'rmse, mae, accuracy: a length is no score' in row.reason
  # One response is not known: no figure of the others alone.
  assert 'response_length' not in found([*examples, example(4, 1.0)])


def test_raters_are_each_held_against_the_mean_of_the_others():
  ratings = np.random.default_rng(0).integers(1, 6, (12, 3)).astype(float)
  examples = [
    example(i, r.mean(), ratings=tuple(r)) for i, r in enumerate(ratings)
  ]
  # Rows with one rating say nothing, and of more only as many as all have.
  examples += [example(98, 3.0, ratings=(3.0,)), example(99, 2.0)]
  examples[0] = example(0, 1.0, ratings=(*ratings[0], 5.0))
  row, draws = found(examples)['raters']
  each = []
  for i in range(3):
    others = np.delete(ratings, i, axis=1).mean(axis=1)
    each.append((stats.pearsonr(ratings[:, i], others).statistic, others))
  assert row.num_examples == 12
  assert row.pearson == pytest.approx(np.mean([r for r, _ in each]))
  errors = [ratings[:, i] - others for i, (_, others) in enumerate(each)]
  rmses = [np.sqrt(np.mean(np.square(e))) for e in errors]
  assert row.rmse == pytest.approx(np.mean(rmses))
  low, high = row.pearson_ci
  assert low < row.pearson < high
  # The interval is of the mean of the raters' draws on the same resamples.
  order = np.argsort([f'row {i}' for i in range(12)])
  ids = tuple(f'row {i}' for i in order)
  of_raters = [
    resampling.resample(
      metrics.Rows('bench', ids, tuple(others[order])),
      ratings[order, i][None],
      QUICK,
      0.5,
    )[0]['pearson'].draws
    for i, (_, others) in enumerate(each)
  ]
  np.testing.assert_allclose(
    draws['pearson'].draws, np.mean(of_raters, axis=0), atol=1e-9
  )


def test_unrated_rows_have_no_reference():
  assert references.references('b', [example(0, None, 'a')], MIDDLE) == []


def test_they_stand_below_the_judges_and_in_metrics_json():
  examples = [
    example(i, float(i % 5 + 1), 'a' * (i % 7 + 1), (float(i % 5 + 1), 3.0))
    for i in range(40)
  ]
  refs = [
    r
    for name in ('flask', 'mt_bench')
    for r in references.references(name, examples, MIDDLE)
  ]
  report = reports.report(references=refs, constant=MIDDLE)
  assert {r.method for r in report.rows} == {'tract', 'raft', 'zero_shot'}
  assert [r.method for r in report.references[::2]] == [
    'constant',
    'raters',
    'response_length',
  ]
  text = report_writing.report_markdown(report)
  lines = [x.split(' | ')[0] for x in text.split('\n') if x.startswith('| ')]
  assert lines[2:8] == [
    '| raft',
    '| tract',
    '| zero\\_shot',
    '| constant',
    '| raters',
    '| response\\_length',
  ]
  assert '"constant" gives every row 3.000, the grid\'s middle' in text
  assert 'constant' in report_writing.results_table(report)
  assert 'No judges' not in report_writing.report_markdown(reports.report())


@pytest.mark.skipif(not MT_BENCH.exists(), reason=f'{MT_BENCH} is not here')
def test_real_judgements():
  examples, _ = records.read_examples(str(MT_BENCH), GRID, role='eval')
  rows = {name: row for name, (row, _) in found(examples).items()}
  assert list(rows) == ['constant', 'response_length', 'raters']
  assert round(rows['response_length'].pearson, 2) == 0.32
  low, high = rows['response_length'].pearson_ci
  assert 0.2 < low < 0.32 < high < 0.45
  assert 0.87 <= rows['raters'].pearson <= 0.9
  assert rows['raters'].num_examples == 320
