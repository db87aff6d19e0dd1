"""Whether our samples are right, by PyTorch: distributions and greedy texts."""

from collections.abc import Sequence
import sys

import numpy as np
import torch

from benchmarks import job as job_lib
from benchmarks import sampling_torch, side_torch

# Two logits nearer than this may change places by rounding.
TIE = 1e-3


def check(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """Compares our distributions with a full forward over the same tokens."""
  side = sampling_torch.Side(job)
  cots = chosen(job_lib.read_measurement(job.ours).cots, job)
  differences = []
  for cot in cots:
    (expected,) = side.score_probs([job.prompts[cot.prompt] + cot.tokens])
    # What is not there is no number, too.
    found = torch.tensor(
      [torch.nan if p is None else p for p in cot.score_probs],
      device=expected.device,
    )
    differences.append((expected - found).abs().max().item())
  details = {
    'max_difference': job_lib.worst(differences),
    'num_rows': len(cots),
  }
  return side_torch.measured(0.0, 0, 0.0, details=details)


def chosen(
  cots: Sequence[job_lib.Cot], job: job_lib.SamplingJob
) -> list[job_lib.Cot]:
  """Those that are checked: drawn, so that no place of a CoT is left out."""
  order = np.random.default_rng(job.seed).permutation(len(cots))
  return [cots[i] for i in sorted(order[: job.max_checks])]


def greedy(job: job_lib.SamplingJob) -> job_lib.Measurement:
  """Compares our greedy tokens with those of transformers."""
  side = sampling_torch.Side(job)
  ours = {cot.prompt: cot for cot in job_lib.read_measurement(job.ours).cots}
  order = sorted(ours, key=lambda i: len(job.prompts[i]))
  counts = {'num_equal': 0, 'num_ties': 0, 'num_differing': 0}
  lines = []
  for batch in sampling_torch.chunks(order, job.generate_rows):
    texts = side.generate([job.prompts[i] for i in batch], 1)
    for i, theirs in zip(batch, texts, strict=True):
      place = _first_difference(side, ours[i], theirs)
      if place is None:
        counts['num_equal'] += 1
        continue
      gap = _gap(side, job.prompts[i], ours[i], theirs, place)
      kind = 'num_ties' if gap < TIE else 'num_differing'
      counts[kind] += 1
      lines.append(
        f'{job.example_ids[i]}: token {place} differs, logits are '
        f'{gap:.2e} apart' + (' (a tie)' if gap < TIE else '')
      )
  return side_torch.measured(0.0, 0, 0.0, details=dict(counts), lines=lines)


def _first_difference(
  side: sampling_torch.Side, ours: job_lib.Cot, theirs
) -> int | None:
  """Index of the first token that differs; None where none does."""
  tokens = ours.tokens[: ours.num_sampled_tokens]
  for place, (mine, other) in enumerate(zip(tokens, theirs, strict=False)):
    if mine != other:
      return place
  if ours.finish_reason == 'marker' and len(theirs) >= len(tokens):
    return None  # They write on behind the fixed words.
  # White space before the end is no part of a CoT of ours.
  longer, shorter = max(tokens, theirs, key=len), min(tokens, theirs, key=len)
  rest = side.tokenizer.decode(longer[len(shorter) :])
  return len(shorter) if rest.strip() else None


def _gap(
  side: sampling_torch.Side, prompt, ours: job_lib.Cot, theirs, place: int
) -> float:
  """Distance of the logits of the two tokens at their first difference."""
  tokens = ours.tokens[: ours.num_sampled_tokens]
  both = [
    row[place] if place < len(row) else side.job.eos_id
    for row in (tokens, theirs)
  ]
  (logits,) = side.last_logits([[*prompt, *theirs[:place]]])
  return (logits[both[0]] - logits[both[1]]).abs().item()


KINDS = {'check': check, 'greedy': greedy}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.SamplingJob)
