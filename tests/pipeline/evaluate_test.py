"""From prediction files to the rows of the report."""

import dataclasses
import json

from etils import epath
import pytest

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.evaluation import lambda_curve, overlap, self_cots
from tract_jax.objectives import predictors
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import evaluate, prediction_files

# Predictions alone: of no row is more known.
BENCH: dict = {'bench': ()}
GRID = types.ScoreGrid((1.0, 2.0, 3.0), ('1', '2', '3'))


def prediction(i, seed, score, first, second, decoded):
  return types.Prediction(
    example_id=f'row {i}',
    seed=seed,
    score=score,
    prediction=None,
    distributions=[first, second],
    decoded=[decoded, 1.0],
    cots=['', ''],
    finish_reasons=['marker', 'length'],
    invalid_reason=None,
  )


def write_predictions(workdir, seeds=(0, 1)):
  rows = []
  for seed in seeds:
    rows += [
      prediction(0, seed, 1.0, [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], 1.0),
      prediction(1, seed, 2.0, [0.0, 0.8, 0.0], [0.0, 1.0, 0.0], None),
      prediction(2, seed, 3.0, [0.0, 0.0, 1.0], None, 3.0),
      prediction(3, seed, 2.0, None, None, None),
    ]
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  path.parent.mkdir(parents=True)
  lines = [json.dumps(dataclasses.asdict(row)) + '\n' for row in rows]
  path.write_text(''.join(lines))


def make_config(**more):
  return config_lib.merge(
    {
      'seeds': (0, 1),
      'num_cots': 2,
      'predictors': ('rail',),
      'evaluation': {'num_resamples': 100},
      **more,
    }
  )


def test_rows_of_every_predictor_number_of_cots_and_seed(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  config = make_config(predictors=('decode', 'rail'))
  assert evaluate.evaluate(config, GRID, workdir, BENCH, [])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  keys = [(r['predictor'], r['num_cots'], r['seed']) for r in content['rows']]
  assert sorted(keys) == [
    (p, n, s) for p in ('decode', 'rail') for n in (1, 2) for s in (0, 1)
  ]
  by_key = dict(zip(keys, content['rows'], strict=True))
  one = by_key['rail', 1, 0]
  # Predictions 1, 1.6, 3 and the midpoint 2 for the row without CoT.
  assert one['num_examples'] == 4
  assert one['num_invalid'] == 1
  assert one['rmse'] == pytest.approx((0.4**2 / 4) ** 0.5)
  assert one['grid_mass'] == pytest.approx((1 + 0.8 + 1) / 3)
  assert one['finish_reasons'] == {'marker': 4}
  # Means of two CoTs: 1.25, 1.8, 3 (its only one) and 2.
  two = by_key['rail', 2, 0]
  assert two['rmse'] == pytest.approx(((0.25**2 + 0.2**2) / 4) ** 0.5)
  assert by_key['decode', 1, 0]['num_invalid'] == 2
  # Rows 2 and 4 by rail: one and two CoTs without a distribution.
  assert two['num_invalid_cots'] == 3


def test_sampled_and_tempered_predictions_and_their_invalid_rows(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  path.write_text(
    path.read_text().replace('[0.5, 0.5, 0.0]', '[0.9, 0.1, 0.0]')
  )
  config = make_config(
    predictors=('decode_sampled', 'tempered'),
    evaluation={'num_resamples': 100, 'tempered_temperature': 1e6},
  )
  evaluate.evaluate(config, GRID, workdir, BENCH, [])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  by_key = {
    (r['predictor'], r['num_cots'], r['seed']): r for r in content['rows']
  }
  # Row 2's token is a score with probability .8; row 4 has no distribution.
  ids = [f'row {i}' for i in range(4)]
  for seed in (0, 1):
    leaks = predictors.decode_uniforms(seed, ids, 1)[1, 0] >= 0.8
    sampled = by_key['decode_sampled', 1, seed]
    assert sampled['num_invalid'] == sampled['num_invalid_cots'] == 1 + leaks
  # So hot that scores 1 and 2 of the first row's second CoT count alike, and a
  # single score stays: predictions 1.25, 2, 3 and 2.
  hot = by_key['tempered', 2, 0]
  assert hot['num_invalid'] == 1
  assert hot['rmse'] == pytest.approx((0.25**2 / 4) ** 0.5, rel=1e-4)


def test_curve_of_lambda_is_reported_and_makes_the_report_anew(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  point = lambda_curve.LambdaPoint('tract', 1, 0, 0.2, 0.5, 0.1, 0.2, True)
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  arguments = make_config(), GRID, workdir, BENCH, [], [point]
  assert evaluate.evaluate(*arguments)
  assert not evaluate.evaluate(*arguments)
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert content['lambda_curve'] == [dataclasses.asdict(point)]


def test_counts_of_self_cots_are_reported_and_make_the_report_anew(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  counts = self_cots.SelfCotCounts('tract', 0, 2, 2, {'marker': 2}, 1, 0, 0)
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  arguments = make_config(), GRID, workdir, BENCH, [], [], [counts]
  assert evaluate.evaluate(*arguments)
  assert not evaluate.evaluate(*arguments)
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert content['self_cots'] == [dataclasses.asdict(counts)]


def test_overlap_with_rubrics_is_made_anew_with_other_libraries_or_numbers(
  tmp_path, monkeypatch
):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  config = make_config()
  assert evaluate.evaluate(config, GRID, workdir, BENCH, [])
  assert not evaluate.evaluate(config, GRID, workdir, BENCH, [])
  monkeypatch.setattr(overlap, '_LIBRARIES', ('no-such-library', 'numpy'))
  is_new = evaluate.evaluate(config, GRID, workdir, BENCH, [])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  (texts,) = content['cot_texts']
  assert 'tract_jax[analyses]' in texts['reason']
  monkeypatch.undo()
  assert is_new == bool(overlap.versions())
  config = make_config(evaluation={'num_resamples': 100, 'overlap_cots': 0})
  assert evaluate.evaluate(config, GRID, workdir, BENCH, [])
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert 'overlap_cots is 0' in content['cot_texts'][0]['reason']


def test_differences_are_those_of_the_systems_that_are_asked_for(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  found = []
  for asked in ('', 'tract/rail/2 - tract/decode', 'all'):
    config = make_config(
      predictors=('decode', 'rail'),
      evaluation={'num_resamples': 100, 'differences': asked},
    )
    assert evaluate.evaluate(config, GRID, workdir, BENCH, [])
    content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
    found.append([(d['a'], d['b']) for d in content['differences']])
  rail, decode = (
    {'method': 'tract', 'predictor': predictor, 'num_cots': n}
    for predictor, n in (('rail', 2), ('decode', 1))
  )
  assert found[:2] == [[], [(rail, decode)]]
  assert len(found[2]) == 6


def test_second_evaluation_has_nothing_to_do(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  before = (tmp_path / 'report' / 'metrics.json').read_bytes()
  assert not evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  more = make_config(evaluation={'num_resamples': 200})
  assert evaluate.evaluate(more, GRID, workdir, BENCH, [])
  assert (tmp_path / 'report' / 'metrics.json').read_bytes() != before


def test_missing_and_damaged_predictions_are_named(tmp_path):
  workdir = epath.Path(tmp_path)
  with pytest.raises(types.InputError, match='bench.jsonl: no such file'):
    evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  path.write_text(path.read_text()[:-20])
  with pytest.raises(types.InputError, match='bench.jsonl: line 8'):
    evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  path.write_bytes(path.read_bytes().replace(b'row 1', b'row \xff'))
  with pytest.raises(types.InputError, match='bench.jsonl: line 2'):
    evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])


@pytest.mark.parametrize('name', ['metrics.json', 'report.md', 'report.html'])
@pytest.mark.parametrize('lost', [False, True])
def test_a_damaged_report_is_made_anew_and_not_quoted(tmp_path, name, lost):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  path = tmp_path / 'report' / name
  before = path.read_bytes()
  found = evaluate.read_results(workdir, 'tract', 0)
  if lost:
    path.unlink()
  else:
    path.write_bytes(before.replace(b'2', b'3', 1))
    if name == 'metrics.json':
      with pytest.raises(types.InputError, match=r'metrics\.json: not as it'):
        evaluate.read_results(workdir, 'tract', 0)
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  assert path.read_bytes() == before
  assert evaluate.read_results(workdir, 'tract', 0) == found
  assert found.rows


def test_predictions_that_are_not_those_of_their_chunks_are_refused(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  lines = path.read_text().splitlines(keepends=True)
  for seed in (0, 1):
    folder = prediction_files.chunk_folder(workdir, 'tract', 'bench', seed)
    rows = ''.join(lines[4 * seed : 4 * seed + 4])
    folder.mkdir(parents=True)
    (folder / 'chunk_00000000.jsonl').write_text(
      prediction_files.with_digest(rows)
    )
    manifest.write_manifest(folder, 'predictions', {})
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  path.write_text(path.read_text().replace('0.8', '0.9', 1))
  with pytest.raises(types.InputError, match=r'bench\.jsonl: not what the chu'):
    evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  # Its first row is of the other seed.
  evaluate.evaluate(make_config(seeds=(1,)), GRID, workdir, BENCH, [])


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('score', '4', "line 8: score: '4' is not a finite number or null"),
    ('score', True, 'line 8: score: True is not'),
    ('score', float('nan'), 'line 8: score: nan is not'),
    ('score', 7, r'line 8: score 7 is outside the grid 1\.\.3'),
    ('decoded', [1.0, 4.0], 'line 8: score 4 is outside'),
    ('decoded', 5, 'line 8: decoded: 5 is not a list'),
    ('distributions', [[0.5, 'a', 0]], 'line 8: distributions: '),
    ('distributions', [[0.5, 0.5, 0.5]], 'line 8: distributions: '),
    ('distributions', [[-0.5, 0.5, 0.5]], 'line 8: distributions: '),
    ('distributions', [[10**400, 0.5, 0.5]], 'line 8: distributions: '),
    ('seed', 'a', "line 8: seed: 'a' is not a whole number"),
    ('cots', [1], 'line 8: cots: '),
    ('more', 1, 'line 8: .*more'),
  ],
)
def test_fields_of_other_kinds_are_named(tmp_path, field, value, message):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  *lines, last = path.read_text().splitlines()
  lines.append(json.dumps(json.loads(last) | {field: value}))
  path.write_text('\n'.join(lines) + '\n')
  with pytest.raises(types.InputError, match=f'bench.jsonl: {message}'):
    evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"example_id": "\xff"}\n', 'line 1: byte 0xff is not UTF-8'),
    (b'[' * 100_000, 'line 1: nested too deeply'),
    (b'{"seed": ' + b'1' * 5000 + b'}', 'line 1: Exceeds the limit'),
    (b'[]', 'line 1: is list, not an object'),
    (b'', 'line 1: '),
  ],
)
def test_file_that_holds_no_predictions_is_named(tmp_path, content, message):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  path.write_bytes(content)
  with pytest.raises(types.InputError, match=f'bench.jsonl: {message}'):
    evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])


def test_rows_without_a_raters_score_are_counted_and_left_out(tmp_path, capsys):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for row in rows:
    if row['example_id'] == 'row 1':
      row['score'] = None
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  assert "2 of 8 rows have no rater's score" in capsys.readouterr().out
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  assert {row['num_examples'] for row in content['rows']} == {3}
  path.write_text(
    ''.join(json.dumps({**row, 'score': None}) + '\n' for row in rows)
  )
  assert evaluate.evaluate(make_config(), GRID, workdir, BENCH, [])
  assert "no row has a rater's score" in capsys.readouterr().out


def test_benchmark_without_scores_has_null_figures_and_no_part_in_means(
  tmp_path,
):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  prediction_files.path_of(workdir, 'tract', 'pairs').write_text(
    ''.join(json.dumps({**row, 'score': None}) + '\n' for row in rows)
  )
  assert evaluate.evaluate(
    make_config(), GRID, workdir, BENCH | {'pairs': ()}, []
  )
  content = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
  rated, unrated = (
    [row for row in content['rows'] if row['benchmark'] == name]
    for name in ('bench', 'pairs')
  )
  for row in unrated:
    for figure in ('pearson', 'pearson_ci', 'spearman', 'kendall', 'rmse'):
      assert row[figure] is None
    assert 'rmse, mae, accuracy: no scores' in row['reason']
    assert (row['num_examples'], row['num_invalid']) == (4, 1)
    assert row['grid_mass'] == pytest.approx(rated[0]['grid_mass'], abs=0.2)
  means = {
    c['num_cots']: c for c in content['combined'] if c['benchmark'] == 'mean'
  }
  for row in rated:
    assert row['rmse'] is not None
    assert means[row['num_cots']]['rmse'] == pytest.approx(row['rmse'])


@pytest.mark.parametrize(
  ('more', 'expected'),
  [
    ({'num_cots': 3}, 'line 1: 2 CoTs, not 3'),
    ({'seeds': (0, 5)}, r'has seeds \[0, 1\], not \[5\]'),
  ],
)
def test_predictions_of_other_settings_are_refused(tmp_path, more, expected):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  with pytest.raises(types.InputError, match=expected):
    evaluate.evaluate(make_config(**more), GRID, workdir, BENCH, [])
  wide = types.ScoreGrid((1.0, 2.0), ('1', '2'))
  with pytest.raises(types.InputError, match='3 scores, the grid has 2'):
    evaluate.evaluate(make_config(), wide, workdir, BENCH, [])


def test_line_separators_in_a_cot_are_no_line_ends(tmp_path):
  workdir = epath.Path(tmp_path)
  write_predictions(workdir)
  path = prediction_files.path_of(workdir, 'tract', 'bench')
  row = json.loads(path.read_text().split('\n')[0])
  row['cots'] = ['one\u2028two\x85', '']
  text = json.dumps(row, ensure_ascii=False) + '\n'
  path.write_text(text, encoding='utf-8')
  assert len(prediction_files.read_predictions(path)) == 1
