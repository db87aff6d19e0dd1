"""What both sides of the training benchmark have in common: rows and clock.

Neither library is imported here. The rows are random tokens without padding, so
that both sides do the same work; what they say decides nothing.

    inputs     p p p p p p c c c 4      p: a prompt, c: a CoT, 4: the score
    targets    p p p p p c c c 4 $      $: the end
    cot_mask   0 0 0 0 0 1 1 1 0 1
    score_mask 0 0 0 0 0 0 0 0 1 0
"""

from collections.abc import Callable
import dataclasses
import statistics
import time

import numpy as np

from benchmarks import job as job_lib


@dataclasses.dataclass(frozen=True)
class Rows:
  """A batch, as in tract_jax.types.Batch; arrays [B, L].

  Attributes:
    inputs, targets: int32.
    cot_mask, score_mask: bool.
    scores: float32, the rater's score where score_mask holds.
  """

  inputs: np.ndarray
  targets: np.ndarray
  cot_mask: np.ndarray
  score_mask: np.ndarray
  scores: np.ndarray


def make_rows(job: job_lib.TrainingJob) -> Rows:
  """The rows of every update, the same for the same job."""
  rng = np.random.default_rng(job.seed)
  shape = (job.num_rows, job.length)
  tokens = rng.integers(
    job.vocab_size, size=(job.num_rows, job.length + 1), dtype=np.int32
  )
  chosen = rng.integers(len(job.score_ids), size=job.num_rows)
  tokens[:, -2] = np.array(job.score_ids)[chosen]
  score_mask = np.zeros(shape, bool)
  score_mask[:, -2] = True
  cot_mask = np.zeros(shape, bool)
  cot_mask[:, job.length - job.num_targets :] = True
  values = np.array(job.score_values, np.float32)[chosen]
  return Rows(
    inputs=tokens[:, :-1],
    targets=tokens[:, 1:],
    cot_mask=cot_mask & ~score_mask,
    score_mask=score_mask,
    scores=np.where(score_mask, values[:, None], 0).astype(np.float32),
  )


def timed(
  job: job_lib.TrainingJob,
  update: Callable[[], float],
  num_trained: int,
  measured: Callable[..., job_lib.Measurement],
) -> job_lib.Measurement:
  """Measures updates.

  Args:
    job: how many are timed, after a first one that may compile.
    update: makes one and gives its loss, when it is done.
    num_trained: weights that it changes.
    measured: makes the Measurement: that of side_jax or of side_torch.

  Returns:
    The median's seconds and its tokens.
  """
  begin = time.perf_counter()
  first_loss = update()
  first_secs = time.perf_counter() - begin
  start_up_secs = time.time() - job.asked_at
  secs = []
  for _ in range(job.num_steps):
    begin = time.perf_counter()
    last_loss = update()
    secs.append(time.perf_counter() - begin)
  median = statistics.median(secs)
  return measured(
    median,
    job.num_rows * job.length,
    first_secs,
    details={
      'first_loss': first_loss,
      'last_loss': last_loss,
      'num_trained': num_trained,
      'start_up_secs': start_up_secs,
      'compile_secs': first_secs - median,
    },
  )
