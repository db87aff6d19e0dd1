"""Runs at the edges of what a run may be: they work, and say what is not."""

import json

import pytest

from tests.pipeline import run_test
from tract_jax.pipeline import tasks


@pytest.mark.slow
def test_one_score_lambda_zero_and_fewer_rows_than_a_batch(tmp_path):
  run = run_test.make_run(
    tmp_path,
    methods=('cot_raft', 'raft'),
    num_cots=1,
    score={'grid': (3.0,)},
    data={
      'source': 'synthetic',
      'synthetic_train': 3,
      'synthetic_test': 5,
      'length_multiple': 16,
      'max_length': 64,
    },
    train={'batch_size': 8, 'num_epochs': 2, 'lambda_value': 0.0},
    evaluation={'gap_examples': 2, 'num_resamples': 100},
  )
  tasks.execute(run, 'run')
  rows = run_test.report(tmp_path)['rows']
  assert {(row['method'], row['num_examples']) for row in rows} == {
    ('cot_raft', 5),
    ('raft', 5),
  }
  for row in rows:
    assert row['pearson'] is None and 'constant scores' in row['reason']
    assert row['rmse'] is not None
  lines = (tmp_path / 'cot_raft/stage1/seed0/metrics.jsonl').read_text()
  losses = [json.loads(line)['loss'] for line in lines.splitlines()]
  assert len(losses) == 1 and losses[0] > 0
