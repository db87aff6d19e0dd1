"""Plans from the configuration to what is written, without the TPU's compiler.

The programs are the run's own, of a tiny model on eight CPU devices; only what
compiles them is a stand-in, which refuses what a test says.
"""

import dataclasses
import json

from etils import epath
import jax
import pytest

from tests.pipeline import plan_programs_test
from tests.pipeline.plan_test import FakeMemory, FakeProgram
from tract_jax.parallel import chips
from tract_jax.pipeline import plan, plan_figures, plan_trials

_REFUSAL = (
  'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of'
  ' 15.75G hbm.'
)
_REAL = plan_figures.compile_program


class Compiler:
  """Compiles what `fits` says; `asked` are the names of all programs."""

  def __init__(self, fits):
    self.fits = fits
    self.asked = []

  def __call__(self, program, chip):
    self.asked.append(program.name)
    fits = self.fits(program)
    fn = FakeProgram(None if fits else jax.errors.JaxRuntimeError(_REFUSAL))
    return _REAL(dataclasses.replace(program, fn=fn), chip)


@pytest.fixture
def planned(tmp_path, monkeypatch):
  """(fits, changes of the config) -> plan.json, plan.txt, names compiled."""

  def run(fits, host_chips=2, **changes):
    compiler = Compiler(fits)
    monkeypatch.setattr(plan_figures, 'compile_program', compiler)
    monkeypatch.setattr(plan, 'slice_devices', lambda _: jax.devices())
    monkeypatch.setattr(
      plan, '_host_devices', lambda _, devices: devices[:host_chips]
    )
    config = plan_programs_test.make_config(
      plan__topology='v5e:2x4',
      train__micro_batch_size=0,
      sampling__mesh__tensor=1,
      sampling__mesh__data=-1,
      **changes,
    )
    plan.plan(config, epath.Path(tmp_path))
    folder = tmp_path / 'plan'
    content = json.loads((folder / 'plan.json').read_text())
    return content, (folder / 'plan.txt').read_text(), compiler.asked

  return run


def by_name(content):
  return {program['name']: program for program in content['programs']}


def test_what_does_not_fit_is_planned_with_the_one_trial_that_does(planned):
  def fits(program):
    if program.name.startswith('train'):
      # Micro-batches [A, B, L].
      rows = program.args[2].inputs
      return rows.shape[1] == 16 and rows.sharding.mesh.shape['fsdp'] == 8
    return program.name == 'prefill' or program.num_rows == 32

  content, text, asked = planned(
    fits,
    methods=('tract',),
    mesh__data=2,
    train__batch_size=32,
    sampling__slots=64,
  )
  # Stage 2 is stage 1's program; no trial follows the one that fits.
  assert asked == ['train_stage1'] * 4 + ['prefill'] + ['decode'] * 3
  programs = by_name(content)
  mesh = {'mesh.data': 1, 'mesh.fsdp': -1, 'mesh.tensor': 1}
  full = mesh | {'model.remat': 'full'}
  for name in ('train_stage1', 'train_stage2'):
    program = programs[name]
    assert not program['fits']
    assert program['problem'].startswith('RESOURCE_EXHAUSTED')
    assert program['does_not_fit'] == [
      {'changes': changes, 'peak_bytes_per_chip': 20.5 * 2**30}
      for changes in (mesh, full)
    ]
    found = program['would_fit']
    assert found['fits']
    assert found['changes'] == full | {'train.micro_batch_size': 16}
    assert found['peak_bytes_per_chip'] == FakeMemory.peak_memory_in_bytes
    # 100,000 rows, 2 epochs, 32 an update.
    assert content['hours'][name] == pytest.approx(
      200_000 / 32 * found['estimated_step_secs'] / 3600
    )
    assert (
      f'{name}: fits with config.mesh.data=1, config.mesh.fsdp=-1,'
      ' config.mesh.tensor=1, config.model.remat=full,'
      ' config.train.micro_batch_size=16: 10.00 GiB\n'
    ) in text
  assert programs['prefill']['fits']
  assert programs['prefill']['would_fit'] is None
  assert programs['decode']['would_fit']['changes'] == {
    'sampling.mesh.data': 1,
    'sampling.mesh.fsdp': 1,
    'sampling.mesh.tensor': -1,
    'sampling.slots': 32,
    'sampling.prefill_tokens': 512,
  }
  assert programs['decode']['would_fit']['num_rows'] == 32
  assert 'nothing that was tried fits' not in text


def test_trial_that_the_model_does_not_allow_is_passed_over(planned):
  # The made-up world's 322 tokens cannot be split over four chips.
  content, _, asked = planned(
    lambda program: program.name != 'decode' or program.num_rows == 32,
    host_chips=4,
    methods=('cot_raft',),
    sampling__slots=64,
  )
  assert asked.count('decode') == 2
  decode = by_name(content)['decode']
  assert decode['does_not_fit'] == []
  assert decode['would_fit']['changes'] == {
    'sampling.slots': 32,
    'sampling.prefill_tokens': 512,
  }


def test_where_nothing_fits_trials_end_and_no_hours_are_given(planned):
  content, text, asked = planned(
    lambda program: program.name != 'decode',
    methods=('tract',),
    sampling__slots=256,
  )
  assert asked.count('decode') == 1 + plan_trials.MAX_TRIALS
  decode = by_name(content)['decode']
  assert decode['would_fit'] is None
  assert len(decode['does_not_fit']) == plan_trials.MAX_TRIALS
  assert 'decode: nothing that was tried fits\n' in text
  assert content['hours']['train_stage1'] > 0
  assert content['hours']['self_cot'] is content['hours_100k_rows'] is None
  assert '100,000 rows, total: unknown\n' in text


@pytest.mark.parametrize(
  ('rows_per_chip', 'num_rows'), [(0, 16), (4, 32)], ids=['rounded', 'replaced']
)
def test_batch_that_a_run_refuses_is_said_beside_the_planned_one(
  planned, rows_per_chip, num_rows
):
  content, text, _ = planned(
    lambda program: True,
    methods=('ce',),
    train__batch_size=12,
    plan__rows_per_chip=rows_per_chip,
  )
  (program,) = content['programs']
  assert program['fits']
  assert program['num_rows'] == content['batch_size'] == num_rows
  assert content['asked_batch_size'] == 12
  assert content['asked_micro_batch_size'] == 0
  assert content['refused'].startswith('batch: dimension 0 (rows) of size 12 ')
  assert f'is refused: {content["refused"]}; planned with {num_rows}\n' in text


def test_batch_that_a_run_takes_is_not_refused(planned):
  content, text, _ = planned(
    lambda program: True,
    methods=('cot_raft',),
    train__lambda_candidates=(0.5, 1.0),
  )
  assert content['refused'] is None
  assert content['asked_batch_size'] == content['batch_size'] == 16
  assert content['assumptions']['lambda_candidates'] == [0.5, 1.0]
  assert 'refused' not in text


def test_slots_that_fit_are_planned_and_else_half_of_them(planned, monkeypatch):
  # On the run's mesh; with weights split otherwise, as many as fit there.
  monkeypatch.setattr(chips, 'memory_bytes', lambda device: 2**40)
  content, text, asked = planned(
    lambda program: program.name != 'decode' or program.num_rows == 512,
    methods=('tract',),
    sampling__slots=0,
  )
  decode = by_name(content)['decode']
  assert decode['num_rows'] == 1024
  assert decode['would_fit']['num_rows'] == 512
  assert decode['would_fit']['changes']['sampling.slots'] == 512
  assert asked.count('decode') == 3
  assert 'config.sampling.slots=512' in text
