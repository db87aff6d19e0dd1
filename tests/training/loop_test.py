"""The loop's order of effects, its stops and its guard."""

import jax.numpy as jnp
import pytest

from tract_jax.training import loop
from tract_jax.training import state as state_lib
from tract_jax.training import step as step_lib


def make_metrics(finite=True):
  zero = jnp.zeros(())
  return step_lib.StepMetrics(*[zero] * 8, jnp.array(finite), zero)


class Recorder:
  """Stands in for step, batches and hooks, and remembers the order."""

  def __init__(self, not_finite=(), stop_before=None):
    self.events = []
    self.not_finite = not_finite
    self.stop_before = stop_before
    self.asked = 0

  def step(self, state, batch):
    self.events.append(f'step {batch}')
    new = state_lib.TrainState(state.step + 1, state.params, state.opt_state)
    return new, make_metrics(batch not in self.not_finite)

  def should_stop(self):
    self.asked += 1
    return self.asked - 1 == self.stop_before

  def train(self, num_steps, save_every):
    state = state_lib.TrainState(jnp.zeros((), jnp.int32), {}, ())
    hooks = loop.Hooks(
      on_step=lambda r: self.events.append(f'report {r.step}'),
      save=lambda s: self.events.append(f'save {int(s.step)}'),
      save_every=save_every,
      should_stop=self.should_stop,
    )
    return loop.train(
      state, self.step, ((i, i) for i in range(num_steps)), hooks
    )


def test_metrics_are_fetched_after_the_next_step_is_dispatched():
  recorder = Recorder()
  state = recorder.train(num_steps=3, save_every=100)
  assert recorder.events == [
    'step 0', 'step 1', 'report 0', 'step 2', 'report 1', 'report 2', 'save 3',
  ]  # fmt: skip
  assert state.step == 3


def test_saves_when_due_and_once_at_the_end():
  recorder = Recorder()
  recorder.train(num_steps=4, save_every=2)
  assert [e for e in recorder.events if e.startswith('save')] == [
    'save 2', 'save 4',
  ]  # fmt: skip


def test_stop_saves_what_was_done():
  recorder = Recorder(stop_before=2)
  with pytest.raises(loop.Interrupted, match='before step 2'):
    recorder.train(num_steps=5, save_every=100)
  assert recorder.events[-2:] == ['report 1', 'save 2']


def test_three_skipped_in_a_row_end_the_run_unsaved():
  recorder = Recorder(not_finite=(1, 2, 3))
  with pytest.raises(loop.NonFiniteError, match='3 updates in a row') as error:
    recorder.train(num_steps=9, save_every=100)
  assert error.value.steps == (1, 2, 3)
  assert not any(e.startswith('save') for e in recorder.events)


def test_skipped_updates_apart_are_survived():
  recorder = Recorder(not_finite=(1, 2, 4, 5))
  assert recorder.train(num_steps=8, save_every=100).step == 8


@pytest.mark.parametrize('stop_before', [0, 2])
def test_stop_right_after_a_save_does_not_save_again(stop_before):
  recorder = Recorder(stop_before=stop_before)
  with pytest.raises(loop.Interrupted):
    recorder.train(num_steps=5, save_every=2)
  saves = [e for e in recorder.events if e.startswith('save')]
  assert saves == (['save 2'] if stop_before else [])
