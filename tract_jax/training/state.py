"""The train state: everything that changes from step to step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from tract_jax import types


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State of a training run; the frozen part of the model is not in it.

  Attributes:
    step: int32 scalar, updates done (skipped ones included).
    params: the trainable leaves: adapters, or all weights.
    opt_state: optax's state.
  """

  step: types.Array
  params: types.PyTree
  opt_state: types.PyTree


def init_state(
  params: types.PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """A state at step 0.

  Args:
    params: the trainable leaves.
    optimizer: as `optimizer.make_optimizer` gives it.

  Returns:
    The state. Call it under `jax.jit` with `out_shardings`, so that every
    leaf has its sharding from creation.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
  )
