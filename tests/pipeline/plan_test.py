"""A plan's choices, sums and words; only the last test compiles for a TPU."""

import dataclasses
import json
import re
import subprocess
import sys

from etils import epath
import jax
import pytest

from tests.parallel import hlo_programs
from tract_jax import main as main_lib
from tract_jax import types
from tract_jax.parallel import chips
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import (
  plan,
  plan_figures,
  plan_programs,
  plan_report,
  plan_trials,
)

DEMO = '--config=configs/demo.py'
TOPOLOGY = chips.topology('v5e:4x4')


def make_config(**changes):
  return plan_trials.changed(
    config_lib.merge({'model': {'path': 'Mistral-7B-Instruct-v0.2'}}),
    {key.replace('__', '.'): value for key, value in changes.items()},
  )


def make_figures(name='train_stage1', **changes):
  figures = plan_figures.Figures(
    name=name,
    fits=True,
    problem='',
    peak_bytes=2**33,
    num_rows=16,
    num_tokens=16 * 3072,
    num_chips=16,
    ideal_flops=100e12,
    ideal_bytes=0.0,
    resident_bytes=0.0,
    compile_secs=40.0,
    flops=150e12,
    collective_bytes={'all-gather': 2.0**31},
    compiler_secs=2.0,
    roofline_secs=1.5,
    traffic_secs=0.5,
  )
  return dataclasses.replace(figures, **changes)


def refused(name='train_stage1', peak_bytes=2**35):
  return make_figures(
    name, fits=False, problem='RESOURCE_EXHAUSTED: ...', peak_bytes=peak_bytes
  )


def test_batch_that_cannot_be_split_is_the_next_that_can():
  config = plan_trials.asked(make_config(), num_chips=16)
  assert (config.train.batch_size, config.train.micro_batch_size) == (16, 16)
  whole = make_config(train__batch_size=32)
  assert plan_trials.asked(whole, 16) == whole
  # Four micro-batches of 12 rows, over 8 chips.
  config = make_config(train__batch_size=48, train__micro_batch_size=12)
  config = plan_trials.asked(config, num_chips=8)
  assert (config.train.batch_size, config.train.micro_batch_size) == (64, 16)


def test_rows_per_chip_are_those_of_one_pass():
  config = make_config(plan__rows_per_chip=4, train__micro_batch_size=8)
  config = plan_trials.asked(config, num_chips=16)
  assert (config.train.batch_size, config.train.micro_batch_size) == (64, 0)


def test_lighter_training_ends_with_adapters():
  config = make_config(train__batch_size=64, model__lora_rank=0, mesh__data=4)
  assert list(plan_trials.lighter_training(config, 16)) == [
    {'mesh.data': 1, 'mesh.fsdp': -1, 'mesh.tensor': 1},
    {'model.remat': 'full'},
    {'train.micro_batch_size': 32},
    {'train.micro_batch_size': 16},
    {'model.lora_rank': 8},
  ]
  small = make_config(train__batch_size=16, model__remat='full')
  assert not list(plan_trials.lighter_training(small, 16))


def test_lighter_sampling_ends_with_a_cache_in_8_bits():
  config = make_config(sampling__prefill_tokens=1024)
  axes = {'data': 1, 'fsdp': 1, 'tensor': -1}
  # The half of 80 is no multiple of 16.
  trials = [
    {f'sampling.mesh.{axis}': size for axis, size in axes.items()},
    {'sampling.slots': 32, 'sampling.prefill_tokens': 512},
    {'sampling.slots': 16, 'sampling.prefill_tokens': 256},
    {'sampling.kv_cache': 'int8'},
  ]
  assert list(plan_trials.lighter_sampling(config, 80)) == trials
  config.sampling.kv_cache = 'int8'
  config.sampling.weights = 'int8'
  whole = {'sampling.weights': ''}
  assert list(plan_trials.lighter_sampling(config, 80)) == [whole, *trials[:-1]]


def test_changes_do_not_touch_what_they_are_made_from():
  config = make_config()
  assert plan_trials.changed(config, {'mesh.data': 2}).mesh.data == 2
  assert config.mesh.data == 1


def facts(config=None, **changes):
  asked = make_config()
  config = config or plan_trials.asked(asked, 16)
  made = plan_report.Facts(
    config=config,
    asked=asked,
    refusal='batch: 8 rows',
    topology=TOPOLOGY,
    method='raft',
    num_hosts=4,
    hours={'train_stage1': 1.0, 'total': 1.0},
  )
  return dataclasses.replace(made, **changes)


def test_json_has_the_contract_and_the_derived_figures():
  outcome = plan_report.Outcome(make_figures(), ())
  content = json.loads(
    json.dumps(plan_report.as_json(facts(), [outcome]), allow_nan=False)
  )
  assert content['topology'] == 'v5e:4x4'
  assert content['chip_bytes'] == int(15.75 * 2**30)
  assert content['hours_100k_rows'] == 1.0
  (program,) = content['programs']
  assert program['name'] == 'train_stage1'
  assert program['fits'] is True
  assert program['peak_bytes_per_chip'] == 2**33
  assert program['flops_ratio'] == 1.5
  assert program['estimated_step_secs'] == 2.0
  assert program['estimated_mfu'] == pytest.approx(100 / 2 / 197)
  assert program['tokens_per_second_per_chip'] == 3072 / 2
  assert program['collective_bytes'] == {'all-gather': 2**31}
  assert program['compile_secs'] == 40.0
  assert program['would_fit'] is None


def test_json_of_what_does_not_fit_names_what_would():
  fits = make_figures(peak_bytes=2**32)
  tried = (({'a': 1}, refused(peak_bytes=2**34)), ({'a': 2}, fits))
  outcome = plan_report.Outcome(refused(), tried)
  (program,) = plan_report.as_json(facts(), [outcome])['programs']
  assert program['fits'] is False
  assert program['estimated_step_secs'] is None
  assert program['does_not_fit'] == [
    {'changes': {'a': 1}, 'peak_bytes_per_chip': 2**34}
  ]
  assert program['would_fit']['changes'] == {'a': 2}
  assert program['would_fit']['peak_bytes_per_chip'] == 2**32


def test_traffic_that_takes_longer_than_the_work_is_the_estimate():
  assert make_figures(traffic_secs=3.0).step_secs == 3.0


def test_table_says_what_was_planned_and_what_does_not_fit():
  fits = make_figures(peak_bytes=2**32)
  outcome = plan_report.Outcome(refused(), (({'a.b': 2}, fits),))
  text = plan_report.as_text(facts(), [outcome])
  assert (
    'a run of config.train.batch_size=8 is refused: batch: 8 rows; planned with'
    ' 16\n'
  ) in text
  assert 'train_stage1: RESOURCE_EXHAUSTED' in text
  assert 'train_stage1: fits with config.a.b=2: 4.00 GiB' in text
  assert 'would fit' in text
  assert re.search(r'^rows +16 +16$', text, re.MULTILINE)
  assert '100,000 rows, total: 1.0 hours' in text
  assert 'not seen:' in text
  nothing = plan_report.Outcome(refused(), (({'a.b': 2}, refused()),))
  text = plan_report.as_text(facts(), [nothing])
  assert 'train_stage1: nothing that was tried fits' in text


class FakeMemory:
  peak_memory_in_bytes = 10 * 2**30
  argument_size_in_bytes = 1
  temp_size_in_bytes = 2
  alias_size_in_bytes = 3


class FakeProgram:
  """Stands for a jitted function, its lowered and its compiled form."""

  def __init__(self, error=None):
    self.error = error

  def lower(self, *args):
    del args
    return self

  def compile(self):
    if self.error:
      raise self.error
    return self

  def memory_analysis(self):
    return FakeMemory

  def as_text(self):
    return hlo_programs.LOOP


def compiled(fn, **changes):
  program = plan_programs.Program(
    name='decode',
    fn=fn,
    args=(),
    key=(),
    num_devices=4,
    num_rows=4,
    num_tokens=4,
    ideal_flops=4 * 3072.0,
    pair_flops=1000.0,
  )
  program = dataclasses.replace(program, **changes)
  return plan_figures.compile_program(program, TOPOLOGY.chip)


def test_figures_of_a_compiled_program_are_those_of_one_step():
  found = compiled(FakeProgram(), num_steps=3)
  assert found.fits
  assert (found.argument_bytes, found.temporary_bytes) == (1, 2)
  assert found.alias_bytes == 3
  # A loop of three rounds, a step each: a product of 4 x 8 x 16, and a kernel
  # of attention, which makes two products.
  assert found.flops == 2 * 4 * 8 * 16 + 2 * 1000
  assert found.ideal_flops == 3072
  assert found.kernels == {'kernel': 1}
  assert found.collective_bytes['all-gather'] == 64
  assert found.largest[0]['name'] == 'layer'


def test_what_else_lies_on_a_chip_counts():
  chip_bytes = TOPOLOGY.chip.memory_bytes
  rest = chip_bytes - FakeMemory.peak_memory_in_bytes
  assert compiled(FakeProgram(), resident_bytes=rest).fits
  assert not compiled(FakeProgram(), resident_bytes=rest + 1).fits


def test_program_that_the_compiler_refuses_is_a_result():
  error = jax.errors.JaxRuntimeError(
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of'
    ' 15.75G hbm.\nExceeded hbm capacity by 4.75G.'
  )
  found = compiled(FakeProgram(error))
  assert not found.fits
  assert found.peak_bytes == 20.5 * 2**30
  assert found.problem.startswith('RESOURCE_EXHAUSTED')
  assert found.step_secs is found.flops_ratio is None


@pytest.mark.parametrize(
  ('more', 'line'),
  [
    ((), 'config.plan.topology: is empty'),
    (('--config.plan.topology=v5e',), "config.plan.topology: 'v5e' is not one"),
    (
      ('--config.plan.topology=v5e:2x2', '--config.mapping=pmap'),
      "config.mapping: 'pmap' is not planned",
    ),
  ],
)
def test_plans_that_cannot_be_made_are_refused(tmp_path, capsys, more, line):
  command = ['--task=plan', DEMO, f'--workdir={tmp_path}', *more]
  assert main_lib.main(command) == 2
  assert line in capsys.readouterr().err


def test_missing_compiler_is_said(tmp_path, monkeypatch):
  monkeypatch.setattr(plan, 'has_compiler', lambda: False)
  config = config_lib.read_config('configs/demo.py')
  config.plan.topology = 'v5e:2x2'
  with pytest.raises(types.InputError, match='needs libtpu.*`make tpu`'):
    plan.plan(config, epath.Path(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(
  not plan.has_compiler(), reason='libtpu is not installed; `make tpu` gets it'
)
def test_the_demo_is_planned_for_four_chips(tmp_path):
  command = [
    *(sys.executable, '-m', 'tract_jax.main', '--task=plan', DEMO),
    '--config.plan.topology=v5e:2x2',
    '--config.plan.prompt_tokens=40',
    '--config.plan.cot_tokens=20',
    '--config.sampling.mesh.fsdp=2',
    '--config.sampling.mesh.tensor=2',
    f'--workdir={tmp_path}',
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=280)
  assert done.returncode == 0, done.stderr[-2000:]
  content = json.loads((tmp_path / 'plan' / 'plan.json').read_text())
  assert done.stdout.count((tmp_path / 'plan' / 'plan.txt').read_text()) == 1
  programs = {p['name']: p for p in content['programs']}
  assert list(programs) == [
    'train_stage1', 'train_stage2', 'prefill', 'decode'
  ]  # fmt: skip
  for program in programs.values():
    assert program['fits']
    assert 0 < program['peak_bytes_per_chip'] < 2**30
    assert program['flops_ratio'] > 0.5
    assert 0 < program['roofline_secs']
    assert 0 < program['estimated_step_secs'] < 1
  first, second = programs['train_stage1'], programs['train_stage2']
  assert second['compile_secs'] == 0 < first['compile_secs']
  assert first['flops_ratio'] == second['flops_ratio'] < 3
  # Weights are gathered; the state is written where it was.
  assert first['collective_bytes']['all-gather'] > 0
  assert first['alias_bytes_per_chip'] > 0
  assert content['hours_100k_rows'] > 0
