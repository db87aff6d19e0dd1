"""The other side: CoTs and score distributions as TRACT's release makes them.

transformers' `generate` writes the CoTs; the fixed words are appended where
they lack; a second forward pass over prompt, CoT and fixed words gives the
softmax at the score tokens. It gets what helps it: prompts sorted by length, so
that there is little padding; its best batch sizes ("sweep"); logits of the last
position alone.
"""

from collections.abc import Sequence
import sys
import time

import torch
import transformers

from benchmarks import job as job_lib
from benchmarks import side_torch


class Side:
  """A model of transformers with a job's numbers."""

  def __init__(self, job: job_lib.SamplingJob):
    side_torch.prepare(job)
    self.job = job
    self.tokenizer = transformers.AutoTokenizer.from_pretrained(job.model)
    self.device = side_torch.device(job)
    self.model = transformers.AutoModelForCausalLM.from_pretrained(
      job.model, dtype=torch.float32, attn_implementation='sdpa'
    )
    self.model.to(self.device).eval()

  @torch.inference_mode()
  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    num_cots: int,
    clock: 'Clock | None' = None,
    **changes,
  ) -> list[list[int]]:
    """Writes CoTs.

    Args:
      prompts: of one batch.
      num_cots: CoTs for each.
      clock: is told of every step.
      **changes: of the arguments of transformers' `generate`.

    Returns:
      Tokens [l] of each CoT without the end token, those of one prompt
      together.
    """
    job = self.job
    ids, mask = self._left_padded(prompts)
    arguments = dict(
      do_sample=job.temperature > 0,
      top_k=0,
      repetition_penalty=job.repetition_penalty,
      max_new_tokens=job.max_new_tokens,
      num_return_sequences=num_cots,
      pad_token_id=job.pad_id,
      eos_token_id=job.eos_id,
      stopping_criteria=[clock] if clock else None,
    )
    if job.temperature > 0:
      arguments |= dict(temperature=job.temperature, top_p=job.top_p)
    rows = self.model.generate(
      input_ids=ids, attention_mask=mask, **(arguments | changes)
    )
    written = rows[:, ids.shape[1] :].tolist()
    return [
      row[: row.index(job.eos_id)] if job.eos_id in row else row
      for row in written
    ]

  def before_score(self, cot: Sequence[int]) -> list[int]:
    """The CoT with the fixed words, up to the score, by its text."""
    job = self.job
    text = self.tokenizer.decode(cot, skip_special_tokens=True)
    place = text.find(job.marker)
    if place >= 0:
      text, rest = text[: place + len(job.marker)], job.prefix_ids
    else:
      text, rest = text.rstrip(), job.lead_ids
    return self.tokenizer(text, add_special_tokens=False).input_ids + rest

  def score_probs(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """[B, Y] softmax at the score tokens after each sequence."""
    logits = self.last_logits(sequences)
    return logits.softmax(dim=-1)[:, self.job.score_ids]

  @torch.inference_mode()
  def last_logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """[B, V] logits after each sequence; no others are computed."""
    ids, mask = self._left_padded(sequences)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = self.model(
      input_ids=ids,
      # Rows of one length need no mask, and so get the faster kernel.
      attention_mask=None if mask.all() else mask,
      position_ids=positions,
      logits_to_keep=1,
      use_cache=False,
    )
    return out.logits[:, -1].float()

  def _left_padded(
    self, rows: Sequence[Sequence[int]]
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask [B, L], rows ending together."""
    longest = max(map(len, rows))
    pad_id = self.job.pad_id
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return (
      torch.tensor(ids, device=self.device),
      torch.tensor(mask, device=self.device),
    )


class Clock(transformers.StoppingCriteria):
  """Stops nothing; notes when each token was there."""

  def __init__(self):
    self.ticks = [time.perf_counter()]

  def __call__(self, input_ids, scores, **kwargs):
    side_torch.wait()
    self.ticks.append(time.perf_counter())
    return torch.zeros(
      input_ids.shape[0], dtype=torch.bool, device=input_ids.device
    )

  @property
  def prefill_secs(self) -> float:
    return self.ticks[1] - self.ticks[0]

  @property
  def decode_secs(self) -> float:
    return self.ticks[-1] - self.ticks[1]


def sample(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """The whole job: generate, append, forward."""
  side = Side(job)
  order = sorted(range(len(job.prompts)), key=lambda i: len(job.prompts[i]))
  num_prompts = max(1, job.generate_rows // job.num_cots)
  begin = time.perf_counter()
  first = [job.prompts[i] for i in order[:num_prompts]]
  cots = side.generate(first, job.num_cots, max_new_tokens=2)
  side.score_probs([first[0] + side.before_score(cots[0])])
  warm_up_secs = time.perf_counter() - begin

  torch.manual_seed(job.seed)
  begin = time.perf_counter()
  written: list[tuple[int, list[int]]] = []
  for batch in chunks(order, num_prompts):
    cots = side.generate([job.prompts[i] for i in batch], job.num_cots)
    owners = [i for i in batch for _ in range(job.num_cots)]
    written += zip(owners, cots, strict=True)
  generate_secs = time.perf_counter() - begin
  ends = [side.before_score(cot) for _, cot in written]
  samples = []
  for batch in chunks(range(len(written)), job.score_rows):
    rows = [job.prompts[written[k][0]] + ends[k] for k in batch]
    for k, probs in zip(batch, side.score_probs(rows).tolist(), strict=True):
      owner, cot = written[k]
      reason = 'length' if len(cot) == job.max_new_tokens else 'end_token'
      samples.append(job_lib.Cot(owner, ends[k], len(cot), reason, probs))
  secs = time.perf_counter() - begin
  return side_torch.measured(
    secs,
    sum(len(cot) for _, cot in written),
    warm_up_secs,
    cots=samples,
    details={
      'generate_secs': generate_secs,
      'score_secs': secs - generate_secs,
    },
  )


def score(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """The distribution over the scores behind each prompt and the fixed words."""
  side = Side(job)
  rows = [prompt + job.lead_ids for prompt in job.prompts]
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  loaded = time.perf_counter()
  side.score_probs([rows[order[0]]])
  start_up_secs = time.time() - job.asked_at
  begin = time.perf_counter()
  samples = []
  for batch in chunks(order, job.score_rows):
    found = side.score_probs([rows[i] for i in batch]).tolist()
    samples += [
      job_lib.Cot(i, job.lead_ids, 0, 'marker', probs)
      for i, probs in zip(batch, found, strict=True)
    ]
  secs = time.perf_counter() - begin
  return side_torch.measured(
    secs,
    sum(map(len, rows)),
    begin - loaded,
    cots=samples,
    details={'start_up_secs': start_up_secs},
  )


def sweep(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """Finds the batch sizes that give the most rows per second.

  Each is tried on prompts around the median length, at least four rows.
  """
  side = Side(job)
  side.generate(job.prompts[:1], 1, max_new_tokens=2)
  torch.manual_seed(job.seed)
  order = sorted(range(len(job.prompts)), key=lambda i: len(job.prompts[i]))
  rates: dict[str, float] = {}
  lines = []
  # Smaller ones hold no more than one prompt's CoTs, either.
  sizes = [n for n in job.sweep_rows if n >= job.num_cots] or [job.num_cots]
  for size in sizes:
    chosen = _middle(order, max(size, 4) // job.num_cots or 1)
    prompts = [job.prompts[i] for i in chosen]
    prefill, decode, score, num_tokens = 0.0, 0.0, 0.0, 0
    for batch in chunks(prompts, max(1, size // job.num_cots)):
      clock = Clock()
      cots = side.generate(batch, job.num_cots, clock)
      prefill += clock.prefill_secs
      decode += clock.decode_secs
      num_tokens += sum(map(len, cots))
    rows = [p + job.lead_ids for p in prompts for _ in range(job.num_cots)]
    begin = time.perf_counter()
    for batch in chunks(rows, size):
      side.score_probs(batch)
    score = time.perf_counter() - begin
    # The first token of each row comes with the prefill.
    num_later = num_tokens - len(rows)
    num_prompt_tokens = job.num_cots * sum(map(len, prompts))
    rates[f'generate_{size}'] = len(rows) / (prefill + decode)
    rates[f'score_{size}'] = len(rows) / score
    lines.append(
      f'batch {size:2d}, {len(rows):2d} rows: '
      f'prefill {num_prompt_tokens / prefill:5.0f} tokens/s, '
      f'decode {num_later / decode if decode else 0:5.1f} tokens/s, '
      f'generate {len(rows) / (prefill + decode):.3f} rows/s, '
      f'forward {len(rows) / score:.3f} rows/s, '
      f'peak so far {job_lib.peak_memory_bytes() / 1e9:.2f} GB'
    )
    print(f'  {lines[-1]}', flush=True)
  for name in ('generate', 'score'):
    best = max(sizes, key=lambda size: rates[f'{name}_{size}'])
    rates[f'best_{name}_rows'] = best
  return side_torch.measured(0.0, 0, 0.0, details=rates, lines=lines)


def decode(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """The time between tokens, all prompts in one batch, none ending early."""
  side = Side(job)
  torch.manual_seed(job.seed)
  side.generate(job.prompts[:1], 1, max_new_tokens=2)
  clock = Clock()
  # The first token comes with the prefill.
  length = job.max_new_tokens + 1
  side.generate(
    job.prompts, 1, clock, max_new_tokens=length, min_new_tokens=length
  )
  return side_torch.measured(
    clock.decode_secs, job.max_new_tokens * len(job.prompts), clock.prefill_secs
  )


def chunks(rows: Sequence, size: int) -> list[Sequence]:
  """Up to `size` rows at a time."""
  return [rows[i : i + size] for i in range(0, len(rows), size)]


def _middle(rows: Sequence, size: int) -> Sequence:
  start = max(0, (len(rows) - size) // 2)
  return rows[start : start + size]


KINDS = {'sample': sample, 'sweep': sweep, 'decode': decode, 'score': score}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.SamplingJob)
