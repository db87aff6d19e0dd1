"""Our side: updates of CoT-RAFT, by the step that a run maps on its mesh."""

import sys

import jax
import numpy as np

from benchmarks import job as job_lib
from benchmarks import side_jax, training_work
from tract_jax import types
from tract_jax.data import loader
from tract_jax.models import peft_adapter
from tract_jax.pipeline import base_weights, build, export, finetune
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import objective as objective_lib


class Side:
  """A stage's trainer with its first state."""

  def __init__(self, job: job_lib.TrainingJob):
    settings = {
      'name': 'benchmark',
      'model.path': job.model,
      'model.lora_rank': job.lora_rank,
      'train.batch_size': job.num_rows,
      'train.lr': job.lr,
      'train.warmup_fraction': 0.0,
      **job.settings,
    }
    self.setup = setup = build.build(
      config_lib.merge(settings), devices=jax.devices()[:1]
    )
    # Adapters are the same in every process: those that `start` writes.
    trainable, self.frozen = base_weights.init_params(setup.model, seed=0)
    self.num_trained = sum(x.size for x in jax.tree.leaves(trainable))
    self.trainer = build.make_trainer(
      setup,
      objective_lib.make_objective(setup.config, 'cot_raft'),
      with_cot=True,
      num_steps=job.num_steps + 1,
      num_targets=loader.static_size(
        [job.num_targets], finetune.TARGET_MULTIPLE
      ),
    )
    self.state = self.trainer.init_state(trainable)


def train(job: job_lib.TrainingJob) -> job_lib.Measurement:
  """Updates of the whole model, or of new adapters."""
  side = Side(job)
  batch = side.trainer.to_device(_batch(job))

  def update() -> float:
    side.state, metrics = side.trainer.step(side.state, side.frozen, batch)
    return float(metrics.loss)

  return training_work.timed(job, update, side.num_trained, side_jax.measured)


def start(job: job_lib.TrainingJob) -> job_lib.Measurement:
  """Writes the adapters that both sides begin with."""
  side = Side(job)
  peft_adapter.write_adapter(
    job.adapter,
    side.state.params,
    export.lora_config(side.setup),
    base_model=job.model,
  )
  return side_jax.measured(0.0, 0, 0.0)


def _batch(job: job_lib.TrainingJob) -> types.Batch:
  rows = training_work.make_rows(job)
  shape = rows.inputs.shape
  num_scores = len(job.score_values)
  grid = np.array(job.score_values, np.float32)
  is_score = rows.scores.max(axis=1, keepdims=True) == grid
  return types.Batch(
    inputs=rows.inputs,
    targets=rows.targets,
    positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
    segment_ids=np.ones(shape, np.int32),
    cot_mask=rows.cot_mask,
    score_mask=rows.score_mask,
    score_values=rows.scores,
    target_probs=is_score.reshape(-1, 1, num_scores).astype(np.float32),
  )


KINDS = {'train': train, 'start': start}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.TrainingJob)
