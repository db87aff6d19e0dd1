"""Hours of a plan, summed by hand."""

import pytest

from tests.pipeline.plan_test import make_config, make_figures, refused
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import plan_hours, plan_report

FIRST, SECOND = methods_lib.METHODS['tract'].stages
MIXED = methods_lib.METHODS['tract_mixed'].stages[1]


def outcomes():
  """Programs of a method of two stages, all of which fit."""
  figures = [
    make_figures('train_stage1'),
    make_figures('train_stage2', compiler_secs=4.0),
    make_figures('prefill', num_rows=1, compiler_secs=0.1, traffic_secs=0.2),
    make_figures('decode', num_rows=64, compiler_secs=0.05, traffic_secs=0),
  ]
  return [plan_report.Outcome(of_one, ()) for of_one in figures]


def hours_of(method='tract', **changes):
  config = make_config(train__batch_size=16, **changes)
  return plan_hours.hours(config, method, 4, outcomes())


def test_hours_by_hand():
  hours = hours_of()
  # 100,000 rows, 2 epochs, 16 an update; 4 hosts.
  assert hours['train_stage1'] == pytest.approx(200_000 / 16 * 2 / 3600)
  assert hours['train_stage2'] == pytest.approx(200_000 / 16 * 4 / 3600)
  cots = 100_000 / 4 * 0.2 + 100_000 * 256 / (64 * 4) * 0.05
  assert hours['self_cot'] == pytest.approx(cots / 3600)
  assert hours['total'] == pytest.approx(
    hours['train_stage1'] + hours['train_stage2'] + hours['self_cot']
  )


@pytest.mark.parametrize(
  ('method', 'times'), [('tract', 3), ('tract_ce', 3), ('tract_mixed', 1 + 3)]
)
def test_stage_2_is_trained_on_each_cot(method, times):
  once, hours = hours_of(), hours_of(method, sampling__num_self_cots=3)
  assert hours['train_stage1'] == once['train_stage1']
  assert hours['train_stage2'] == pytest.approx(times * once['train_stage2'])
  # Each prompt is read once for all its CoTs.
  cots = 100_000 / 4 * 0.2 + 3 * 100_000 * 256 / (64 * 4) * 0.05
  assert hours['self_cot'] == pytest.approx(cots / 3600)


def test_each_candidate_lambda_is_a_training_where_there_is_a_lambda():
  once = hours_of()
  hours = hours_of(train__lambda_candidates=(0.5, 1.0, 2.0))
  for part in ('train_stage1', 'train_stage2'):
    assert hours[part] == pytest.approx(3 * once[part])
  assert hours['self_cot'] == once['self_cot']
  hours = hours_of('tract_ce', train__lambda_candidates=(0.5, 1.0))
  assert hours['train_stage1'] == pytest.approx(2 * once['train_stage1'])
  assert hours['train_stage2'] == once['train_stage2']


def test_updates_of_a_stage():
  config = make_config(train__batch_size=16, sampling__num_self_cots=2)
  assert plan_hours.num_steps(config, FIRST) == 12_500
  assert plan_hours.num_steps(config, SECOND) == 25_000
  assert plan_hours.num_steps(config, MIXED) == 37_500
  packed = make_config(train__batch_size=16, data__packing=True)
  assert plan_hours.num_steps(packed, FIRST) == 6_250


def test_hours_are_those_of_what_fits():
  config = make_config(train__batch_size=16)
  fits = make_figures(compiler_secs=8.0)
  tried = (({'model.remat': 'dots'}, refused()), ({'model.remat': 'x'}, fits))
  outcome = plan_report.Outcome(refused(), tried)
  hours = plan_hours.hours(config, 'raft', 4, [outcome])
  assert hours['total'] == pytest.approx(200_000 / 16 * 8 / 3600)
  nothing = plan_report.Outcome(refused(), tried[:1])
  hours = plan_hours.hours(config, 'raft', 4, [nothing])
  assert hours == {'train_stage1': None, 'total': None}
