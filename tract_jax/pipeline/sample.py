"""Draws CoTs with their score distributions for examples, for any purpose."""

from collections import Counter
from collections.abc import Callable, Sequence
import functools

import numpy as np

from tract_jax import types
from tract_jax.pipeline import build, read_data
from tract_jax.sampling import engine as engine_lib
from tract_jax.training import loop


class Sampler:
  """A run's engines, each compiled once, and its wish to stop.

  Attributes:
    setup: of the run.
    should_stop: asked after each batch of rows.
  """

  def __init__(self, setup: build.Setup, should_stop: Callable[[], bool]):
    self.setup = setup
    self.should_stop = should_stop

  @functools.cached_property
  def _cot_engine(self) -> engine_lib.Engine:
    return build.make_engine(self.setup, with_cot=True)

  @functools.cached_property
  def _bare_engine(self) -> engine_lib.Engine:
    return build.make_engine(self.setup, with_cot=False)

  def cots(
    self,
    params: types.PyTree,
    examples: Sequence[types.Example],
    num_cots: int,
    *,
    seed: int,
    purpose: str,
    max_length: int | None = None,
  ) -> list[types.CotSample]:
    """CoTs of the examples, in order; an example's CoTs stand together.

    Args:
      params: the whole model.
      examples: whose prompts are sampled from.
      num_cots: CoTs per example.
      seed: of the run.
      purpose: keeps the randomness of different uses apart.
      max_length: most tokens of prompt, CoT and score together; None: as many
        as the longest prompt and CoT that the configuration allows.

    Returns:
      len(examples) * num_cots samples, by sampling_id where there is one.

    Raises:
      loop.Interrupted: the run was asked to stop.
    """
    requests = [
      engine_lib.CotRequest(e.sampling_id or e.example_id, c, prompt)
      for e in examples
      for prompt in [self.setup.tokenizer.prompt_ids(e.prompt)]
      for c in range(num_cots)
    ]
    return self._cot_engine.sample(
      params,
      requests,
      seed,
      purpose,
      on_progress=lambda done: loop.stop_if(self.should_stop, 'amid sampling'),
      max_length=max_length,
    )

  def given(
    self,
    params: types.PyTree,
    examples: Sequence[types.Example],
    with_cot: bool,
  ) -> list[types.CotSample]:
    """Score distributions after the examples' own CoTs; nothing is sampled.

    Args:
      params: the whole model.
      examples: the rows.
      with_cot: whether the score follows the example's CoT, or the prompt.

    Returns:
      A sample without tokens for each example.
    """
    sequences = read_data.before_score(self.setup, examples, with_cot)
    engine = self._cot_engine if with_cot else self._bare_engine
    probs, greedy = engine.score(params, sequences)
    return [
      types.CotSample(
        example_id=example.example_id,
        cot_index=0,
        tokens=np.zeros(0, np.int32),
        num_sampled_tokens=0,
        finish_reason=_finish_reason(
          row, len(tokens) <= engine.longest_context
        ),
        score_probs=row,
        greedy_index=int(index),
      )
      for example, tokens, row, index in zip(
        examples, sequences, probs, greedy, strict=True
      )
    ]


def endings(samples: Sequence[types.CotSample]) -> str:
  """How many CoTs ended for which reason, for a line of progress."""
  reasons = Counter(s.finish_reason for s in samples)
  counts = ', '.join(f'{k} {n}' for k, n in sorted(reasons.items()))
  return f'ended by: {counts}'


def num_tokens(samples: Sequence[types.CotSample]) -> int:
  """Tokens that the model wrote in these samples."""
  return sum(s.num_sampled_tokens for s in samples)


def _finish_reason(probs: np.ndarray, fits: bool) -> str:
  if np.isfinite(probs).all():
    return 'marker'
  return 'non_finite' if fits else 'too_long'
