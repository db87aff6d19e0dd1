"""All methods through one run, in process, on a tiny model from scratch."""

import dataclasses
import json
import shutil

from etils import epath
import pytest

from tests.pipeline import tiny_model
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.evaluation import overlap
from tract_jax.parallel import agreement
from tract_jax.pipeline import build, methods, read_data, tasks
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import run as run_lib
from tract_jax.training import loop


def make_config(**more):
  return config_lib.merge(
    {
      'methods': tuple(methods.METHODS),
      'predictors': ('rail', 'decode'),
      'num_cots': 2,
      'model': tiny_model.SETTINGS,
      'data': {
        'source': 'synthetic',
        'synthetic_train': 16,
        'synthetic_test': 6,
        'length_multiple': 16,
        'max_length': 64,
      },
      'train': {'batch_size': 8, 'num_epochs': 1},
      'sampling': {
        'slots': 8,
        'chunk_size': 4,
        'max_new_tokens': 8,
        'num_self_cots': 2,
      },
      'evaluation': {'gap_examples': 4, 'num_resamples': 100},
      'mesh': {'data': 1, 'fsdp': 8, 'tensor': 1},
      **more,
    }
  )


def make_run(folder, should_stop=lambda: False, **more):
  setup = build.build(make_config(**more))
  data = read_data.read_data(setup)
  return run_lib.Run(
    setup, data, epath.Path(folder), agreement.Agreement(should_stop)
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  tasks.execute(make_run(folder), 'run')
  return folder


def report(folder):
  return json.loads((folder / 'report' / 'metrics.json').read_text())


@pytest.mark.slow
def test_every_method_has_its_rows(finished):
  rows = report(finished)['rows']
  found = {(r['method'], r['predictor'], r['num_cots']) for r in rows}
  for name, method in methods.METHODS.items():
    for num_cots in (1, 2) if method.with_cot else (0,):
      for predictor in ('rail', 'decode'):
        assert (name, predictor, num_cots) in found
  assert len(found) == len(rows)
  assert {r['num_examples'] for r in rows} == {6}


@pytest.mark.slow
def test_shared_stages_are_trained_once(finished):
  stages = {
    str(path.parent.parent.relative_to(finished))
    for path in finished.glob('*/stage*/seed0/params')
  }
  assert stages == {
    'ce/stage1', 'ce_cot/stage1', 'raft/stage1', 'cot_raft/stage1',
    'tract/stage2', 'tract_ce/stage2', 'tract_warm/stage2',
    'tract_mixed/stage2',
  }  # fmt: skip
  assert [p.name for p in finished.glob('*/self_cot')] == ['self_cot']


@pytest.mark.slow
def test_stage_2_is_trained_on_every_self_cot_of_the_training_rows(finished):
  def num_rows(method, stage):
    folder = finished / method / f'stage{stage}' / 'seed0'
    return manifest.read_results(folder)['num_rows']

  once = num_rows('cot_raft', 1)
  assert num_rows('tract', 2) == 2 * once
  assert num_rows('tract_mixed', 2) == once + 2 * once
  (counts,) = report(finished)['self_cots']
  assert (counts['method'], counts['seed']) == ('tract', 0)
  assert counts['num_samples'] == 2 * counts['num_examples'] == 2 * 16
  assert sum(counts['finish_reasons'].values()) == counts['num_samples']
  assert counts['num_unusable'] == counts['num_without_usable'] == 0


@pytest.mark.slow
def test_warm_start_is_not_the_seed_model(finished):
  def digest(method, stage):
    folder = finished / method / f'stage{stage}' / 'seed0'
    return manifest.read_results(folder)['params_digest']

  assert digest('tract_warm', 2) != digest('tract', 2)


@pytest.mark.slow
def test_predictions_have_every_cot_of_every_row(finished):
  text = (finished / 'predictions' / 'tract' / 'synthetic.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert len(rows) == 6
  for row in rows:
    assert len(row['cots']) == len(row['distributions']) == 2
    assert row['cots'][0] != row['cots'][1]
    assert all(1 <= number <= 8 for number in row['cot_tokens'])


@pytest.mark.slow
def test_report_tells_what_cots_are_like_and_the_log_what_they_cost(finished):
  content = report(finished)
  for gap in content['cot_gap']:
    assert gap['reason'] is None
    assert gap['num_examples'] == 4
    assert gap['perplexity_annotator_cot'] > 1
    assert gap['perplexity_self_cot'] > 1
  found = {texts['method']: texts for texts in content['cot_texts']}
  assert set(found) == {
    name for name, method in methods.METHODS.items() if method.with_cot
  }
  for texts in found.values():
    low, high = texts['mean_tokens_ci']
    assert 1 <= low <= texts['mean_tokens'] <= high <= 8
    assert texts['num_overlap'] == (12 if overlap.versions() else 0)
  for method in ('tract', 'raft'):
    folder = finished / 'predictions' / method / 'parts/synthetic/seed0'
    (line,) = (folder / 'metrics.jsonl').read_text().splitlines()
    figures = json.loads(line)
    assert figures['num_rows'] == 6
    assert figures['secs_per_row'] == pytest.approx(figures['secs'] / 6)


@pytest.mark.slow
def test_evaluating_again_gives_the_same_bytes(finished):
  before = (finished / 'report' / 'metrics.json').read_bytes()
  assert report(finished)['cot_gap']
  (finished / 'report' / 'manifest.json').unlink()
  tasks.execute(make_run(finished), 'evaluate')
  assert (finished / 'report' / 'metrics.json').read_bytes() == before


@pytest.mark.slow
def test_evaluating_trains_and_measures_nothing(finished, tmp_path):
  folder = tmp_path / 'copy'
  shutil.copytree(finished, folder)
  before = report(folder)
  for stage in folder.glob('*/stage*/seed0'):
    (stage / 'manifest.json').unlink()
  more = {'gap_examples': 2, 'num_resamples': 100}
  tasks.execute(make_run(folder, evaluation=more), 'evaluate')
  assert not list(folder.glob('*/stage*/seed0/manifest.json'))
  assert report(folder)['cot_gap'] == before['cot_gap']


@pytest.mark.slow
def test_a_gap_of_other_rows_is_measured_anew(finished, tmp_path):
  folder = tmp_path / 'copy'
  shutil.copytree(finished, folder)
  run = make_run(folder, evaluation={'gap_examples': 2, 'num_resamples': 100})
  tasks.execute(run, 'run')
  gaps = report(folder)['cot_gap']
  assert gaps and {gap['num_examples'] for gap in gaps} == {2}


def test_a_method_that_learns_cots_needs_some(tmp_path):
  run = make_run(tmp_path, methods=('raft', 'tract'))
  bare = [dataclasses.replace(e, cot='') for e in run.data.train]
  data = dataclasses.replace(run.data, train=bare)
  run = run_lib.Run(
    *(run.setup, data, run.workdir, agreement.Agreement(lambda: False))
  )
  with pytest.raises(types.InputError, match='no training row has a CoT, but'):
    tasks.execute(run, 'train')
  assert not (tmp_path / 'raft').exists()


@pytest.mark.slow
def test_lost_predictions_are_not_passed_over(finished):
  lost = finished / 'predictions/ce/parts/synthetic/seed0/chunk_00000004.jsonl'
  text = lost.read_text()
  lost.unlink()
  try:
    with pytest.raises(types.InputError, match='4 of 6 predictions are there'):
      tasks.execute(make_run(finished), 'predict')
  finally:
    lost.write_text(text)


@pytest.mark.slow
def test_chosen_lambda_is_predicted_with_and_its_curve_reported(tmp_path):
  more = {
    'methods': ('cot_raft',),
    'train': {
      'batch_size': 8,
      'num_epochs': 1,
      'lr': 1e-2,
      'lambda_candidates': (0.0, 30.0),
    },
    'evaluation': {'gap_examples': 0, 'num_resamples': 100},
  }
  run = make_run(tmp_path, **more)
  tasks.execute(run, 'run')
  points = report(tmp_path)['lambda_curve']
  assert [p['lambda_value'] for p in points] == [0.0, 30.0]
  best = min(points, key=lambda p: p['score_rmse'])
  assert [p['chosen'] for p in points] == [p == best for p in points]
  folder = run.stage('cot_raft', 0, 0).folder
  assert folder.name == str(best['lambda_value'])
  assert '## Choice of lambda' in (tmp_path / 'report/report.md').read_text()
  again = make_run(tmp_path, **more)
  tasks.execute(again, 'run')
  assert again.num_worked == 0


def test_zero_shot_needs_no_training_rows(tmp_path):
  config = make_config(methods=('zero_shot',))
  setup = build.build(config)
  benchmarks = read_data.read_data(setup).benchmarks
  data = read_data.RunData([], [], benchmarks)
  stop = agreement.Agreement(lambda: False)
  run = run_lib.Run(setup, data, epath.Path(tmp_path), stop)
  tasks.execute(run, 'run')
  assert {r['method'] for r in report(tmp_path)['rows']} == {'zero_shot'}


def test_stop_amid_sampling_is_obeyed(tmp_path):
  with pytest.raises(loop.Interrupted, match='stopped'):
    run = make_run(tmp_path, lambda: True, methods=('zero_shot',))
    tasks.execute(run, 'run')
  assert not (tmp_path / 'report').exists()
