"""The other side: updates of CoT-RAFT, as benchmarks/pytorch makes them."""

import functools
import sys

import numpy as np
import peft
import transformers

from benchmarks import job as job_lib
from benchmarks import side_torch, training_work
from benchmarks.pytorch import judge

_TARGETS = 'q_proj k_proj v_proj o_proj gate_proj up_proj down_proj'.split()


def train(job: job_lib.TrainingJob) -> job_lib.Measurement:
  """Updates of the whole model, or of new adapters."""
  side_torch.prepare(job)
  # Who trains has a tokenizer, too.
  transformers.AutoTokenizer.from_pretrained(job.model)
  adapters = peft.LoraConfig(
    r=job.lora_rank, lora_alpha=16, target_modules=_TARGETS
  )
  model = judge.load(
    job.model,
    job.adapter or (adapters if job.lora_rank else None),
    side_torch.device(job),
  )
  trainer = judge.Trainer(
    model,
    judge.Objective(
      1.0, 1.0, False, tuple(job.score_ids), tuple(job.score_values)
    ),
    lr=job.lr,
    num_warmup_steps=0,
    num_steps=job.num_steps + 1,
  )
  rows = training_work.make_rows(job)
  batch = judge.Batch(**vars(rows), is_token=np.ones(rows.inputs.shape, bool))
  measured = functools.partial(
    side_torch.measured, versions={'peft': peft.__version__}
  )
  num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
  return training_work.timed(
    job, lambda: trainer.step(batch).loss, num_trained, measured
  )


KINDS = {'train': train}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.TrainingJob)
