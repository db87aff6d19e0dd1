"""What a line of training metrics says, by hand."""

import math
import types as python_types

import jax
import pytest

from tests.pipeline import plan_programs_test
from tests.training import metric_writer_test, stand_in_wandb
from tract_jax.parallel import chips
from tract_jax.pipeline import (
  finetune,
  plan_figures,
  plan_programs,
  train_metrics,
)
from tract_jax.training import loop
from tract_jax.training import state as state_lib
from tract_jax.training import step as step_lib

# A stand-in: 50 operations a second.
CHIP = chips.Chip(50.0, 1.0, 1.0, 1.0, 1)
METRICS = {
  'loss': 1.5,
  'ce': 1.0,
  'score_mse': 0.25,
  'score_loss': 0.5,
  'off_grid': 0.125,
  'grid_mass': 0.75,
  'grad_norm': 2.0,
  'lr': 0.5,
  'finite': True,
  'num_tokens': 200.0,
}


def report(**changes):
  metrics = step_lib.StepMetrics(**METRICS | changes)
  return loop.StepReport(3, metrics, secs=4.0, data_wait_secs=1.0)


def test_a_line_by_hand():
  expected = METRICS | {
    'score_rmse': 0.5,
    'secs': 4.0,
    'data_wait_secs': 1.0,
    'tokens_per_sec': 50.0,
  }
  unknown = train_metrics.Work(flops=20.0, chip=None)
  assert train_metrics.figures(report(), unknown) == expected
  # 5 of 50 operations a second.
  known = train_metrics.Work(flops=20.0, chip=CHIP)
  assert train_metrics.figures(report(), known) == expected | {'mfu': 0.1}


def test_an_update_that_is_not_finite_has_a_line():
  work = train_metrics.Work(flops=20.0, chip=CHIP)
  found = train_metrics.figures(report(score_mse=math.nan), work)
  assert math.isnan(found['score_rmse'])
  assert found['mfu'] == 0.1


def test_utilisation_is_that_of_the_plan(monkeypatch):
  setup = plan_programs_test.make_setup(plan_programs_test.make_config())
  program = plan_programs.training(
    setup, 'train_stage1', plan_programs_test.STAGE, 10
  )
  num_rows, length = program.num_rows, 112
  work = train_metrics.work_of(setup.model, num_rows, length, length)
  assert work.chip is None  # A CPU.
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(chips._DEVICE_KINDS, kind, 'v5e')
  work = train_metrics.work_of(setup.model, num_rows, length, length)
  assert work.chip is chips.CHIPS['v5e']
  # 20 tokens of a CoT, the fixed words, the score and the end.
  scores = setup.cot_scores
  num_targets = 20 + len(scores.lead_ids) + 2
  num_targets = -(-num_targets // finetune.TARGET_MULTIPLE) * 8
  work = train_metrics.work_of(setup.model, num_rows, length, num_targets)
  planned = plan_figures.Figures(
    name=program.name,
    fits=True,
    problem='',
    peak_bytes=1.0,
    num_rows=num_rows,
    num_tokens=program.num_tokens,
    num_chips=program.num_devices,
    ideal_flops=program.ideal_flops / program.num_devices,
    ideal_bytes=0.0,
    resident_bytes=0.0,
    compile_secs=0.0,
    compiler_secs=4.0,
  )
  found = train_metrics.figures(report(), work)
  assert found['mfu'] == pytest.approx(planned.mfu(work.chip))
  assert 0 < found['mfu'] < 1


def test_a_stage_is_a_run_of_wandb_where_asked_for():
  config = plan_programs_test.make_config(name='judge')
  assert train_metrics.wandb_run(config, 'tract stage 1 seed 0') is None
  config.wandb.project = 'judges'
  found = train_metrics.wandb_run(config, 'tract stage 1 seed 0')
  settings = found.pop('config')
  assert settings['train']['batch_size'] == 16
  assert found == {
    'project': 'judges',
    'entity': None,
    'mode': None,
    'group': 'judge',
    'name': 'judge tract stage 1 seed 0',
  }
  config.wandb.entity, config.wandb.mode = 'team', 'offline'
  found = train_metrics.wandb_run(config, 'tract stage 1 seed 0')
  assert (found['entity'], found['mode']) == ('team', 'offline')


def test_a_stage_writes_its_lines(tmp_path, monkeypatch):
  def step(state, frozen, batch):
    new = state_lib.TrainState(state.step + 1, {}, ())
    metrics = {k: jax.numpy.asarray(v) for k, v in METRICS.items()}
    return new, step_lib.StepMetrics(**metrics)

  monkeypatch.setattr(finetune.checkpoint, 'save', lambda *args: None)
  server = stand_in_wandb.install(monkeypatch)
  config = plan_programs_test.make_config(
    train__checkpoint_every=10, wandb__project='judges'
  )
  setup = python_types.SimpleNamespace(config=config)
  run = python_types.SimpleNamespace(label='a', folder=tmp_path, fields={})
  trainer = python_types.SimpleNamespace(step=step, to_device=lambda x: x)
  loader = python_types.SimpleNamespace(
    num_steps=2, iterate=lambda start: enumerate([None, None])
  )
  start = state_lib.TrainState(jax.numpy.zeros((), int), {}, ())
  work = train_metrics.Work(flops=20.0, chip=CHIP)
  finetune._train(
    setup, run, trainer, loader, start, {}, None, lambda: False, work
  )
  lines = metric_writer_test._rows(tmp_path)
  assert [line['step'] for line in lines] == [0, 1]
  for line in lines:
    assert {name: line[name] for name in METRICS} == METRICS
    assert line['tokens_per_sec'] == pytest.approx(200 / line['secs'])
    assert line['mfu'] == pytest.approx(20 / line['secs'] / 50)
    # TensorBoard shows the same, and so does Weights & Biases.
    shown = {
      value.tag: value.simple_value
      for event in metric_writer_test._events(tmp_path)
      for value in event.summary.value
      if event.step == line['step']
    }
    (run,) = server.runs.values()
    assert run.history[line.pop('step')][1] == pytest.approx(shown)
    assert shown == pytest.approx({k: float(v) for k, v in line.items()})
