"""One update: gradients accumulated over micro-batches with global counts.

Counts are taken over the whole global batch before the first micro-batch, so
each micro-batch's loss is already weighted rightly and gradients simply add.

Axes: A micro-batches, B rows of one, L length.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from tract_jax import numerics, types
from tract_jax.objectives import losses
from tract_jax.training import state as state_lib


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    'loss',
    'ce',
    'score_mse',
    'grid_mass',
    'grad_norm',
    'lr',
    'finite',
    'num_tokens',
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class StepMetrics:
  """What a step reports; float32 scalars, but for `finite` (bool).

  Attributes:
    loss: the objective on the global batch.
    ce: mean cross-entropy per target token, nats.
    score_mse: mean squared error of the expected score.
    grid_mass: mean probability on the score grid at the score positions.
    grad_norm: global norm of the gradient before clipping.
    lr: learning rate of this update.
    finite: False where loss or gradient was not, and the update was skipped.
    num_tokens: input tokens of the batch, padding not counted.
  """

  loss: types.Array
  ce: types.Array
  score_mse: types.Array
  grid_mass: types.Array
  grad_norm: types.Array
  lr: types.Array
  finite: types.Array
  num_tokens: types.Array


LossFn = Callable[[types.PyTree, types.PyTree, types.Batch], types.LossTerms]


def gradients(
  loss_fn: LossFn,
  params: types.PyTree,
  frozen: types.PyTree,
  batch: types.Batch,
  objective: losses.Objective,
) -> tuple[types.PyTree, types.LossTerms]:
  """Gradient of the objective on a global batch, and its loss terms.

  Args:
    loss_fn: (params, frozen, rows) -> LossTerms of those rows.
    params: the trainable leaves.
    frozen: the rest of the model.
    batch: fields [A, B, L]: A micro-batches, taken one after the other.
    objective: the weights.

  Returns:
    (gradient, LossTerms) of the whole batch.
  """
  counts = losses.target_counts(batch, objective)

  def weighted(trainable, rows):
    terms = loss_fn(trainable, frozen, rows)
    return losses.objective_loss(terms, objective, *counts), terms

  def add_rows(carry, rows):
    grads, terms = jax.grad(weighted, has_aux=True)(params, rows)
    return numerics.tree_add(carry, (grads, terms)), None

  zeros = jax.tree.map(jnp.zeros_like, params), losses.no_terms()
  return jax.lax.scan(add_rows, zeros, batch)[0]


def make_step(
  loss_fn: LossFn,
  objective: losses.Objective,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
) -> Callable[..., tuple[state_lib.TrainState, StepMetrics]]:
  """Makes the pure update function.

  Args:
    loss_fn: (params, frozen, rows) -> LossTerms of those rows.
    objective: the weights.
    optimizer: as `optimizer.make_optimizer` gives it.
    schedule: the learning rate that `optimizer` uses, for the report.

  Returns:
    step(state, frozen, batch [A, B, L]) -> (state, StepMetrics). An update
    with a non-finite loss or gradient leaves params and opt_state as they
    were; the step is counted all the same, so the schedule of batches holds.
  """

  def step(state, frozen, batch):
    grads, terms = gradients(loss_fn, state.params, frozen, batch, objective)
    loss = losses.objective_loss(
      terms, objective, terms.ce_count, terms.score_count
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
      return jnp.where(finite, new, old)

    new_state = state_lib.TrainState(
      step=state.step + 1,
      params=jax.tree.map(keep, params, state.params),
      opt_state=jax.tree.map(keep, opt_state, state.opt_state),
    )
    metrics = StepMetrics(
      loss=loss,
      ce=numerics.mean(terms.ce_sum, terms.ce_count),
      score_mse=numerics.mean(terms.score_sq_sum, terms.score_count),
      grid_mass=numerics.mean(terms.grid_mass_sum, terms.score_count),
      grad_norm=norm,
      lr=jnp.asarray(schedule(state.step), jnp.float32),
      finite=finite,
      num_tokens=numerics.count(batch.segment_ids > 0),
    )
    return new_state, metrics

  return step
