"""Lines that a person follows."""

import json

from etils import epath
import pytest

from tract_jax.pipeline import progress
from tract_jax.sampling import engine as engine_lib
from tract_jax.training import loop
from tract_jax.training import step as step_lib


@pytest.mark.parametrize(
  ('secs', 'text'),
  [(0.4, '0 s'), (59, '59 s'), (185, '3:05 min'), (7800, '2:10 h')],
)
def test_durations(secs, text):
  assert progress.duration(secs) == text


def test_sizes():
  assert progress.gigabytes(3 * 2**20) == '3.0 MiB'
  assert progress.gigabytes(3 * 2**29) == '1.50 GiB'


def report(step, finite=True, grid_mass=0.9, wait_secs=0.0):
  metrics = step_lib.StepMetrics(
    loss=1.5, ce=1.0, score_mse=0.25, score_loss=0.25, off_grid=0.0,
    grid_mass=grid_mass, grad_norm=1.0, lr=1e-3, finite=finite,
    num_tokens=200.0,
  )  # fmt: skip
  return loop.StepReport(step, metrics, secs=2.0, data_wait_secs=wait_secs)


def test_training_lines_have_loss_parts_speed_and_time_left(capsys):
  lines = progress.TrainProgress('tract stage 1', num_steps=5, every=2)
  for step in range(5):
    lines.on_step(report(step))
  out = capsys.readouterr().out.splitlines()
  assert [line.split(':')[1].split()[1] for line in out] == [
    '1/5', '2/5', '4/5', '5/5',
  ]  # fmt: skip
  for part in (
    'loss 1.5000', 'ce 1.0000', 'score rmse 0.500', 'grid mass 0.900',
    'lr 1.00e-03', '100 tokens/s', '6 s left',
  ):  # fmt: skip
    assert part in out[1]


def test_a_line_has_no_secret(capsys, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', 'a-long-secret')
  progress.say('read with a-long-secret from here')
  assert capsys.readouterr().out == 'read with [secret] from here\n'


def test_skipped_updates_are_said(capsys):
  lines = progress.TrainProgress('run', num_steps=6, every=100)
  for step in range(6):
    lines.on_step(report(step, finite=step not in (1, 3)))
  out = capsys.readouterr().out.splitlines()
  assert [line for line in out if 'not finite' in line] == [
    f'run: step {step} was not finite, update skipped' for step in (1, 3)
  ]
  assert 'skipped' not in out[0] and out[-1].endswith('  2 skipped')


class Clock:
  """Seconds that pass by command."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: self.now)


def sampled(num_done, **changes):
  fields = {
    'num_done': num_done,
    'num_total': 40,
    'prefill_tokens': 3000,
    'prefill_secs': 1.5,
    'decode_tokens': 500,
    'decode_secs': 4.0,
    'num_slots': 8,
    'slot_steps': 800,
    'num_retries': 0,
    'finish_reasons': {'marker': num_done - 1, 'length': 1, 'too_long': 0},
  }
  return engine_lib.Progress(**{**fields, **changes})


def test_sampling_lines_tell_speeds_slots_endings_and_time_left(
  capsys, monkeypatch
):
  clock = Clock(monkeypatch)
  lines = progress.SampleProgress('self-CoTs')
  for secs in (1, 2, 6, 7, 10, 12):
    clock.now = 100.0 + secs
    lines.on_progress(sampled(10, num_retries=secs))
  lines.on_progress(sampled(40))
  out = capsys.readouterr().out.splitlines()
  # After 6 and 12 seconds, and at the end. The first call took 5.5 seconds, so
  # the line at 6 has a quarter done after 10.5.
  assert [line.split()[1] for line in out] == ['10/40', '10/40', '40/40']
  assert out[0] == (
    'self-CoTs: 10/40 CoTs  prefill 2,000 tokens/s  decode 125 tokens/s  '
    '62% of 8 slots in use  ended by length 1, marker 9  6 tried again  '
    '32 s left'
  )
  assert 'tried again' not in out[2]


def test_sampling_that_has_not_begun_has_no_speed(capsys, tmp_path):
  nothing = {'prefill_secs': 0.0, 'decode_secs': 0.0, 'slot_steps': 0}
  lines = progress.SampleProgress('self-CoTs')
  lines.write(tmp_path, 1)
  assert not list(tmp_path.iterdir())
  lines.on_progress(sampled(0, num_total=0, finish_reasons={}, **nothing))
  assert 'prefill 0 tokens/s' in capsys.readouterr().out


def test_figures_of_a_job_that_went_on_are_a_line_more(tmp_path):
  for step, num_done in ((2, 10), (5, 40), (5, 30)):
    lines = progress.SampleProgress('self-CoTs')
    lines.on_progress(sampled(num_done))
    lines.write(epath.Path(tmp_path), step)
  text = (tmp_path / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert [(r['step'], r['num_done'], r['num_marker']) for r in rows] == [
    (2, 10, 9),
    (5, 30, 29),
  ]


def test_figures_have_the_seconds_of_the_whole_job_per_row(
  tmp_path, monkeypatch
):
  clock = Clock(monkeypatch)
  lines = progress.SampleProgress('self-CoTs')
  clock.now = 107.0
  # Its 5.5 seconds on the device began at 101.5.
  lines.on_progress(sampled(40))
  lines.on_rows(12)
  lines.on_rows(8)
  clock.now = 111.5
  lines.write(epath.Path(tmp_path), 1)
  bare = progress.SampleProgress('rows')
  bare.begin()
  bare.on_rows(3)
  clock.now = 113.0
  bare.write(epath.Path(tmp_path), 2)
  text = (tmp_path / 'metrics.jsonl').read_text()
  one, two = map(json.loads, text.splitlines())
  assert (one['num_rows'], one['secs']) == (20, 10.0)
  assert (one['secs_per_row'], one['rows_per_sec']) == (0.5, 2.0)
  assert one['tokens_per_sec'] == 50.0
  assert (two['num_rows'], two['secs_per_row']) == (3, 0.5)


def test_row_lines_come_at_the_end_at_least(capsys):
  on_rows = progress.row_progress('sampling', total=4)
  on_rows(2, 50)
  on_rows(2, 50)
  out = capsys.readouterr().out.splitlines()
  assert out[-1].startswith('sampling: 4/4 rows')


def warnings(capsys, reports, **settings):
  lines = progress.TrainProgress('run', num_steps=len(reports), **settings)
  for one in reports:
    lines.on_step(one)
  out = capsys.readouterr().out.splitlines()
  return [line for line in out if line.startswith('warning')]


def test_grid_mass_that_stays_low_is_warned_of_once(capsys):
  low = [report(step, grid_mass=0.2) for step in range(12)]
  (line,) = warnings(capsys, low, every=3, num_warmup=4)
  # Updates 5 and 6 are the first after the warm-up at which a line comes.
  assert line.startswith('warning: run: step 6: only 0.200 of the probability')
  assert 'wrong score position or tokenizer' in line


def test_grid_mass_is_a_mean_of_finite_updates_after_the_warm_up(capsys):
  masses = [0.0] * 4 + [0.9, 0.2] * 4
  some = [report(step, grid_mass=mass) for step, mass in enumerate(masses)]
  some[5] = report(5, finite=False, grid_mass=float('nan'))
  assert not warnings(capsys, some, every=2, num_warmup=4)
  assert warnings(capsys, some, every=2, num_warmup=0)


def test_slow_data_are_warned_of_once(capsys):
  def waits(*wait_secs):
    reports = [report(i, wait_secs=s) for i, s in enumerate(wait_secs)]
    return warnings(capsys, reports, every=10)

  (line,) = waits(*[1.5] * 30)
  # Nine updates after the first, of 2 seconds each.
  assert line.startswith(
    'warning: run: step 10: 14 of the last 18 s were spent waiting for batches'
  )
  assert not waits(*[0.9] * 30)
  # It has to last for a while.
  assert not waits(2.0, 2.0, 2.0)
