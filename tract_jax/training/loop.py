"""The training loop: takes state, step, batches and hooks, and builds nothing.

Metrics of update t-1 are fetched after update t is dispatched, so that the
device never waits for the host.
"""

from collections.abc import Callable, Iterable, Sequence
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
  """Loss, gradients or the state are not finite; exit code 1.

  Attributes:
    steps: the updates that it is known of.
  """

  def __init__(self, problem: str, steps: Sequence[int] = ()):
    super().__init__(problem)
    self.steps = tuple(steps)


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
  watch = _Watch(hooks.on_step)
  iterator = iter(batches)
  while True:
    begin = time.perf_counter()
    item = next(iterator, None)
    wait_secs = time.perf_counter() - begin
    if item is None:
      break
    index, batch = item
    if hooks.should_stop():
      if watch.flush():  # Else the state is saved already.
        hooks.save(state)
      raise Interrupted(f'stopped before step {index}')
    state, metrics = step_fn(state, batch)
    watch.flush()
    watch.hold(index, metrics, wait_secs)
    if (index + 1) % hooks.save_every == 0:
      watch.flush()  # A state is saved only once its update is known.
      hooks.save(state)
  if watch.flush():
    hooks.save(state)
  return state


class _Watch:
  """Holds an update's metrics until the next is dispatched, then reports."""

  def __init__(self, on_step: Callable[[StepReport], None]):
    self._on_step = on_step
    self._held: tuple[int, step_lib.StepMetrics, float] | None = None
    self._skipped: list[int] = []
    self._last = time.perf_counter()

  def hold(self, index: int, metrics, wait_secs: float) -> None:
    """Takes the metrics of an update that was just dispatched."""
    self._held = index, metrics, wait_secs

  def flush(self) -> bool:
    """Reports what is held; whether there was anything."""
    if self._held is None:
      return False
    index, on_device, wait_secs = self._held
    self._held = None
    metrics = jax.tree.map(lambda x: x.item(), jax.device_get(on_device))
    now = time.perf_counter()
    self._on_step(StepReport(index, metrics, now - self._last, wait_secs))
    self._last = now
    self._skipped = [] if metrics.finite else [*self._skipped, index]
    if len(self._skipped) >= MAX_SKIPPED_IN_A_ROW:
      raise NonFiniteError(
        f'loss or gradients were not finite in {len(self._skipped)} updates in '
        f'a row, the last at step {index}; none of them changed the model',
        self._skipped,
      )
    return True
