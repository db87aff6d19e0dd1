"""A stage on packed rows: fewer and fuller ones, resumed to the same end."""

import itertools
import json
import types as python_types

import numpy as np
import pytest

from tests.pipeline import run_test
from tract_jax.data import manifest
from tract_jax.pipeline import build, finetune, read_data, tasks
from tract_jax.training import loop


def make_settings(packing):
  return {
    'methods': ('cot_raft',),
    'data': {
      'source': 'synthetic',
      'synthetic_train': 40,
      'synthetic_test': 4,
      'validation_fraction': 0.2,
      # Three examples of 40 tokens fill a row of 128.
      'length_multiple': 16,
      'max_length': 120,
      'packing': packing,
    },
    'train': {'batch_size': 8, 'num_epochs': 2, 'lr': 1e-2},
  }


@pytest.mark.parametrize(
  ('packing', 'length', 'per_row'), [(False, 48, 1), (True, 128, 3)]
)
def test_packing_changes_the_rows(packing, length, per_row):
  setup = build.build(run_test.make_config(**make_settings(packing)))
  data = read_data.read_data(setup)
  rows = finetune.StageRows(
    *(
      read_data.encode_for_stage(setup, examples, 'annotator', [], 'rows')
      for examples in (data.train, data.validation)
    )
  )
  run = python_types.SimpleNamespace(seed=0)
  for loader, examples in zip(
    finetune._loaders(setup, run, rows),
    (rows.train, rows.validation),
    strict=True,
  ):
    num_rows = -(-len(examples) // per_row)
    assert len(examples) > 3
    assert loader.plan.num_rows == num_rows
    assert loader.length == length
    assert loader.max_targets == per_row * 27
    assert loader.fill == pytest.approx(
      40 * len(examples) / (num_rows * length)
    )
    assert loader.batch_size == 8
    batch = loader.batch(0)
    assert batch.inputs.shape == (8, length)
    assert batch.target_probs.shape == (8, per_row, 5)
    assert batch.segment_ids.max() == per_row
  assert loader.num_steps == -(-num_rows // 8)


def train(folder, packing, should_stop=lambda: False):
  run = run_test.make_run(folder, should_stop, **make_settings(packing))
  tasks.execute(run, 'train')
  folder = run.stage('cot_raft', 0, 0).folder
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  timing = {'secs': 0, 'data_wait_secs': 0, 'tokens_per_sec': 0}
  metrics = [json.loads(line) | timing for line in lines]
  return metrics, manifest.read_results(folder)


@pytest.mark.slow
def test_packed_stage_resumes_to_the_same_end(tmp_path, capsys):
  metrics, results = train(tmp_path / 'whole', True)
  num_rows = -(-results['num_rows'] // 3)
  assert f'examples in {num_rows} rows' in capsys.readouterr().out
  assert len(metrics) == -(-2 * num_rows // 8)
  num_tokens = sum(step['num_tokens'] for step in metrics)
  assert num_tokens == 2 * 40 * results['num_rows']
  asked = itertools.count()
  with pytest.raises(loop.Interrupted):
    train(tmp_path / 'cut', True, lambda: next(asked) >= 2)
  assert train(tmp_path / 'cut', True) == (metrics, results)


@pytest.mark.slow
def test_validation_is_the_same_however_rows_are_packed(tmp_path):
  # An untrained model: the rate is so small that no weight moves.
  results = []
  for packing in (False, True):
    settings = make_settings(packing)
    settings['train'] |= {'lr': 1e-30, 'num_epochs': 1}
    run = run_test.make_run(tmp_path / str(packing), **settings)
    tasks.execute(run, 'train')
    results.append(manifest.read_results(run.stage('cot_raft', 0, 0).folder))
  assert results[0]['params_digest'] == results[1]['params_digest']
  for name in ('validation_score_rmse', 'validation_ce', 'validation_loss'):
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5)
