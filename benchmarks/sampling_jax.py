"""Our side: CoTs and score distributions in one pass of the sampling engine.

Compilation is not counted: a pass in which anything was compiled is a warm-up,
and the work is done again until nothing was.
"""

from collections.abc import Callable
import dataclasses
import math
import sys
import time

import jax
import numpy as np

from benchmarks import job as job_lib
from benchmarks import side_jax
from tract_jax import types
from tract_jax.pipeline import base_weights, build
from tract_jax.pipeline import config as config_lib
from tract_jax.sampling import engine as engine_lib

_MAX_PASSES = 8
_COMPILED = '/jax/core/compile/backend_compile_duration'


@dataclasses.dataclass(frozen=True)
class Pass:
  """One call of the engine.

  Attributes:
    secs: that it took.
    samples: what it gave.
    progress: the last that it told.
    num_compiled: programs that were compiled in it.
  """

  secs: float
  samples: list[types.CotSample]
  progress: engine_lib.Progress
  num_compiled: int


class Side:
  """An engine with its params and a job's numbers."""

  def __init__(self, job: job_lib.SamplingJob):
    self.job = job
    self._num_compiled = 0
    jax.monitoring.register_event_duration_secs_listener(self._count)
    longest = max(map(len, job.prompts)) + len(job.lead_ids) + 1
    settings = {
      'name': 'benchmark',
      'model.path': job.model,
      'data.max_length': longest,
      'sampling.temperature': job.temperature,
      'sampling.top_p': job.top_p,
      'sampling.repetition_penalty': job.repetition_penalty,
      'sampling.max_new_tokens': job.max_new_tokens,
      **job.settings,
    }
    config = config_lib.merge(settings)
    setup = build.build(config, as_judge=True, devices=jax.devices()[:1])
    self.length_multiple = config.data.length_multiple
    self.params = base_weights.read_weights(setup.model)
    self._engine = build.make_engine(setup, with_cot=True)

  def requests(self, first_cots: list[int]) -> list[engine_lib.CotRequest]:
    """num_cots CoTs of each prompt, counted from its first_cots."""
    return [
      engine_lib.CotRequest(name, first + c, np.asarray(prompt, np.int32))
      for name, prompt, first in zip(
        self.job.example_ids, self.job.prompts, first_cots, strict=True
      )
      for c in range(self.job.num_cots)
    ]

  def one_of_each_length(self) -> list[engine_lib.CotRequest]:
    """A request for every padded length."""
    requests = self.requests([0] * len(self.job.prompts))
    multiple = self.length_multiple
    return list(
      {-(-len(r.prompt_ids) // multiple): r for r in requests}.values()
    )

  def sample(self, requests: list[engine_lib.CotRequest]) -> Pass:
    """Calls the engine once."""
    before = self._num_compiled
    told: list[engine_lib.Progress] = []
    begin = time.perf_counter()
    samples = self._engine.sample(
      self.params,
      requests,
      self.job.seed,
      'benchmark',
      on_progress=told.append,
    )
    secs = time.perf_counter() - begin
    return Pass(secs, samples, told[-1], self._num_compiled - before)

  def score(self, sequences: list[np.ndarray]) -> tuple[np.ndarray, int]:
    """Distributions [n, Y], and how many programs were compiled for them."""
    before = self._num_compiled
    probs, _ = self._engine.score(self.params, sequences)
    return probs, self._num_compiled - before

  def _count(self, event: str, secs: float, **kwargs) -> None:
    self._num_compiled += event == _COMPILED


def sample(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """The whole job, sampled or greedy."""
  begin = time.perf_counter()
  side = Side(job)
  load_secs = time.perf_counter() - begin
  requests = side.requests([0] * len(job.prompts))
  side.sample(side.one_of_each_length())
  timed = _repeated(lambda: side.sample(requests), lambda _: True)
  warm_up_secs = time.perf_counter() - begin - load_secs - timed.secs
  return _measurement(job, timed, timed.secs, _num_written(timed), warm_up_secs)


def decode(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """Decoding steps of all prompts in as many slots, none ending early.

  The fixed words and the score's place are steps, too: with fewer sampled
  tokens, each row has max_new_tokens steps in all. A CoT that ends early is
  replaced by another one of its prompt.
  """
  num_sampled = max(1, job.max_new_tokens - len(job.lead_ids) - 1)
  begin = time.perf_counter()
  side = Side(dataclasses.replace(job, max_new_tokens=num_sampled))
  load_secs = time.perf_counter() - begin
  first_cots = [0] * len(job.prompts)

  def is_full(tried: Pass) -> bool:
    early = [s.finish_reason != 'length' for s in tried.samples]
    first_cots[:] = np.add(first_cots, early).tolist()
    return not any(early)

  timed = _repeated(lambda: side.sample(side.requests(first_cots)), is_full)
  told = timed.progress
  warm_up_secs = time.perf_counter() - begin - load_secs - timed.secs
  return _measurement(
    job, timed, told.decode_secs, told.decode_tokens, warm_up_secs
  )


def score(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """The distribution over the scores behind each prompt and the fixed words."""
  side = Side(job)
  rows = [np.asarray(p + job.lead_ids, np.int32) for p in job.prompts]
  begin = time.perf_counter()
  side.score([min(rows, key=len)])
  start_up_secs = time.time() - job.asked_at
  for _ in range(_MAX_PASSES):
    start = time.perf_counter()
    probs, num_compiled = side.score(rows)
    secs = time.perf_counter() - start
    if not num_compiled:
      break
  return side_jax.measured(
    secs,
    sum(map(len, rows)),
    start - begin,
    cots=[
      job_lib.Cot(i, job.lead_ids, 0, 'marker', _finite(row))
      for i, row in enumerate(probs)
    ],
    details={'start_up_secs': start_up_secs},
  )


def _finite(probs: np.ndarray) -> list[float | None]:
  return [p if math.isfinite(p) else None for p in probs.tolist()]


def _repeated(
  once: Callable[[], Pass], is_full: Callable[[Pass], bool]
) -> Pass:
  """The first pass that is full and compiles nothing."""
  for _ in range(_MAX_PASSES):
    tried = once()
    if is_full(tried) and not tried.num_compiled:
      return tried
  raise RuntimeError(
    f'{_MAX_PASSES} passes, and the last one still compiled'
    f' {tried.num_compiled} programs or had rows that ended early'
  )


def _num_written(timed: Pass) -> int:
  return sum(s.num_sampled_tokens for s in timed.samples)


def _measurement(
  job: job_lib.SamplingJob,
  timed: Pass,
  secs: float,
  num_tokens: int,
  warm_up_secs: float,
) -> job_lib.Measurement:
  told = timed.progress
  return side_jax.measured(
    secs,
    num_tokens,
    warm_up_secs,
    cots=[
      job_lib.Cot(
        prompt=i // job.num_cots,
        tokens=s.tokens.tolist(),
        num_sampled_tokens=s.num_sampled_tokens,
        finish_reason=s.finish_reason,
        score_probs=_finite(s.score_probs),
      )
      for i, s in enumerate(timed.samples)
    ],
    details={
      'prefill_tokens': told.prefill_tokens,
      'prefill_secs': told.prefill_secs,
      'decode_tokens': told.decode_tokens,
      'decode_secs': told.decode_secs,
    },
  )


KINDS = {'sample': sample, 'greedy': sample, 'decode': decode, 'score': score}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.SamplingJob)
