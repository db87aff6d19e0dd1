"""Preference pairs, from prediction files to the report."""

import dataclasses
import json

from etils import epath
import pytest

from tests.pipeline import evaluate_test
from tract_jax import types
from tract_jax.pipeline import (
  evaluate,
  other_systems,
  prediction_files,
)

GRID = evaluate_test.GRID
# Which score of the grid each response gets; None: it has no distribution.
SCORES = {
  'a': (3, 1),
  'b': (2, 2),
  'c': (1, 3),
  'd': (3, None),
}
SIDES = ('chosen', 'rejected')


def prediction(pair, side, score, seed=0, **more):
  probs = score and [float(score == y) for y in (1, 2, 3)]
  fields = {
    'score': None,
    'cots': ['', ''],
    'decoded': [score, score],
    'pair_id': pair,
    'category': 'chat' if pair < 'c' else 'code',
    'example_id': f'{pair}-{side}',
  }
  row = evaluate_test.prediction(0, seed, None, probs, probs, score)
  return dataclasses.replace(row, **(fields | more))


def rows_of(scores=SCORES, seeds=(0,)):
  return [
    prediction(pair, side, score, seed)
    for seed in seeds
    for pair, both in scores.items()
    for side, score in zip(SIDES, both, strict=True)
  ]


def write(workdir, rows, benchmark='bench', method='tract'):
  path = prediction_files.path_of(workdir, method, benchmark)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(dataclasses.asdict(row)) + '\n' for row in rows]
  path.write_text(''.join(lines))
  return path


def examples(scores=SCORES):
  return [
    types.Example(
      f'{pair}-{side}',
      'x',
      None,
      pair_id=pair,
      response=side,
      category='chat' if pair < 'c' else 'code',
    )
    for pair in scores
    for side in SIDES
  ]


def evaluated(tmp_path, benchmarks=None, others=(), **more):
  """metrics.json, and whether there was anything to do."""
  evaluation = {'num_resamples': 100} | more.pop('evaluation', {})
  config = evaluate_test.make_config(
    **({'seeds': (0,)} | more), evaluation=evaluation
  )
  worked = evaluate.evaluate(
    *(config, GRID, epath.Path(tmp_path)),
    benchmarks or {'bench': ()},
    [],
    others=others,
  )
  text = (tmp_path / 'report' / 'metrics.json').read_text()
  return json.loads(text), worked


def overall(rows):
  return [row for row in rows if row['kind'] == 'overall']


def test_every_predictor_number_of_cots_and_seed(tmp_path):
  workdir = epath.Path(tmp_path)
  write(workdir, rows_of(seeds=(0, 1)))
  content, _ = evaluated(tmp_path, seeds=(0, 1), predictors=('decode', 'rail'))
  found = overall(content['pairwise'])
  keys = [(r['predictor'], r['num_cots'], r['seed']) for r in found]
  assert sorted(keys) == [
    (p, n, s) for p in ('decode', 'rail') for n in (1, 2) for s in (0, 1)
  ]
  for row in found:
    # Won, tied, lost; and 3 against the fallback, 2.
    assert row['accuracy'] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert (row['num_pairs'], row['num_ties'], row['num_invalid']) == (4, 1, 1)
    assert row['mean_difference'] == pytest.approx((2 + 0 - 2 + 1) / 4)
    low, high = row['accuracy_ci']
    assert low < row['accuracy'] < high
  of_subset = {
    (r['subset'], r['accuracy'])
    for r in content['pairwise_combined']
    if r['kind'] == 'subset'
  }
  assert of_subset == {('chat', 0.75), ('code', 0.5)}
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert '## Preference pairs' in text and '| bench | chat | tract |' in text
  assert 'no scores' not in text
  # Rows stand in metrics.json as they did.
  assert {row['benchmark'] for row in content['rows']} == {'bench'}
  assert content['rows'][0]['num_examples'] == 8


def test_nothing_is_said_of_missing_scores(tmp_path, capsys):
  write(epath.Path(tmp_path), rows_of())
  evaluated(tmp_path)
  out = capsys.readouterr().out
  assert "no row has a rater's score" not in out
  assert 'all pairs' in out and '.625' in out


@pytest.mark.parametrize(
  ('settings', 'accuracy', 'num_ties'),
  [
    ({}, 0.625, 1),
    ({'ties': 'wrong'}, 0.5, 1),
    ({'ties': 'skip'}, 2 / 3, 1),
    ({'tie_margin': 1.0}, 0.5, 2),
    ({'ties': 'wrong', 'tie_margin': 1.0}, 0.25, 2),
  ],
)
def test_rules_of_ties(tmp_path, settings, accuracy, num_ties):
  write(epath.Path(tmp_path), rows_of())
  evaluated(tmp_path, evaluation={'num_resamples': 200})
  content, _ = evaluated(tmp_path, evaluation=settings)
  (row,) = [r for r in overall(content['pairwise']) if r['num_cots'] == 2]
  assert row['accuracy'] == pytest.approx(accuracy)
  assert row['num_ties'] == num_ties


def test_another_rule_makes_the_report_anew(tmp_path):
  write(epath.Path(tmp_path), rows_of())
  assert evaluated(tmp_path)[1]
  assert not evaluated(tmp_path)[1]
  for key, value in (('ties', 'wrong'), ('tie_margin', 0.5)):
    assert evaluated(tmp_path, evaluation={key: value})[1]
    assert not evaluated(tmp_path, evaluation={key: value})[1]


def test_references_stand_beside_the_judge(tmp_path):
  write(epath.Path(tmp_path), rows_of())
  content, _ = evaluated(tmp_path, {'bench': examples()})
  found = {
    row['method']: row for row in overall(content['pairwise_references'])
  }
  assert found['constant']['accuracy'] == 0.5
  # "chosen" is the shorter word.
  assert found['response_length']['accuracy'] == 0.0
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert '| bench | response\\_length | characters |' in text


def test_methods_are_compared_on_the_same_pairs(tmp_path):
  workdir = epath.Path(tmp_path)
  write(workdir, rows_of())
  worse = SCORES | {'a': (1, 3)}
  write(workdir, rows_of(worse), method='tract_ce')
  content, _ = evaluated(tmp_path, methods=('tract', 'tract_ce'))
  (gap,) = overall(content['pairwise_differences'])
  assert (gap['a']['method'], gap['b']['method']) == ('tract', 'tract_ce')
  assert gap['mean'] == pytest.approx(1 / 4)
  assert gap['num_pairs'] == 4


def test_a_response_that_was_not_predicted_is_named(tmp_path):
  rows = rows_of()
  write(epath.Path(tmp_path), [r for r in rows if r.example_id != 'b-rejected'])
  with pytest.raises(
    types.InputError,
    match=r'bench\.jsonl: 1 responses of pairs have no prediction with seed 0, '
    "such as 'b-rejected'",
  ):
    evaluated(tmp_path, {'bench': examples()})


def test_a_pair_that_the_benchmark_has_half_of_is_counted(tmp_path, capsys):
  rows = [row for row in rows_of() if row.example_id != 'd-rejected']
  write(epath.Path(tmp_path), rows)
  half = [e for e in examples() if e.example_id != 'd-rejected']
  content, _ = evaluated(tmp_path, {'bench': half})
  assert '1 of 7 responses have no other of their pair' in (
    capsys.readouterr().out
  )
  row = overall(content['pairwise'])[0]
  assert (row['num_pairs'], row['num_lone']) == (3, 1)
  assert row['accuracy'] == pytest.approx(0.5)
  # References are of the same pairs.
  beside = overall(content['pairwise_references'])
  assert {r['num_pairs'] for r in beside} == {3}


def test_pairs_and_rated_rows_of_one_file(tmp_path, capsys):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir, seeds=(0,))
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  rated = path.read_text()
  pairs = [json.dumps(dataclasses.asdict(row)) + '\n' for row in rows_of()]
  path.write_text(rated + ''.join(pairs))
  content, _ = evaluated(tmp_path)
  assert 'left out' not in capsys.readouterr().out
  assert {r['num_examples'] for r in content['rows']} == {4}
  assert {r['num_pairs'] for r in overall(content['pairwise'])} == {4}
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert '| bench | within' not in text
  header = text.split('\n')[6]
  assert '| bench |' in header


def test_pairs_beside_rated_benchmarks(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir, seeds=(0,))
  write(workdir, rows_of(), 'pairs')
  content, _ = evaluated(tmp_path, {'bench': (), 'pairs': ()})
  assert {r['benchmark'] for r in content['rows']} == {'bench', 'pairs'}
  assert {r['benchmark'] for r in content['pairwise']} == {'pairs'}
  text = (tmp_path / 'report' / 'report.md').read_text()
  results, _ = text.split('## Preference pairs')
  assert 'pairs |' not in results and 'in a section of their own' in results


def test_another_system_may_have_judged_pairs_alone(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir, seeds=(0,))
  write(workdir, rows_of(), 'pairs')
  path = tmp_path / 'theirs.jsonl'
  path.write_text(''.join(map(prediction_files.to_line, rows_of())))
  benchmarks = {'bench': (), 'pairs': examples()}
  evaluation = {'others': f'theirs/pairs={path}'}
  config = evaluate_test.make_config(seeds=(0,), evaluation=evaluation)
  others = other_systems.read(config, GRID, benchmarks)
  content, _ = evaluated(tmp_path, benchmarks, others, evaluation=evaluation)
  of_theirs = [r for r in content['rows'] if r['method'] == 'theirs']
  assert {r['benchmark'] for r in of_theirs} == {'pairs'}
  text = (tmp_path / 'report' / 'report.md').read_text()
  (line, *_) = (x for x in text.split('\n') if x.startswith('| theirs (other)'))
  cells = [cell.strip() for cell in line.strip('|').split('|')]
  assert cells[:5] == ['theirs (other)', 'rail', '1', '1', '']


def test_pairs_of_another_system_are_joined_by_our_rows(tmp_path):
  """Its file says nothing of pairs; its rows are ours by their ids."""
  workdir = epath.Path(tmp_path)
  write(workdir, rows_of())
  path = tmp_path / 'theirs.jsonl'
  lines = [
    json.dumps(dataclasses.asdict(row) | {'pair_id': '', 'category': 'other'})
    for row in rows_of(SCORES | {'c': (3, 1)})
  ]
  path.write_text('\n'.join(lines) + '\n')
  benchmarks = {'bench': examples()}
  evaluation = {'others': f'theirs/bench={path}'}
  config = evaluate_test.make_config(seeds=(0,), evaluation=evaluation)
  others = other_systems.read(config, GRID, benchmarks)
  content, _ = evaluated(tmp_path, benchmarks, others, evaluation=evaluation)
  found = {
    row['method']: row
    for row in overall(content['pairwise_combined'])
    if row['num_cots'] in (0, 2)
  }
  assert found['theirs']['accuracy'] == pytest.approx(3.5 / 4)
  assert found['tract']['accuracy'] == pytest.approx(2.5 / 4)
  (gap,) = overall(content['pairwise_differences'])
  assert gap['mean'] == pytest.approx(-1 / 4)
