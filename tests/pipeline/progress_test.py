"""Lines that a person follows."""

import pytest

from tract_jax.pipeline import progress
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


def report(step, finite=True, grid_mass=0.9):
  metrics = step_lib.StepMetrics(
    loss=1.5, ce=1.0, score_mse=0.25, grid_mass=grid_mass, grad_norm=1.0,
    lr=1e-3, finite=finite, num_tokens=200.0,
  )  # fmt: skip
  return loop.StepReport(step, metrics, secs=2.0, data_wait_secs=0.0)


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


def test_skipped_updates_are_said(capsys):
  lines = progress.TrainProgress('run', num_steps=9, every=100)
  lines.on_step(report(3, finite=False))
  assert 'step 3 was not finite' in capsys.readouterr().out


def test_row_lines_come_at_the_end_at_least(capsys):
  on_rows = progress.row_progress('sampling', total=4)
  on_rows(2, 50)
  on_rows(2, 50)
  out = capsys.readouterr().out.splitlines()
  assert out[-1].startswith('sampling: 4/4 rows')


def test_grid_mass_that_stays_low_is_warned_of_once(capsys):
  lines = progress.TrainProgress('run', num_steps=10, every=100)
  for step in range(10):
    lines.on_step(report(step, grid_mass=0.2))
  out = capsys.readouterr().out
  assert out.count('warning: run: step 6: only 0.200') == 1
  assert out.count('warning') == 1
