"""What a trained judge writes and thinks, with PyTorch: CoTs and scores.

As the sampling benchmark's other side does it (benchmarks/sampling_torch):
transformers' `generate`, the fixed words appended where they lack, and a second
forward pass for the distribution over the scores. The samples are records of
ours, on which stage 2 is trained and of which rows of predictions are made.
"""

from collections.abc import Sequence
import pathlib

import numpy as np
import torch

from benchmarks import job as job_lib
from benchmarks import sampling_torch
from tract_jax import numerics, types
from tract_jax.pipeline import build, read_data


class Reader:
  """A trained judge, which writes CoTs and reads scores behind them."""

  def __init__(
    self,
    setup: build.Setup,
    folder: pathlib.Path,
    *,
    platform: str,
    num_threads: int,
  ):
    """Reads the weights.

    Args:
      setup: of the run.
      folder: of training.train: a model, or an adapter that names its base.
      platform: "cpu" or "cuda".
      num_threads: of PyTorch.
    """
    self._setup = setup
    self._job = _job(setup, folder, platform, num_threads)
    self._side = sampling_torch.Side(self._job)

  def cots(
    self,
    examples: Sequence[types.Example],
    num_cots: int,
    *,
    seed: int,
    max_length: int,
  ) -> list[list[types.CotSample]]:
    """Writes CoTs, and reads the scores behind them.

    Args:
      examples: whose prompts are sampled from.
      num_cots: C, for each.
      seed: of the samples.
      max_length: most tokens of prompt, CoT, fixed words and score together.
        A longer CoT is cut before the fixed words; where they have no room
        behind the prompt, it is "too_long".

    Returns:
      C samples of each example, in order.
    """
    torch.manual_seed(seed)
    prompts = self._prompts(examples)
    # Between a prompt and its score.
    rooms = [max_length - len(prompt) - 1 for prompt in prompts]
    owners = np.repeat(range(len(prompts)), num_cots).tolist()
    cots = self._written(prompts, num_cots, rooms)
    endings = [
      self._ended(*cot, rooms[i]) for i, cot in zip(owners, cots, strict=True)
    ]
    probs, greedy = self._read(
      [prompts[i] + end for i, (end, *_) in zip(owners, endings, strict=True)],
      self._job.score_ids,
    )
    samples: list[list[types.CotSample]] = [[] for _ in prompts]
    for k, (i, ending) in enumerate(zip(owners, endings, strict=True)):
      end, num_written, reason = ending
      if not np.isfinite(probs[k]).all():
        reason = 'non_finite'
      if len(end) > rooms[i]:
        reason, probs[k], greedy[k] = 'too_long', np.nan, -1
      samples[i].append(
        types.CotSample(
          example_id=examples[i].example_id,
          cot_index=len(samples[i]),
          tokens=np.array(end, np.int32),
          num_sampled_tokens=num_written,
          finish_reason=reason,
          score_probs=probs[k],
          greedy_index=int(greedy[k]),
        )
      )
    return samples

  def bare(
    self, examples: Sequence[types.Example]
  ) -> list[list[types.CotSample]]:
    """Reads the scores right behind the prompts; nothing is written.

    Args:
      examples: the rows.

    Returns:
      A sample without tokens of each example, in order.
    """
    rows = read_data.before_score(self._setup, examples, with_cot=False)
    probs, greedy = self._read(
      [row.tolist() for row in rows], self._setup.bare_scores.ids
    )
    return [
      [
        types.CotSample(
          example_id=example.example_id,
          cot_index=0,
          tokens=np.zeros(0, np.int32),
          num_sampled_tokens=0,
          finish_reason='marker' if np.isfinite(p).all() else 'non_finite',
          score_probs=p,
          greedy_index=int(index),
        )
      ]
      for example, p, index in zip(examples, probs, greedy, strict=True)
    ]

  def _prompts(self, examples: Sequence[types.Example]) -> list[list[int]]:
    prompt_ids = self._setup.tokenizer.prompt_ids
    return [prompt_ids(example.prompt).tolist() for example in examples]

  def _written(
    self, prompts: Sequence[list[int]], num_cots: int, rooms: Sequence[int]
  ) -> list[tuple[list[int], str]]:
    """(tokens, why they end there) of C CoTs of each prompt, in order."""
    sampling, words = self._setup.config.sampling, self._job.lead_ids
    limits = [
      max(0, min(sampling.max_new_tokens, room - len(words))) for room in rooms
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[tuple[list[int], str]]] = [[] for _ in prompts]
    size = max(1, self._rows_together() // num_cots)
    for batch in sampling_torch.chunks(order, size):
      cots = self._side.generate(
        [prompts[i] for i in batch],
        num_cots,
        top_k=sampling.top_k,
        max_new_tokens=max(1, *(limits[i] for i in batch)),
      )
      owners = np.repeat(batch, num_cots).tolist()
      for i, cot in zip(owners, cots, strict=True):
        reason = 'end_token' if len(cot) < limits[i] else 'length'
        found[i].append((cot[: limits[i]], reason))
    return [cot for of_prompt in found for cot in of_prompt]

  def _rows_together(self) -> int:
    """As ours has on a CPU, where the configuration leaves it open."""
    return self._setup.config.sampling.slots or numerics.TILE

  def _ended(
    self, cot: list[int], reason: str, room: int
  ) -> tuple[list[int], int, str]:
    """Tokens up to the score, how many the model wrote, and how it ended."""
    ending = self._side.before_score(cot)
    # The text may have more tokens than the model wrote.
    while cot and (surplus := len(ending) - room) > 0:
      cot, reason = cot[:-surplus], 'length'
      ending = self._side.before_score(cot)
    text = self._side.tokenizer.decode(cot, skip_special_tokens=True)
    if self._job.marker in text:
      return ending, min(len(cot), len(ending)), 'marker'
    return ending, len(ending) - len(self._job.lead_ids), reason

  def _read(
    self, sequences: Sequence[list[int]], score_ids: Sequence[int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """[n, Y] probabilities of the scores, and [n] the likeliest or -1."""
    probs = np.zeros((len(sequences), len(score_ids)), np.float32)
    greedy = np.full(len(sequences), -1)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    index_of = {token: i for i, token in enumerate(score_ids)}
    for batch in sampling_torch.chunks(order, self._rows_together()):
      logits = self._side.last_logits([sequences[i] for i in batch])
      of_scores = logits.softmax(dim=-1)[:, list(score_ids)]
      probs[batch] = of_scores.cpu().numpy()
      # An embedding may have more rows than there are tokens.
      known = logits[:, : self._setup.tokenizer.vocab_size]
      likeliest = known.argmax(dim=-1).tolist()
      greedy[batch] = [index_of.get(token, -1) for token in likeliest]
    return probs, greedy


def _job(
  setup: build.Setup, folder: pathlib.Path, platform: str, num_threads: int
) -> job_lib.SamplingJob:
  """What the sampling benchmark's other side has to know."""
  sampling, scores = setup.config.sampling, setup.cot_scores
  return job_lib.SamplingJob(
    kind='',
    model=str(folder),
    num_threads=num_threads,
    platform=platform,
    example_ids=[],
    prompts=[],
    marker=scores.marker,
    lead_ids=list(scores.lead_ids),
    prefix_ids=list(scores.prefix_ids),
    score_ids=list(scores.ids),
    eos_id=setup.tokenizer.eos_id,
    pad_id=setup.tokenizer.pad_id,
    temperature=sampling.temperature,
    top_p=sampling.top_p,
    repetition_penalty=sampling.repetition_penalty,
    max_new_tokens=sampling.max_new_tokens,
  )
