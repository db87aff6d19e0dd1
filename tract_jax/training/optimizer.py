"""AdamW with warm-up and cosine decay, as in the paper's recipe."""

import dataclasses

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Numbers of the optimiser (defaults: TRACT, arXiv:2503.04381, app. B).

  Attributes:
    lr: peak learning rate.
    warmup_fraction: part of all steps in which it rises from 0.
    b1, b2, eps, weight_decay: of AdamW.
    clip_norm: global gradient norm above which gradients are scaled down.
  """

  lr: float = 1e-5
  warmup_fraction: float = 0.1
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Linear warm-up from 0, then cosine decay to 0 at `num_steps`.

  Args:
    config: the numbers.
    num_steps: updates of the whole run.

  Returns:
    A function from the update's index to the learning rate.
  """
  warmup_steps = int(round(config.warmup_fraction * num_steps))
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if warmup_steps else config.lr,
    peak_value=config.lr,
    warmup_steps=warmup_steps,
    decay_steps=max(num_steps, warmup_steps + 1),
  )


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Gradient clipping by global norm, then AdamW on the schedule.

  Args:
    config: the numbers.
    num_steps: updates of the whole run.

  Returns:
    An optax transformation.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      make_schedule(config, num_steps),
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
    ),
  )
