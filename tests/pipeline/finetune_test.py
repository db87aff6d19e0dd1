"""What a stage refuses, and what it says of numbers that are not finite."""

import dataclasses
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipeline import packed_run_test, run_test
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.objectives import losses
from tract_jax.pipeline import (
  build,
  finetune,
  objective,
  read_data,
  tasks,
  weights,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.training import loop, metric_writer

FIGURES = ('validation_score_rmse', 'validation_ce', 'validation_loss')


def validate(*batches):
  """Figures of validation batches whose loss terms are these."""
  wholes = iter(
    [
      dataclasses.replace(
        losses.no_terms(), **{k: jnp.float32(v) for k, v in terms.items()}
      )
      for terms in batches
    ]
  )
  trainer = python_types.SimpleNamespace(
    to_device=lambda batch: batch,
    evaluate=lambda params, frozen, batch: next(wholes),
  )
  run = python_types.SimpleNamespace(
    label='stage',
    objective=objective.make_objective(config_lib.default_config(), 'cot_raft'),
  )
  validation = python_types.SimpleNamespace(
    examples=[1, 2], iterate=lambda: enumerate([None] * len(batches))
  )
  return finetune._validate(run, trainer, (None, None), validation)


def test_validation_figures_are_those_of_all_batches():
  results = validate(
    {
      'ce_sum': 6,
      'ce_count': 3,
      'score_sq_sum': 8,
      'score_loss_sum': 8,
      'score_count': 2,
    },
    {
      'ce_sum': 10,
      'ce_count': 1,
      'score_sq_sum': 1,
      'score_loss_sum': 1,
      'score_count': 1,
    },
  )
  # Sums over sums, not means of means: 9 / 3, 16 / 4, and both together.
  expected = dict(zip(FIGURES, (3**0.5, 4.0, 7.0), strict=True))
  assert results == pytest.approx(expected)


def test_validation_that_is_not_finite_is_null_with_the_reason(tmp_path):
  results = validate(
    {
      'ce_sum': 6,
      'ce_count': 3,
      'score_sq_sum': np.nan,
      'score_loss_sum': np.inf,
      'score_count': 2,
    }
  )
  manifest.write_manifest(tmp_path, 'stage', {}, results)
  assert manifest.read_results(tmp_path) == {
    'validation_score_rmse': None,
    'validation_ce': 2.0,
    'validation_loss': None,
    'validation_reason': 'not finite: validation_score_rmse, validation_loss',
  }


def sizes(longest_row, **data):
  model = python_types.SimpleNamespace(longest_row=longest_row)
  return python_types.SimpleNamespace(
    config=config_lib.merge({'data': data}),
    model=python_types.SimpleNamespace(config=model),
  )


def test_rows_are_rounded_up_as_far_as_the_model_goes():
  setup = sizes(100, length_multiple=16)
  lengths = [finetune.row_length(setup, n) for n in (1, 16, 17, 96, 97, 100)]
  assert lengths == [16, 16, 32, 96, 100, 100]
  with pytest.raises(types.InputError) as error:
    finetune.row_length(setup, 101)
  assert str(error.value) == (
    'config.data.max_length: 3072 allows training rows of 101 tokens, but the '
    'model is made for 100 at most'
  )


def test_packed_rows_over_the_models_limit_are_refused_in_the_plan():
  settings = packed_run_test.make_settings(True)
  settings['data']['max_length'] = 40_000
  setup = build.build(run_test.make_config(**settings))
  limit = setup.model.config.longest_row
  rows = read_data.encode_for_stage(
    setup, read_data.read_data(setup).train, 'annotator', [], 'rows'
  )
  run = python_types.SimpleNamespace(seed=0)
  with pytest.raises(
    types.InputError, match=f'of 40000 .* for {limit} at most'
  ):
    finetune._loaders(setup, run, finetune.StageRows(rows, []))


@pytest.mark.slow
def test_three_bad_updates_name_examples_and_the_last_good_checkpoint(tmp_path):
  # Two updates an epoch, so updates 4 and 5 see each row once.
  data = {
    'source': 'synthetic',
    'synthetic_train': 16,
    'synthetic_test': 2,
    'validation_fraction': 0.0,
    'length_multiple': 16,
    'max_length': 64,
  }
  train = {'batch_size': 8, 'num_epochs': 4, 'checkpoint_every': 2}
  run = run_test.make_run(tmp_path, methods=('ce',), data=data, train=train)
  make_trainer = run._make_trainer

  def make_spoilt(*args):
    trainer = make_trainer(*args)

    def step(state, frozen, batch):
      is_bad = int(state.step) in (1, 3, 4, 5)
      state, metrics = trainer.step(state, frozen, batch)
      return state, dataclasses.replace(metrics, finite=jnp.array(not is_bad))

    return dataclasses.replace(trainer, step=step)

  run._make_trainer = make_spoilt
  with pytest.raises(loop.NonFiniteError) as error:
    tasks.execute(run, 'train')
  first, *examples = str(error.value).splitlines()
  assert first.startswith(
    'ce stage 1 seed 0: loss or gradients were not finite in 3 updates in a '
    'row, the last at step 5'
  )
  assert first.endswith(
    f'the last good checkpoint: {tmp_path}/ce/stage1/seed0/checkpoints/4'
  )
  ids = {}
  for line in examples:
    place, _, names = line.partition(': ')
    ids[place.removeprefix('examples of step ')] = names.split(', ')
  assert list(ids) == ['3', '4', '5']
  assert sorted(ids['4'] + ids['5']) == sorted(
    e.example_id for e in run.data.train
  )


def test_each_seed_has_an_order_of_its_own():
  settings = packed_run_test.make_settings(False)
  setup = build.build(run_test.make_config(**settings))
  rows = read_data.encode_for_stage(
    setup, read_data.read_data(setup).train, 'annotator', [], 'rows'
  )
  first, second = (
    finetune._loaders(
      setup,
      python_types.SimpleNamespace(seed=seed),
      finetune.StageRows(rows, []),
    )[0].rows(0)
    for seed in (0, 1)
  )
  assert first != second


def test_a_checkpoint_has_its_metrics_and_is_read_in_the_weights_place(
  tmp_path, monkeypatch
):
  told, started, asked = [], [], iter(range(1000))
  save, flush = finetune.checkpoint.save, metric_writer.MetricWriter.flush
  restore, to_train = (
    finetune.checkpoint.restore_latest,
    weights.Weights.to_train,
  )

  def saving(*args):
    told.append('save')
    save(*args)

  def flushing(writer):
    told.append('flush')
    flush(writer)

  def starting(*args):
    started.append(to_train(*args))
    return started[-1]

  def restoring(*args):
    leaves = jax.tree.leaves(started[-1][0])
    told.append(all(leaf.is_deleted() for leaf in leaves))
    return restore(*args)

  monkeypatch.setattr(finetune.checkpoint, 'save', saving)
  monkeypatch.setattr(metric_writer.MetricWriter, 'flush', flushing)
  monkeypatch.setattr(weights.Weights, 'to_train', starting)
  monkeypatch.setattr(finetune.checkpoint, 'restore_latest', restoring)
  train = {'batch_size': 8, 'num_epochs': 4, 'checkpoint_every': 1}
  more = {'methods': ('ce',), 'train': train}
  run = run_test.make_run(tmp_path, lambda: next(asked) > 3, **more)
  with pytest.raises(loop.Interrupted):
    tasks.execute(run, 'train')
  assert told[:2] == ['flush', 'save'] and True not in told
  told.clear()
  tasks.execute(run_test.make_run(tmp_path, **more), 'train')
  assert told[:3] == [True, 'flush', 'save']
