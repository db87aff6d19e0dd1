"""What a line of a training run's metrics says of one update.

In: a StepReport, and how much work an update is. Out: {name: number}, the same
for `metrics.jsonl`, TensorBoard and Weights & Biases. docs/metrics.md lists
them.
"""

import dataclasses
from typing import Any

import ml_collections

from tract_jax.models import flops as flops_lib
from tract_jax.parallel import chips
from tract_jax.pipeline import base_model
from tract_jax.training import loop


@dataclasses.dataclass(frozen=True)
class Work:
  """What an update needs, and what does it.

  Attributes:
    flops: operations of one chip's share; see models/flops.
    chip: its numbers; None where they are not known.
  """

  flops: float
  chip: chips.Chip | None


def work_of(
  model: base_model.BaseModel, num_rows: int, length: int, num_targets: int
) -> Work:
  """The work of an update, counted as --task=plan does.

  Args:
    model: with its mesh.
    num_rows: of an update, on all devices.
    length: L.
    num_targets: places of a row whose logits are made.

  Returns:
    The work of one device.
  """
  whole = flops_lib.update_flops(
    model.config,
    num_rows=num_rows,
    length=length,
    num_targets=num_targets,
    train_base=model.train_base,
  )
  kind = model.mesh.devices.flat[0].device_kind
  return Work(whole / model.mesh.size, chips.of_device(kind))


def figures(report: loop.StepReport, work: Work) -> dict[str, Any]:
  """The values of an update's line.

  Args:
    report: of the update.
    work: of every update.

  Returns:
    All StepMetrics by name; `score_rmse`; `secs`, `data_wait_secs` and
    `tokens_per_sec`; and `mfu` where the chip is known.
  """
  metrics = report.metrics
  values = dataclasses.asdict(metrics) | {
    'score_rmse': metrics.score_mse**0.5,
    'secs': report.secs,
    'data_wait_secs': report.data_wait_secs,
    'tokens_per_sec': metrics.num_tokens / report.secs,
  }
  if work.chip is not None:
    values['mfu'] = chips.mfu(work.flops, report.secs, work.chip)
  return values


def wandb_run(
  config: ml_collections.ConfigDict, label: str
) -> dict[str, Any] | None:
  """What a stage's run of Weights & Biases is called, and belongs to.

  Args:
    config: checked, so that it holds no secret.
    label: of the stage, such as "tract stage 2 seed 0".

  Returns:
    Arguments of wandb.init; None where it is not asked for.
  """
  if not config.wandb.project:
    return None
  return {
    'project': config.wandb.project,
    'entity': config.wandb.entity or None,
    'mode': config.wandb.mode or None,
    'group': config.name,
    'name': f'{config.name} {label}',
    'config': config.to_dict(),
  }
