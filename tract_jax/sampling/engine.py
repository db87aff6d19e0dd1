"""Sampling CoTs in slots, and reading the score's distribution with them.

In: a model as pure functions, its params, prompts as token ids. Out: a CoT per
request with the distribution over the score grid where it ends, from the same
pass: nothing is computed twice, and one model gives both.

    requests -> prompt_queue -> prefill, once for all CoTs of an input
      -> insert into free slots -> decode_loop, some steps a call, all slots
      <-> slot_tracker -> types.CotSample; the slot takes the next prompt

A CoT depends on its prompt and on a key folded from (seed, purpose, example id,
CoT index, failed attempts) and the token's index, and not on its slot, what the
other slots do, the order or the host: bit for bit on one kind of device. For
each prompt is read in a shape that its own length decides, a slot's attention
runs over blocks that the others do not change, and products are those of tiles
of 16 slots. With more, products are summed in another order: rounding differs,
and may, rarely, tip a draw that lies on the border of two tokens.

Axes: B slots, L prompt length, V vocabulary, Y score grid.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import itertools

import jax
import numpy as np

from tract_jax import numerics, types
from tract_jax.parallel import row_placement
from tract_jax.sampling import (
  cot_end,
  decode_loop,
  prompt_queue,
  score_reading,
  slot_pool,
  slot_tracker,
)
from tract_jax.sampling import logits as logits_lib
from tract_jax.sampling import requests as requests_lib

# Arguments of `Engine`, defined beside what they mean.
CotFormat = cot_end.CotFormat
CotRequest = requests_lib.CotRequest
Progress = requests_lib.Progress
SamplingParams = logits_lib.SamplingParams

# What becomes of a CoT without marker whose retries are used up.
UNFINISHED = ('complete', 'drop')

_FAILED = ('length', 'end_token', 'non_finite')


class Engine:
  """A sampler of CoTs with a key-value cache of slots.

  A CoT ends with the marker's first occurrence in its text. Where the model
  does not go on as a target does (another spelling up to the score, an end
  token or the length limit without marker), the slot is taken back to the last
  token that fits, and the rest is written for it.

  Nothing is compiled before its first use.

  Args:
    fns: the model. Its `decode` must drop the token of a row whose cache is
      full.
    sampling: how tokens are drawn.
    cot_format: what a CoT ends with.
    encode_text: tokens of a text in the middle of a line, no special ones.
    decode_text: text of a token list; a longer list's text begins with it,
      but for an unfinished character.
    slots: CoTs that are written together, at most: fewer CoTs get fewer. Each
      takes its share of the cache; up to 16 take the same time.
    max_length: most tokens of prompt, CoT, fixed words and score together.
    steps_per_call: tokens per row between two looks at the text. More wastes
      steps after a CoT's end, fewer costs more calls.
    length_multiple: prompts are padded to multiples of it, each compiled
      once.
    prefill_tokens: prompts are read in batches of about so many tokens, at
      least one prompt at a time.
    num_valid_tokens: tokens that the tokenizer knows; the embedding's rows
      after them are padding and never sampled. None: V.
    max_retries: how often a CoT that ends without marker, or for logits that
      are not finite, is sampled again, with another key each time.
    unfinished: "complete" writes the fixed words behind a CoT that then still
      has no marker; "drop" gives it up.
    placement: how slots and prompts are spread over devices. Default: where
      JAX puts them.

  Attributes:
    num_slots: CoTs that are written together at most.
    buckets: the shapes in which prompts are read.
    fns: what works on the slots, compiled when it is used.

  Raises:
    ValueError: a token that the model does not have, a size below 1, or an
      unknown word for `unfinished`.

  Example:
    engine = Engine(fns, sampling, cot_format, encode, decode, slots=16,
                    max_length=4096)
    for number, sample in engine.stream(params, requests, seed, 'self_cot'):
      ...
  """

  def __init__(
    self,
    fns: types.ModelFns,
    sampling: SamplingParams,
    cot_format: CotFormat,
    encode_text: cot_end.EncodeText,
    decode_text: cot_end.DecodeText,
    *,
    slots: int,
    max_length: int,
    steps_per_call: int = 8,
    length_multiple: int = 64,
    prefill_tokens: int = 1024,
    num_valid_tokens: int | None = None,
    max_retries: int = 0,
    unfinished: str = 'complete',
    placement: row_placement.RowPlacement = row_placement.ONE_DEVICE,
  ):
    if num_valid_tokens is None:
      num_valid_tokens = fns.vocab_size
    cot_format.check_tokens(num_valid_tokens, fns.vocab_size)
    _check_sizes(
      slots=slots,
      max_length=max_length,
      steps_per_call=steps_per_call,
      length_multiple=length_multiple,
      prefill_tokens=prefill_tokens,
      # None is fine.
      max_retries=max_retries + 1,
    )
    if unfinished not in UNFINISHED:
      raise ValueError(f'unfinished={unfinished!r}: not one of {UNFINISHED}')
    self._format = cot_format
    self._max_new_tokens = sampling.max_new_tokens
    self._encode_text = encode_text
    self._decode_text = decode_text
    self.num_slots = slots
    self._max_length = max_length
    self._cache_block = fns.cache_block
    # Greedy decoding would write the same once more.
    self._max_retries = max_retries if sampling.temperature else 0
    self._unfinished = unfinished
    self._placement = placement
    self.buckets = prompt_queue.Buckets(
      length_multiple,
      max_length,
      prefill_tokens,
      placement.multiple,
      cot_format.pad_id,
    )
    self._filter = cot_end.MarkerFilter(cot_format.marker, decode_text)
    score = score_reading.make_score(fns, cot_format, num_valid_tokens)
    self._score = jax.jit(placement.map(score, (0, 0), 0))
    self.fns = slot_pool.make_slot_fns(
      fns, sampling, cot_format, steps_per_call, num_valid_tokens, placement
    )

  @property
  def longest_context(self) -> int:
    """Most tokens before a score that leave room for the longest one."""
    return self._max_length - self._format.longest_score

  def sample(
    self,
    params: types.PyTree,
    requests: Sequence[CotRequest],
    seed: int,
    purpose: str,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    max_length: int | None = None,
  ) -> list[types.CotSample]:
    """Samples a CoT for each request; see `stream`.

    Returns:
      Samples in the order of the requests.
    """
    numbered = self.stream(
      params,
      requests,
      seed,
      purpose,
      on_progress=on_progress,
      max_length=max_length,
    )
    samples = dict(numbered)
    return [samples[i] for i in range(len(requests))]

  def stream(
    self,
    params: types.PyTree,
    requests: Sequence[CotRequest],
    seed: int,
    purpose: str,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    max_length: int | None = None,
    num_in_all: int | None = None,
  ) -> Iterator[tuple[int, types.CotSample]]:
    """Samples a CoT for each request and reads its score distribution.

    Args:
      params: the model's.
      requests: (example_id, cot_index) tells their keys apart. Those with the
        same prompt that stand together share its prefill. They are begun in
        about this order; neighbours of similar length are read the fastest.
      seed: of the run.
      purpose: keeps keys of different uses apart, such as "self_cot".
      on_progress: is told the progress after each call of the device.
      max_length: most tokens of prompt, CoT, fixed words and score together,
        where it is to be less than the engine's.
      num_in_all: CoTs of the whole work, which may use that many slots.

    Yields:
      (number of the request, its sample), each as soon as it is finished.
      Prompts that leave no room for a token, the fixed words and the score are
      "too_long"; a row whose logits are not finite before its score is known,
      in its last attempt, is "non_finite"; both, and CoTs that are dropped,
      have NaN for score_probs and -1 for greedy_index, and do not disturb the
      others.

    Raises:
      ValueError: an empty prompt, or a format without marker.
    """
    lengths = _lengths([request.prompt_ids for request in requests])
    limits = self._limits(lengths, max_length or self._max_length)
    num_scores = len(self._format.score_sequences)
    reasons = Counter[str]()
    for i in np.flatnonzero(limits < 1).tolist():
      reasons['too_long'] += 1
      yield i, requests_lib.too_long(requests[i], num_scores)
    if (limits < 1).all():
      return
    slots = self._slots_for(num_in_all or len(requests))
    pool = self._pool(params, requests, lengths, limits, seed, purpose, slots)
    while pool.has_work:
      pool.refill()
      finished = []
      for attempt, outcome in pool.decode():
        if self._is_retried(attempt, outcome):
          pool.retry(attempt)
          continue
        reasons[outcome.finish_reason] += 1
        sample = _sample(requests[attempt.index], attempt, outcome)
        finished.append((attempt.index, sample))
      if on_progress:
        on_progress(pool.progress(reasons))
      yield from finished

  def _is_retried(
    self, attempt: prompt_queue.Attempt, outcome: slot_tracker.Outcome
  ) -> bool:
    return (
      outcome.finish_reason in _FAILED
      and attempt.num_retries < self._max_retries
    )

  def _limits(self, lengths: np.ndarray, max_length: int) -> np.ndarray:
    """[n] tokens that each CoT may have; below 1 where there is no room."""
    if not self._format.marker:
      raise ValueError('CotFormat.marker is empty: there is no CoT to sample')
    most = min(max_length, self._max_length)
    room = most - len(self._format.lead_ids) - self._format.longest_score
    return np.minimum(self._max_new_tokens, room - lengths)

  def score(
    self, params: types.PyTree, sequences: Sequence[np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads the score's distribution after given tokens; samples nothing.

    Args:
      params: the model's.
      sequences: token ids [l] up to the score: prompts of a method without
        CoT with `prefix_ids`, or prompts with CoT and fixed words.

    Returns:
      score_probs [n, Y] float32 and greedy_indices [n] int32, as in
      `types.CotSample`. NaN and -1 for a sequence that leaves no room for the
      score, or whose logits are not finite.

    Raises:
      ValueError: an empty sequence.
    """
    num_scores = len(self._format.score_sequences)
    score_probs = np.full((len(sequences), num_scores), np.nan, np.float32)
    greedy_indices = np.full(len(sequences), -1, np.int32)
    lengths = _lengths(sequences)
    for batch in self._batches(lengths):
      rows = self.buckets.padded([sequences[i] for i in batch])
      probs, greedy, finite = jax.device_get(
        self._score(params, *self._placement.place(rows))
      )
      n = len(batch)
      score_probs[batch] = np.where(finite[:n, None], probs[:n], np.nan)
      greedy_indices[batch] = np.where(finite[:n], greedy[:n], -1)
    return score_probs, greedy_indices

  def _batches(self, lengths: np.ndarray) -> Iterator[list[int]]:
    """Numbers of sequences of one bucket, as many as are read together."""
    order = np.argsort(lengths, kind='stable')
    order = order[lengths[order] <= self.longest_context]
    by_bucket = itertools.groupby(
      order.tolist(), key=lambda i: self.buckets.length(int(lengths[i]))
    )
    for bucket, group in by_bucket:
      numbers, size = list(group), self.buckets.num_rows(bucket)
      for start in range(0, len(numbers), size):
        yield numbers[start : start + size]

  def _slots_for(self, num_cots: int) -> int:
    """Slots that so many CoTs can use, as one of a few numbers."""
    num_slots = numerics.TILE * self.buckets.row_multiple
    while num_slots < num_cots:
      num_slots *= 2
    return min(num_slots, self.num_slots)

  def _pool(
    self, params, requests, lengths, limits, seed, purpose, num_slots
  ) -> slot_pool.SlotPool:
    """Slots with just the room that the longest request needs."""
    num_added = len(self._format.lead_ids) + self._format.longest_score
    is_wanted = limits > 0
    room = int((lengths + limits)[is_wanted].max()) + num_added
    longest = max(room, self.buckets.length(int(lengths[is_wanted].max())))
    return slot_pool.SlotPool(
      self.fns,
      params,
      requests=requests,
      limits=limits,
      key_data=lambda attempt: requests_lib.key_data(
        seed, purpose, requests[attempt.index], attempt.num_retries
      ),
      is_completed=lambda attempt: (
        attempt.num_retries == self._max_retries
        and self._unfinished == 'complete'
      ),
      buckets=self.buckets,
      tracker=self.make_tracker(num_slots),
      num_slots=num_slots,
      cache_length=self.cache_length(longest),
      placement=self._placement,
    )

  def make_tracker(
    self, num_slots: int | None = None
  ) -> slot_tracker.SlotTracker:
    """Empty slots, as many as are computed together for so many, or for all."""
    multiple = self.buckets.row_multiple
    return slot_tracker.SlotTracker(
      num_slots=-(-(num_slots or self.num_slots) // multiple) * multiple,
      max_new_tokens=self._max_new_tokens,
      cot_format=self._format,
      marker_filter=self._filter,
      encode_text=self._encode_text,
      decode_text=self._decode_text,
    )

  def cache_length(self, longest: int) -> int:
    """Entries of a cache that is to hold rows of so many tokens."""
    return decode_loop.cache_length(
      longest, self._max_length, self._cache_block
    )


def _check_sizes(**sizes: int) -> None:
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f'{name}={size}: too small')


def _lengths(sequences: Sequence[np.ndarray]) -> np.ndarray:
  """[n] int32; raises ValueError for an empty sequence."""
  lengths = np.asarray([len(sequence) for sequence in sequences], np.int32)
  if (lengths == 0).any():
    raise ValueError(f'sequence {int(np.argmin(lengths))}: has no tokens')
  return lengths


def _sample(
  request: CotRequest,
  attempt: prompt_queue.Attempt,
  outcome: slot_tracker.Outcome,
) -> types.CotSample:
  return types.CotSample(
    example_id=request.example_id,
    cot_index=request.cot_index,
    tokens=outcome.tokens,
    num_sampled_tokens=outcome.num_sampled_tokens,
    finish_reason=outcome.finish_reason,
    score_probs=outcome.score_probs,
    greedy_index=outcome.greedy_index,
    num_retries=attempt.num_retries,
  )
