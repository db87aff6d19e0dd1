"""The seed model of a run from scratch, made by cross-entropy."""

import json

import jax
import numpy as np
import pytest

from tests.pipeline.run_test import make_run
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.pipeline import base_weights, finetune, pretrain

PRETRAIN = {'num_rows': 16, 'lr': 1e-2, 'num_epochs': 2}


def make(folder, **more):
  return make_run(
    folder, methods=('ce', 'raft'), **{'pretrain': PRETRAIN, **more}
  )


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def equal(left, right):
  pairs = zip(leaves(left), leaves(right), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


@pytest.fixture
def starts(monkeypatch):
  """{label: leaves that a stage starts from}, filled as stages are trained."""
  found = {}
  real = finetune.finetune

  def recording(setup, run, rows, start, *rest):
    found[run.label] = leaves(start[0])
    return real(setup, run, rows, start, *rest)

  monkeypatch.setattr(finetune, 'finetune', recording)
  return found


def test_every_stage_starts_from_the_pretrained_model(tmp_path, starts):
  run = make(tmp_path)
  run.stage('ce', 0, 0)
  run.stage('raft', 0, 0)
  assert list(starts) == [
    'seed model seed 0', 'ce stage 1 seed 0', 'raft stage 1 seed 0'
  ]  # fmt: skip
  drawn = base_weights.init_params(run.setup.model, 0)[0]
  seed_model = finetune.load_trained(run._seed_model(0), run.setup)
  assert equal(starts['seed model seed 0'], drawn)
  assert not equal(seed_model, drawn)
  assert equal(starts['ce stage 1 seed 0'], seed_model)
  assert equal(starts['raft stage 1 seed 0'], seed_model)


def test_seed_model_is_trained_once(tmp_path, capsys):
  first = make(tmp_path)
  first._weights.to_train(0)
  again = make(tmp_path)
  again._weights.to_train(0)
  assert (first.num_worked, again.num_worked) == (1, 0)
  assert 'seed model seed 0: done before' in capsys.readouterr().out
  assert manifest.is_finished(tmp_path / pretrain.FOLDER / 'seed0')


def test_pretraining_has_its_own_rate_and_epochs(tmp_path):
  make(tmp_path)._weights.to_train(0)
  path = tmp_path / pretrain.FOLDER / 'seed0' / 'metrics.jsonl'
  rates = [json.loads(line)['lr'] for line in path.read_text().splitlines()]
  assert len(rates) == 2 * 16 // 8
  assert max(rates) == pytest.approx(1e-2)


def test_without_rows_the_model_is_as_it_was_drawn(tmp_path):
  run = make(tmp_path, pretrain={'num_rows': 0})
  drawn = base_weights.init_params(run.setup.model, 0)[0]
  assert equal(run._weights.to_train(0)[0], drawn)
  assert not (tmp_path / pretrain.FOLDER).exists()


@pytest.mark.parametrize(
  ('key', 'value'), [('num_rows', 24), ('lr', 2e-2), ('num_epochs', 1)]
)
def test_other_pretraining_is_refused_in_the_same_workdir(tmp_path, key, value):
  make(tmp_path)._weights.to_train(0)
  changed = make(tmp_path, pretrain={**PRETRAIN, key: value})
  with pytest.raises(types.InputError, match='train'):
    changed._weights.to_train(0)


def test_a_stage_of_another_seed_model_is_refused(tmp_path):
  make(tmp_path, pretrain={'num_rows': 0}).stage('ce', 0, 0)
  with pytest.raises(types.InputError, match='pretrained'):
    make(tmp_path).stage('ce', 0, 0)


def test_seed_model_sees_no_row_of_a_stage(tmp_path):
  data = make(tmp_path).data
  seen = {e.prompt for e in data.pretrain}
  others = [*data.train, *data.validation, *data.benchmarks['synthetic']]
  assert len(data.pretrain) == 16
  assert not seen & {e.prompt for e in others}
