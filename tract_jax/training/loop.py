"""The training loop: takes state, step, batches and hooks, and builds nothing.

Metrics of update t-1 are fetched after update t is dispatched, so that the
device never waits for the host.
"""

from collections.abc import Callable, Iterable
import dataclasses
import time

import jax

from tract_jax import types
from tract_jax.training import state as state_lib
from tract_jax.training import step as step_lib

MAX_SKIPPED_IN_A_ROW = 3


class Interrupted(Exception):
  """The run was asked to stop; its state is saved and can be resumed."""


class NonFiniteError(RuntimeError):
  """Loss or gradients stayed non-finite; exit code 1."""


@dataclasses.dataclass(frozen=True)
class StepReport:
  """One update as the host sees it.

  Attributes:
    step: index of the update, from 0.
    metrics: its StepMetrics, as Python floats and bools.
    secs: wall time since the report before.
    data_wait_secs: of these, spent waiting for the batch.
  """

  step: int
  metrics: step_lib.StepMetrics
  secs: float
  data_wait_secs: float


@dataclasses.dataclass(frozen=True)
class Hooks:
  """What the loop calls at its rim.

  Attributes:
    on_step: called with every StepReport, in order.
    save: called with the state after updates that are due, and at the end.
    save_every: updates between two saves.
    should_stop: asked before each update; True saves and raises Interrupted.
  """

  on_step: Callable[[StepReport], None]
  save: Callable[[state_lib.TrainState], None]
  save_every: int
  should_stop: Callable[[], bool]


def train(
  state: state_lib.TrainState,
  step_fn: Callable[
    [state_lib.TrainState, types.Batch],
    tuple[state_lib.TrainState, step_lib.StepMetrics],
  ],
  batches: Iterable[tuple[int, types.Batch]],
  hooks: Hooks,
) -> state_lib.TrainState:
  """Runs the updates that are left and saves the final state.

  Args:
    state: where to begin; its step is the index of the first batch.
    step_fn: (state, batch) -> (state, StepMetrics), compiled.
    batches: (step, batch) from the state's step to the end, on the device.
    hooks: effects.

  Returns:
    The final state.

  Raises:
    Interrupted: `hooks.should_stop` said so; the state was saved.
    NonFiniteError: three updates in a row were not finite. The state, which
      they left unchanged, is not saved again.
  """
  pending: tuple[int, step_lib.StepMetrics] | None = None
  num_skipped = 0
  last = time.perf_counter()
  wait_secs = 0.0

  def report(wait_secs: float) -> None:
    nonlocal last, num_skipped
    index, device_metrics = pending
    metrics = jax.tree.map(lambda x: x.item(), jax.device_get(device_metrics))
    now = time.perf_counter()
    hooks.on_step(StepReport(index, metrics, now - last, wait_secs))
    last = now
    num_skipped = 0 if metrics.finite else num_skipped + 1
    if num_skipped >= MAX_SKIPPED_IN_A_ROW:
      raise NonFiniteError(
        f'loss or gradients were not finite in {num_skipped} updates in a '
        f'row, the last at step {index}; the last saved state is good'
      )

  iterator = iter(batches)
  while True:
    begin = time.perf_counter()
    item = next(iterator, None)
    if item is None:
      break
    new_wait_secs = time.perf_counter() - begin
    if hooks.should_stop():
      if pending is not None:  # Else the state is saved already.
        report(wait_secs)
        hooks.save(state)
      raise Interrupted(f'stopped before step {item[0]}; the state is saved')
    index, batch = item
    state, metrics = step_fn(state, batch)
    if pending is not None:
      report(wait_secs)
    pending, wait_secs = (index, metrics), new_wait_secs
    if (index + 1) % hooks.save_every == 0:
      report(wait_secs)  # A state is saved only once its update is known.
      pending = None
      hooks.save(state)
  if pending is not None:
    report(wait_secs)
    hooks.save(state)
  return state
