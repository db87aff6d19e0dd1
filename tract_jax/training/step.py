"""One update: gradients accumulated over micro-batches with global counts.

Counts are taken over the whole global batch before the first micro-batch, so
each micro-batch's loss is already weighted rightly and gradients simply add: of
micro-batches, and, where each device runs this on its own rows, of devices.

Axes: A micro-batches, B rows of one, L length.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import optax

from tract_jax import numerics, types
from tract_jax.objectives import losses
from tract_jax.parallel import mapping
from tract_jax.training import state as state_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
  """What a step reports; float32 scalars, but for `finite` (bool).

  Attributes:
    loss: the objective on the global batch.
    ce: mean cross-entropy per target token, nats.
    score_mse: mean squared error of the expected score.
    score_loss: mean score loss, before its weight; where that is the squared
      error, the same as score_mse.
    off_grid: mean penalty on probability off the score grid, before its weight.
    grid_mass: mean probability on the score grid at the score positions.
    grad_norm: global norm of the gradient before clipping.
    lr: learning rate of this update.
    finite: False where loss or gradient was not, and the update was skipped.
    num_tokens: input tokens of the batch, padding not counted.
  """

  loss: types.Array
  ce: types.Array
  score_mse: types.Array
  score_loss: types.Array
  off_grid: types.Array
  grid_mass: types.Array
  grad_norm: types.Array
  lr: types.Array
  finite: types.Array
  num_tokens: types.Array


LossFn = Callable[[types.PyTree, types.PyTree, types.Batch], types.LossTerms]


def _whole(sums: types.PyTree) -> types.PyTree:
  """Nothing to add up: the batch is all here."""
  return sums


def gradients(
  loss_fn: LossFn,
  params: types.PyTree,
  frozen: types.PyTree,
  batch: types.Batch,
  objective: losses.Objective,
  add_up: mapping.AddUp = _whole,
) -> tuple[types.PyTree, types.LossTerms]:
  """Gradient of the objective on a global batch, and its loss terms.

  Args:
    loss_fn: (params, frozen, rows) -> LossTerms of those rows.
    params: the trainable leaves.
    frozen: the rest of the model.
    batch: fields [A, B, L]: A micro-batches, taken one after the other.
    objective: the weights.
    add_up: adds up sums over all devices that have a part of the batch.

  Returns:
    (gradient, LossTerms) of the whole batch.
  """
  counts = add_up(losses.target_counts(batch, objective))

  def weighted(trainable, rows):
    terms = loss_fn(trainable, frozen, rows)
    return losses.objective_loss(terms, objective, *counts), terms

  def add_rows(carry, rows):
    grads, terms = jax.grad(weighted, has_aux=True)(params, rows)
    return numerics.tree_add(carry, (grads, terms)), None

  zeros = jax.tree.map(jnp.zeros_like, params), losses.no_terms()
  return add_up(jax.lax.scan(add_rows, zeros, batch)[0])


def make_evaluate(
  loss_fn: LossFn, add_up: mapping.AddUp = _whole
) -> Callable[..., types.LossTerms]:
  """Makes the pure function that only looks: no gradient, no update.

  Args:
    loss_fn: (params, frozen, rows) -> LossTerms of those rows.
    add_up: as for `gradients`.

  Returns:
    evaluate(params, frozen, batch [A, B, L]) -> LossTerms of the whole batch.
  """

  def evaluate(params, frozen, batch):
    def add(terms, rows):
      return numerics.tree_add(terms, loss_fn(params, frozen, rows)), None

    return add_up(jax.lax.scan(add, losses.no_terms(), batch)[0])

  return evaluate


def _behind(
  params: types.PyTree,
  opt_state: types.PyTree,
  optimizer: optax.GradientTransformation,
) -> types.PyTree:
  """The optimizer's state as it is, but computed after the parameters.

  New parameters and new moments are both made of the old moments. Off the TPU,
  XLA copies these, twice the model, rather than write over them: it does not
  know which comes first unless one reads the other. No parameter is NaN here.
  """
  return optax.tree_utils.tree_map_params(
    optimizer,
    lambda moment, param: jnp.where(param == param, moment, 0),
    opt_state,
    params,
  )


def _num_updates(state: state_lib.TrainState) -> types.Array:
  """Updates that the optimizer counts; skipped ones are not among them."""
  counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, 'count')
  return counts[0][1] if counts else state.step


def make_step(
  loss_fn: LossFn,
  objective: losses.Objective,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  add_up: mapping.AddUp = _whole,
) -> Callable[..., tuple[state_lib.TrainState, StepMetrics]]:
  """Makes the pure update function.

  Args:
    loss_fn: (params, frozen, rows) -> LossTerms of those rows.
    objective: the weights.
    optimizer: as `optimizer.make_optimizer` gives it.
    schedule: the learning rate that `optimizer` uses, for the report.
    add_up: as for `gradients`.

  Returns:
    step(state, frozen, batch [A, B, L]) -> (state, StepMetrics). An update
    with a non-finite loss or gradient leaves params and opt_state as they
    were; the step is counted all the same, so the schedule of batches holds.
  """

  def step(state, frozen, batch):
    grads, terms = gradients(
      loss_fn, state.params, frozen, batch, objective, add_up
    )
    loss = losses.objective_loss(
      terms, objective, terms.ce_count, terms.score_count
    )
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def keep(new, old):
      return jnp.where(finite, new, old)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params = jax.tree.map(keep, params, state.params)
    opt_state = jax.tree.map(keep, opt_state, state.opt_state)
    new_state = state_lib.TrainState(
      step=state.step + 1,
      params=params,
      opt_state=_behind(params, opt_state, optimizer),
    )
    metrics = StepMetrics(
      loss=loss,
      ce=numerics.mean(terms.ce_sum, terms.ce_count),
      score_mse=numerics.mean(terms.score_sq_sum, terms.score_count),
      score_loss=numerics.mean(terms.score_loss_sum, terms.score_count),
      off_grid=numerics.mean(terms.off_grid_sum, terms.score_count),
      grid_mass=numerics.mean(terms.grid_mass_sum, terms.score_count),
      grad_norm=norm,
      lr=jnp.asarray(schedule(_num_updates(state)), jnp.float32),
      finite=finite,
      num_tokens=add_up(numerics.count(batch.segment_ids > 0)),
    )
    return new_state, metrics

  return step
