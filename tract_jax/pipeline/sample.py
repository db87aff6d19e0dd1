"""Draws CoTs with their score distributions for examples, for any purpose."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from tract_jax import types
from tract_jax.pipeline import build
from tract_jax.sampling import engine as engine_lib

OnRows = Callable[[int, int], None]


def sample_cots(
  engine: engine_lib.Engine,
  setup: build.Setup,
  params: types.PyTree,
  examples: Sequence[types.Example],
  num_cots: int,
  *,
  seed: int,
  purpose: str,
) -> list[types.CotSample]:
  """CoTs of the examples, in order; an example's CoTs stand together.

  Args:
    engine: of the run.
    setup: of the run.
    params: the whole model.
    examples: whose prompts are sampled from.
    num_cots: CoTs per example.
    seed: of the run.
    purpose: keeps the randomness of different uses apart.

  Returns:
    len(examples) * num_cots samples.
  """
  requests = [
    engine_lib.CotRequest(e.example_id, c, prompt)
    for e in examples
    for prompt in [setup.tokenizer.prompt_ids(e.prompt)]
    for c in range(num_cots)
  ]
  return engine.sample(params, requests, seed, purpose)


def score_given(
  engine: engine_lib.Engine,
  params: types.PyTree,
  example_ids: Sequence[str],
  sequences: Sequence[np.ndarray],
) -> list[types.CotSample]:
  """Score distributions after given tokens, nothing sampled.

  Args:
    engine: of the run.
    params: the whole model.
    example_ids: of the sequences.
    sequences: tokens right up to the score.

  Returns:
    A sample without tokens for each sequence.
  """
  probs, greedy = engine.score(params, sequences)
  return [
    types.CotSample(
      example_id=example_id,
      cot_index=0,
      tokens=np.zeros(0, np.int32),
      num_sampled_tokens=0,
      finish_reason='marker' if np.isfinite(row).all() else 'non_finite',
      score_probs=row,
      greedy_token=int(token),
    )
    for example_id, row, token in zip(example_ids, probs, greedy, strict=True)
  ]


def endings(samples: Sequence[types.CotSample]) -> str:
  """How many CoTs ended for which reason, for a line of progress."""
  reasons = Counter(s.finish_reason for s in samples)
  counts = ', '.join(f'{k} {n}' for k, n in sorted(reasons.items()))
  return f'ended by: {counts}'


def num_tokens(samples: Sequence[types.CotSample]) -> int:
  """Tokens that the model wrote in these samples."""
  return sum(s.num_sampled_tokens for s in samples)
