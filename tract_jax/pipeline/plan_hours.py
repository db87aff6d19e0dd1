"""How long a method takes on a slice, from the estimates of its programs.

  stage       trainings x examples x epochs / examples of an update
              x seconds of an update
  self-CoTs   prompts read / (prompts of a prefill x hosts) x its seconds
              + CoTs x tokens / (slots x hosts) x seconds of a token

A stage has an example for each CoT that it is trained on, and is trained once
for each candidate lambda. Start, compilation, checkpoints, data and slots
without work are not counted, nor are validation rows and predictions on
benchmarks.
"""

from collections.abc import Sequence

import ml_collections

from tract_jax.pipeline import (
  lambda_choice,
  plan_figures,
  plan_programs,
  plan_report,
)
from tract_jax.pipeline import methods as methods_lib

# Rows of the training data.
NUM_INPUTS = 100_000


def num_steps(
  config: ml_collections.ConfigDict, stage: methods_lib.Stage
) -> int:
  """Updates of a stage on `NUM_INPUTS` inputs.

  Args:
    config: with the batch that is planned.
    stage: of the method.

  Returns:
    At least 1.
  """
  num_examples = _num_examples(config, stage)
  num_rows = -(-num_examples // plan_programs.examples_per_row(config))
  return -(-num_rows * config.train.num_epochs // config.train.batch_size)


def hours(
  config: ml_collections.ConfigDict,
  method: str,
  num_hosts: int,
  outcomes: Sequence[plan_report.Outcome],
) -> dict[str, float | None]:
  """Hours of each part of a method on `NUM_INPUTS` inputs.

  Args:
    config: that was planned.
    method: of the table.
    num_hosts: that sample, each on its own.
    outcomes: of its programs.

  Returns:
    {"train_stage1", "self_cot", "train_stage2", "total"}, as far as the method
    has them; None for a part whose program does not fit, whatever was tried.
  """
  found = {outcome.figures.name: outcome.best for outcome in outcomes}
  parts: dict[str, float | None] = {}
  for index, stage in enumerate(methods_lib.METHODS[method].stages):
    if stage.cot_source in ('self', 'mixed'):
      parts['self_cot'] = _self_cot_hours(config, num_hosts, found)
    name = f'train_stage{index + 1}'
    parts[name] = _stage_hours(config, stage, found[name])
  total = 0.0
  for part in parts.values():
    if part is None:
      return {**parts, 'total': None}
    total += part
  return {**parts, 'total': total}


def _num_examples(config, stage: methods_lib.Stage) -> int:
  """Of an epoch."""
  return NUM_INPUTS * stage.examples_per_input(config.sampling.num_self_cots)


def _stage_hours(
  config, stage: methods_lib.Stage, figures: plan_figures.Figures | None
) -> float | None:
  if figures is None or figures.step_secs is None:
    return None
  per_row = plan_programs.examples_per_row(config)
  num_rows = _num_examples(config, stage) / per_row
  steps = num_rows * config.train.num_epochs / figures.num_rows
  trainings = len(lambda_choice.candidates_of(config, stage.objective)) or 1
  return trainings * steps * figures.step_secs / 3600


def _self_cot_hours(config, num_hosts: int, found) -> float | None:
  prefill, decode = found['prefill'], found['decode']
  if prefill is None or decode is None:
    return None
  # A prompt is read once for all its CoTs.
  reads = NUM_INPUTS / (prefill.num_rows * num_hosts)
  num_tokens = (
    NUM_INPUTS * config.sampling.num_self_cots * config.plan.cot_tokens
  )
  tokens = num_tokens / (decode.num_rows * num_hosts)
  secs = reads * prefill.step_secs + tokens * decode.step_secs
  return secs / 3600
