"""Other systems in the report: their rows, differences and judgements."""

import json

from etils import epath
import numpy as np
import pytest

from tests.pipeline import evaluate_test, other_systems_test
from tract_jax.pipeline import evaluate, predicted

GRID = evaluate_test.GRID


def judged(tmp_path, *paths, **changes):
  """report/metrics.json of our predictions beside theirs."""
  workdir = epath.Path(tmp_path / 'run')
  if not workdir.exists():
    evaluate_test.write_predictions(workdir)
  others = other_systems_test.read(*paths, **changes)
  config = evaluate_test.make_config(**changes)
  assert evaluate.evaluate(
    config, GRID, workdir, evaluate_test.BENCH, [], others=others
  )
  assert not evaluate.evaluate(
    config, GRID, workdir, evaluate_test.BENCH, [], others=others
  )
  return json.loads((workdir / 'report' / 'metrics.json').read_text())


def test_rows_differences_and_marks_in_the_report(tmp_path, capsys):
  path = other_systems_test.write(
    tmp_path, other_systems_test.release(num_cots=2)
  )
  content = judged(tmp_path, path, predictors=('decode', 'rail_normalized'))
  rows = [r for r in content['rows'] if r['method'] == 'their.tract']
  assert [(r['predictor'], r['num_cots'], r['seed']) for r in rows] == [
    (p, n, 42) for p in ('rail', 'rail_normalized') for n in (1, 2)
  ]
  assert {r['rmse'] for r in rows} == {0.0}
  assert {r['pearson'] for r in rows} == {1.0}
  (difference,) = content['differences']
  assert (difference['a']['method'], difference['b']['method']) == (
    'tract',
    'their.tract',
  )
  # Their only seed stands beside each of ours, on the same rows.
  assert (difference['seeds'], difference['num_rows']) == ([0, 1], 4)
  one = next(
    r
    for r in content['rows']
    if (r['method'], r['predictor'], r['num_cots']) == ('tract', 'rail', 1)
  )
  assert difference['mean'] == pytest.approx(one['pearson'] - 1)
  assert difference['ci'][0] <= difference['mean'] <= difference['ci'][1]
  calibrated = {(c['method'], c['seed']) for c in content['calibration']}
  assert calibrated == {('tract', 0), ('tract', 1), ('their.tract', 42)}
  (file,) = content['other_systems']
  assert (file['path'], file['num_cots']) == (str(path), 2)
  text = (tmp_path / 'run' / 'report' / 'report.md').read_text()
  assert r'| their.tract (other) | rail | 1 | 1 |' in text
  assert '| tract | rail | 1 | 2 |' in text
  assert '## Other systems' in text
  assert file['sha256'][:12] in text
  shown = capsys.readouterr().out
  assert 'their.tract (other)' in shown
  assert '4 predictions of another system (release, in our order)' in shown


def test_the_page_shows_what_the_figures_are_made_of(tmp_path):
  content = other_systems_test.release(num_cots=2)
  content['probs'][2] = [0.5, 0.5, 0.0]
  content['probs'][6:] = [[float('nan')] * 3] * 2
  # What a file says of its predictions is not what they are.
  told = other_systems_test.ours(
    7, prediction=1.0, invalid_reason='so it is said'
  )
  for name, rows in (('a.json', content), ('b.jsonl', told)):
    path = other_systems_test.write(tmp_path, rows, name)
    (found,) = other_systems_test.read(path)
    facts = predicted.Found()
    config = evaluate_test.make_config()
    predicted.add_file(
      *(facts, config, GRID, found.method, None, found.benchmark),
      *(found.rows, 1, {}),
    )
    (system,) = facts.own
    shown = {row.example_id: row for row in facts.groups[0].shown}
    assert len(shown) == 4
    pairs = zip(system.example_ids, system.predictions, strict=True)
    for example_id, value in pairs:
      wanted = None if np.isnan(value) else value
      assert shown[example_id].prediction == wanted
      assert bool(shown[example_id].invalid_reason) == (wanted is None)
    invalid = [row for row in shown.values() if row.prediction is None]
    assert len(invalid) == (name == 'a.json')


def test_own_form_has_decoded_scores_and_pairs_by_seed(tmp_path):
  path = other_systems_test.write(
    tmp_path,
    [
      *other_systems_test.ours(0),
      *other_systems_test.ours(1),
      *other_systems_test.ours(2),
    ],
  )
  content = judged(tmp_path, path, predictors=('decode',))
  rows = [r for r in content['rows'] if r['method'] == 'their.tract']
  assert {r['predictor'] for r in rows} == {'decode', 'rail'}
  assert {r['seed'] for r in rows} == {0, 1, 2}
  (difference,) = content['differences']
  assert difference['seeds'] == [0, 1]


def test_decoded_scores_that_are_none_are_invalid_not_left_out(tmp_path):
  path = other_systems_test.write(
    tmp_path, other_systems_test.ours(0, decoded=[None, None])
  )
  content = judged(tmp_path, path, predictors=('decode',))
  rows = [r for r in content['rows'] if r['method'] == 'their.tract']
  assert {
    (r['predictor'], r['num_invalid'], r['num_examples'])
    for r in rows
    if r['predictor'] == 'decode'
  } == {('decode', 4, 4)}


def test_any_method_of_ours_is_compared_with_another_system(tmp_path):
  workdir = epath.Path(tmp_path / 'run')
  evaluate_test.write_predictions(workdir)
  folder = workdir / 'predictions'
  (folder / 'tract').rename(folder / 'ce_cot')
  content = judged(
    tmp_path,
    other_systems_test.write(tmp_path, other_systems_test.release()),
    methods=('ce_cot',),
  )
  (difference,) = content['differences']
  assert difference['a']['method'] == 'ce_cot'


def test_a_changed_file_makes_the_report_anew(tmp_path):
  path = other_systems_test.write(tmp_path, other_systems_test.release())
  before = judged(tmp_path, path)['other_systems']
  content = other_systems_test.release()
  content['probs'][0] = [0.5, 0.5, 0.0]
  path.write_text(json.dumps(content))
  after = judged(tmp_path, path)
  assert before[0]['sha256'] != after['other_systems'][0]['sha256']
  rows = [r for r in after['rows'] if r['method'] == 'their.tract']
  assert rows[0]['rmse'] == pytest.approx(0.25)
