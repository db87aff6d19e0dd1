"""The objective of a stage, from its name and the configuration's choices."""

import ml_collections

from tract_jax.objectives import losses


def make_objective(
  config: ml_collections.ConfigDict, name: str
) -> losses.Objective:
  """The objective of a stage, by its name in pipeline/methods.

  Args:
    config: gives lambda, the score loss and what the cross-entropy covers.
    name: "ce", "raft" or "cot_raft".

  Returns:
    The objective; CE has neither a score loss nor an off-grid penalty.
  """
  train = config.train
  if name == 'ce':
    return losses.Objective(1.0, 0.0, ce_includes_score=True)
  ce_weight, weight, includes = {
    'raft': (0.0, 1.0, False),
    'cot_raft': (
      1.0,
      score_weight(config, train.lambda_value),
      train.ce_includes_score,
    ),
  }[name]
  return losses.Objective(
    ce_weight,
    weight,
    includes,
    score_loss=train.score_loss,
    expectation=train.expectation,
    off_grid_weight=train.off_grid_penalty,
  )


def score_weight(
  config: ml_collections.ConfigDict, lambda_value: float
) -> float:
  """Objective.score_weight of a lambda, in the scale that config names."""
  return losses.score_weight(
    config.train.score_scale,
    lambda_value,
    config.train.release_device_batch,
    config.train.release_accumulation,
  )
