"""What prediction files become in the report, beside its rows."""

import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from tests.pipeline import evaluate_test
from tract_jax import types
from tract_jax.evaluation import breakdowns, overlap
from tract_jax.objectives import predictors
from tract_jax.pipeline import (
  evaluate,
  methods,
  predicted,
  prediction_files,
)

GRID = evaluate_test.GRID


def test_calibration_is_of_the_mean_over_the_cots(tmp_path):
  workdir = epath.Path(tmp_path)
  rows = [
    evaluate_test.prediction(i, 0, 2.0, [0.4, 0.0, 0.0], [0.0, 0.0, 0.4], 1.0)
    for i in range(40)
  ]
  rows[7].distributions[:] = [None, [0.0, 0.5, 0.0]]
  rows[9].distributions[:] = [None, None]
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  path.parent.mkdir(parents=True)
  lines = [json.dumps(dataclasses.asdict(row)) + '\n' for row in rows]
  path.write_text(''.join(lines))
  levels = []
  for level in (0.5, 0.8):
    config = evaluate_test.make_config(
      seeds=(0,), evaluation={'num_resamples': 100, 'conformal_level': level}
    )
    evaluate.evaluate(config, GRID, workdir, evaluate_test.BENCH, [])
    content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
    one, two = content['calibration']
    levels.append(two['conformal_level'])
  assert levels == [0.5, 0.8]
  assert (one['num_cots'], two['num_cots']) == (1, 2)
  assert (one['num_rows'], one['num_left_out']) == (38, 2)
  assert (two['num_rows'], two['num_left_out']) == (39, 1)
  # All mass on 1: an error of 1. Half on 1 and half on 3: 1 - 1 / 2.
  assert one['crps'] == pytest.approx(1.0)
  assert two['crps'] == pytest.approx(0.5 * 38 / 39)


def test_figures_do_not_depend_on_the_order_of_a_file(tmp_path):
  rng = np.random.default_rng(0)
  rows = [
    evaluate_test.prediction(i, 0, float(score), *probs, 1.0)
    for i, score in enumerate(rng.integers(1, 4, 60))
    for probs in [rng.dirichlet([1] * 3, 2).tolist()]
  ]
  texts = []
  for name, order in (('a', range(60)), ('b', rng.permutation(60))):
    workdir = epath.Path(tmp_path / name)
    path = prediction_files.path_of(workdir, 'tract', 'bench')
    path.parent.mkdir(parents=True)
    path.write_text(''.join(prediction_files.to_line(rows[i]) for i in order))
    config = evaluate_test.make_config(
      seeds=(0,), evaluation={'num_resamples': 100}
    )
    evaluate.evaluate(config, GRID, workdir, evaluate_test.BENCH, [])
    texts.append((workdir / 'report' / 'metrics.json').read_text())
  first, second = map(json.loads, texts)
  assert first['calibration'][0]['conformal_half_width'] is not None
  for name in ('rows', 'calibration', 'breakdowns', 'num_cots_curve'):
    assert first[name] == second[name], name


def test_the_sampled_decode_is_drawn_by_what_the_row_is_drawn_by(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir, seeds=(0,))
  config = evaluate_test.make_config(
    seeds=(0,),
    predictors=('decode_sampled',),
    evaluation={'num_resamples': 100},
  )
  rows = [types.Example(f'row {i}', 'x', 1.0) for i in range(4)]
  named = [dataclasses.replace(row, sampling_id='same') for row in rows]
  drawn = []
  for examples in (rows, named):
    found = predicted.Found()
    path = prediction_files.path_of(workdir, 'tract', 'bench')
    predicted.add_file(
      *(found, config, GRID, 'tract', methods.METHODS['tract'], 'bench'),
      prediction_files.read_predictions(path),
      num_groups=1,
      examples={row.example_id: row for row in examples},
    )
    (one,) = (
      s
      for s in found.systems
      if (s.predictor, s.num_cots) == ('decode_sampled', 2)
    )
    drawn.append(one.predictions)
  per_cot = predictors.decode_uniforms(0, ['row 0', 'same'], 2)[:, 1]
  # Scores 1 and 2 are alike after the first row's second CoT.
  expected = [(1 + (1 if u < 0.5 else 2)) / 2 for u in per_cot]
  assert expected[0] != expected[1]
  assert [values[0] for values in drawn] == expected


def test_curve_over_the_number_of_cots(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir)
  assert evaluate.evaluate(
    evaluate_test.make_config(), GRID, workdir, evaluate_test.BENCH, []
  )
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  rows = {(r['seed'], r['num_cots']): r for r in content['rows']}
  found = content['num_cots_curve']
  assert [(p['seed'], p['num_cots']) for p in found] == sorted(rows)
  for point in found:
    row = rows[point['seed'], point['num_cots']]
    assert (point['pearson'], point['rmse']) == (row['pearson'], row['rmse'])
  one = evaluate_test.make_config(num_cots=1)
  assert evaluate.evaluate(one, GRID, workdir, evaluate_test.BENCH, [])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert content['num_cots_curve'] == []


def test_page_shows_every_judgement_beside_the_benchmarks_rows(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir)
  rows = [
    types.Example('row 1', 'Judge a!', 2.0, ratings=(1.0, 3.0), response='a')
  ]
  evaluate.evaluate(
    evaluate_test.make_config(), GRID, workdir, {'bench': rows}, []
  )
  text = (tmp_path / 'report' / 'report.html').read_text()
  _, _, rest = text.partition('<script type="application/json" id="data">')
  data = json.loads(rest.partition('</script>')[0])
  assert len(data['judgements']) == 8
  (row,) = [row for row in data['rows'] if row['id'] == 'row 1']
  assert row['prompt'] == ['Judge ', 'a', '!'] and row['ratings'] == [1, 3]
  assert 'All 8 judgements are here.' in text
  assert '<figcaption>tract on bench</figcaption>' in text


def test_references_are_reported_and_make_the_report_anew(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir)
  assert evaluate.evaluate(
    evaluate_test.make_config(), GRID, workdir, evaluate_test.BENCH, []
  )
  rows = [
    types.Example(f'row {i}', 'x', float(i), ratings=(1.0, i), response='a' * i)
    for i in (1, 2, 3)
  ]
  arguments = evaluate_test.make_config(), GRID, workdir, {'bench': rows}, []
  assert evaluate.evaluate(*arguments)
  assert not evaluate.evaluate(*arguments)
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert content['constant'] == {'value': 2.0, 'kind': 'grid_middle'}
  found = {row['method']: row for row in content['references']}
  assert found['response_length']['pearson'] == pytest.approx(1.0)
  assert found['raters']['num_examples'] == 3
  assert 'constant' not in {row['method'] for row in content['rows']}
  assert evaluate.evaluate(*arguments, training_scores=[1.0, 2.0])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert content['constant'] == {'value': 1.5, 'kind': 'training_mean'}


def test_breakdowns_by_what_rows_are(tmp_path):
  workdir = epath.Path(tmp_path)
  rows = [
    dataclasses.replace(
      evaluate_test.prediction(i, 0, score, [0.5, 0.3, 0.2], None, 1.0),
      category='ab'[i % 2],
      cots=['a' * i, ''],
      finish_reasons=['marker', ('marker', 'length')[i > 3]],
      cot_tokens=[i, 2],
    )
    for i, score in enumerate([1.0, 2.4, 3.0, 2.0, 1.0, 2.0])
  ]
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  path.parent.mkdir(parents=True)
  lines = [json.dumps(dataclasses.asdict(row)) + '\n' for row in rows]
  path.write_text(''.join(lines))
  examples = [
    types.Example(
      f'row {i}',
      f'a\n###Score Rubrics:\n[Rubric {i % 3}?]\nScore 1: no',
      score=rows[i].score,
      response_source=('m', 'n', '')[i % 3],
    )
    for i in range(6)
  ]
  config = evaluate_test.make_config(seeds=(0,))
  evaluate.evaluate(config, GRID, workdir, {'bench': examples}, [])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  found = {}
  for part in content['breakdowns']:
    counts = found.setdefault(part['facet'], {})
    counts[part['value']] = part['num_rows']
    assert (part['predictor'], part['num_cots']) == ('rail', 2)
  assert found == {
    'category': {'a': 3, 'b': 3},
    'response_source': {'m': 2, 'n': 2},
    'rubric': {f'Rubric {i}?': 2 for i in range(3)},
    'score': {'1': 2, '2': 3, '3': 1},
    'cot_length': {name: 2 for name in breakdowns.thirds(range(6))},
    'finish_reason': {'marker': 4, 'length, marker': 2},
  }
  (texts,) = content['cot_texts']
  assert texts['num_overlap'] == (5 if overlap.versions() else 0)
  assert (texts['num_cots'], texts['share_with_digits']) == (12, 0.0)
  assert texts['mean_tokens'] == pytest.approx((sum(range(6)) + 6 * 2) / 12)


def test_a_judges_own_predictor_is_its_own_in_the_report(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir)
  config = evaluate_test.make_config()
  arguments = config, GRID, workdir, evaluate_test.BENCH, []
  assert evaluate.evaluate(*arguments)
  own = dataclasses.replace(methods.METHODS['tract'], predictor='median')
  assert evaluate.evaluate(*arguments, methods={'tract': own})
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  found = {row['predictor'] for row in content['rows']}
  assert found == {'rail', 'median'}
  text = (tmp_path / 'report' / 'report.html').read_text()
  _, _, rest = text.partition('<script type="application/json" id="data">')
  data = json.loads(rest.partition('</script>')[0])
  # Of row 0 one CoT says 1, the other that 1 and 2 are alike: 1.25 is expected.
  shown = {judged['prediction'] for judged in data['judgements']}
  assert 1.0 in shown and 1.25 not in shown


def test_predictions_of_other_rows_are_told(tmp_path, capsys):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir)
  rows = [
    types.Example(name, 'x', score)
    for name, score in [('row 0', 1.0), ('row 1', 3.0), ('row 7', 2.0)]
  ]
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  lines = path.read_text().splitlines(keepends=True)
  assert '"row 0", "seed": 1' in lines.pop(4).replace('example_id', '')
  path.write_text(''.join(lines))
  config = evaluate_test.make_config()
  assert evaluate.evaluate(config, GRID, workdir, {'bench': rows}, [])
  said = capsys.readouterr().out
  for told in (
    "2 rows of the benchmark lack a prediction, such as 'row 7'",
    "2 rows with a prediction are not in the benchmark, such as 'row 2'",
    "1 rows have another rater's score in the benchmark: that counts, such as"
    " 'row 1'",
  ):
    assert f'{path}: {told}' in said
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  (row,) = (
    r
    for r in content['rows']
    if (r['predictor'], r['num_cots'], r['seed']) == ('rail', 1, 0)
  )
  # 1, 1.6, 3 and the midpoint against 1, 3, and 3 and 2 of the file.
  assert row['mae'] == pytest.approx(1.4 / 4)


def test_distributions_with_nan_and_blank_lines(tmp_path):
  workdir = epath.Path(tmp_path)
  evaluate_test.write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  text = path.read_text().replace('[1.0, 0.0, 0.0]', '[NaN, 0.0, 0.0]')
  path.write_text(text + '\n \n')
  config = evaluate_test.make_config(num_cots=1)
  assert evaluate.evaluate(config, GRID, workdir, evaluate_test.BENCH, [])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert {row['num_invalid'] for row in content['rows']} == {2}
