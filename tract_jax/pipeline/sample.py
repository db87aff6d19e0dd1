"""Draws CoTs with their score distributions for examples, for any purpose."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import math

import numpy as np

from tract_jax import types
from tract_jax.data import encoding, loader
from tract_jax.parallel import partition
from tract_jax.pipeline import (
  base_weights,
  build,
  interruption,
  loss_fn,
  progress,
  read_data,
)
from tract_jax.sampling import engine as engine_lib


class Sampler:
  """A run's engines, each compiled once, and its wish to stop.

  Attributes:
    setup: of the run.
    should_stop: asked after each call of the device.
  """

  def __init__(self, setup: build.Setup, should_stop: Callable[[], bool]):
    self.setup = setup
    self.should_stop = should_stop
    self._made: tuple[types.PyTree, types.PyTree] = (None, None)

  def forget(self) -> None:
    """Lets go of the last params, so that others have room."""
    self._made = (None, None)

  def _cot_params(self, params: types.PyTree) -> types.PyTree:
    """The params as CoTs are written with; made once for the same params."""
    if self._made[0] is not params:
      kind = self.setup.config.sampling.weights
      made = base_weights.cot_params(self.setup.model, params, kind)
      self._made = (params, made)
    return self._made[1]

  @functools.cached_property
  def _cot_engine(self) -> engine_lib.Engine:
    engine = build.make_engine(self.setup, with_cot=True)
    if not self.setup.config.sampling.slots:
      progress.say(
        f'sampling: at most {engine.num_slots} slots (config.sampling.slots=0)'
      )
    return engine

  @functools.cached_property
  def _bare_engine(self) -> engine_lib.Engine:
    return build.make_engine(self.setup, with_cot=False)

  @functools.cached_property
  def _cot_terms(self) -> Callable[..., types.LossTerms]:
    return loss_fn.make_cot_terms(
      self.setup.model,
      self.setup.cot_scores,
      chunk_size=self.setup.config.train.logit_chunk,
      mode=self.setup.config.mapping,
    )

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
    samples = self.chunks(
      params,
      [examples],
      num_cots,
      seed=seed,
      purpose=purpose,
      max_length=max_length,
    )
    return [s for _, rows in samples for of_row in rows for s in of_row]

  def chunks(
    self,
    params: types.PyTree,
    chunks: Sequence[Sequence[types.Example]],
    num_cots: int,
    *,
    seed: int,
    purpose: str,
    on_progress: Callable[[engine_lib.Progress], None] = lambda _: None,
    max_length: int | None = None,
    num_examples: int | None = None,
  ) -> Iterator[tuple[int, list[list[types.CotSample]]]]:
    """CoTs of chunks of examples, in one stream: no slot waits for a chunk.

    Args:
      params: the whole model.
      chunks: examples whose CoTs are wanted together.
      num_cots: CoTs per example.
      seed: of the run.
      purpose: keeps the randomness of different uses apart.
      on_progress: is told how far the sampling is.
      max_length: as for `cots`.
      num_examples: of the whole work, what was done before and what others do
        included: it goes on in as many slots as it began with. None: of the
        chunks.

    Yields:
      (number of the chunk, [its examples][num_cots] samples), as soon as the
      chunk is whole, in no particular order.

    Raises:
      loop.Interrupted: the run was asked to stop; chunks that were not whole
        are lost.
    """

    def on_call(done: engine_lib.Progress) -> None:
      on_progress(done)
      interruption.stop_if(self.should_stop, 'amid sampling')

    requests = [
      engine_lib.CotRequest(e.random_id, c, prompt)
      for chunk in chunks
      for e in chunk
      for prompt in [self.setup.tokenizer.prompt_ids(e.prompt)]
      for c in range(num_cots)
    ]
    stream = self._cot_engine.stream(
      self._cot_params(params),
      requests,
      seed,
      purpose,
      on_progress=on_call,
      max_length=max_length,
      num_in_all=None if num_examples is None else num_examples * num_cots,
    )
    sizes = [len(chunk) * num_cots for chunk in chunks]
    for number, samples in _whole(stream, sizes):
      starts = range(0, sizes[number], num_cots)
      yield number, [samples[start : start + num_cots] for start in starts]

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

  def cross_entropy(
    self,
    params: types.PyTree,
    examples: Sequence[types.Example],
    tokens: Sequence[np.ndarray] | None = None,
  ) -> float | None:
    """Mean cross-entropy of given CoTs under the model; nothing is sampled.

    - log p(s | x) over the number of tokens of s: of the CoT, the fixed words
      and the end token, as training has it. No processor of sampling (top-p,
      penalty, temperature) and no 8 bits of sampling take part.

    Args:
      params: the whole model.
      examples: the rows.
      tokens: [l] a CoT for each, up to its score; None: their own CoTs.

    Returns:
      Nats per token; None without rows, or where it is not finite.
    """
    setup = self.setup
    cots: Sequence[np.ndarray | None] = [None] * len(examples)
    if tokens is not None:
      cots = tokens
    encoded = [
      encoding.encode_example(example, setup.tokenizer, setup.cot_scores, cot)
      for example, cot in zip(examples, cots, strict=True)
    ]
    if not encoded:
      return None
    train, multiple = setup.config.train, setup.config.data.length_multiple
    longest = loader.static_size([len(e.inputs) for e in encoded], multiple)
    shards = partition.num_row_shards(setup.model.mesh)
    num_rows = -(-(train.micro_batch_size or train.batch_size) // shards)
    num_rows *= shards
    total, count = 0.0, 0.0
    for start in range(0, len(encoded), num_rows):
      batch = loader.make_batch(
        [[e] for e in encoded[start : start + num_rows]],
        batch_size=num_rows,
        length=min(longest, setup.model.config.longest_row),
        max_examples=1,
        num_scores=len(setup.grid.values),
      )
      terms = self._cot_terms(params, batch)
      total += float(terms.ce_sum)
      count += float(terms.ce_count)
    mean = total / count
    return mean if math.isfinite(mean) else None


def _whole(
  stream: Iterable[tuple[int, types.CotSample]], sizes: Sequence[int]
) -> Iterator[tuple[int, list[types.CotSample]]]:
  """(number of a chunk, its samples in order), once all of them are there.

  Args:
    stream: (index, sample); indices go on from chunk to chunk.
    sizes: samples of each chunk.
  """
  chunk_of = np.repeat(np.arange(len(sizes)), sizes)
  found: list[dict[int, types.CotSample]] = [{} for _ in sizes]
  for index, sample in stream:
    number = int(chunk_of[index])
    found[number][index] = sample
    if len(found[number]) == sizes[number]:
      samples, found[number] = found[number], {}
      yield number, [samples[i] for i in sorted(samples)]


def _finish_reason(probs: np.ndarray, fits: bool) -> str:
  if np.isfinite(probs).all():
    return 'marker'
  return 'non_finite' if fits else 'too_long'
