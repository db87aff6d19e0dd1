"""The slots while they work: filled from the queue, decoded all together.

    queue --prefill--> prompts that were read --insert--> slots --> outcomes

Axes: B slots, P prompts of a prefill.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import time

import jax
import numpy as np

from tract_jax import types
from tract_jax.parallel import row_placement, tpu_options
from tract_jax.sampling import (
  cot_end,
  decode_loop,
  prompt_queue,
  score_reading,
  slot_tracker,
)
from tract_jax.sampling import logits as logits_lib
from tract_jax.sampling import requests as requests_lib

Attempt = prompt_queue.Attempt


@dataclasses.dataclass(frozen=True)
class SlotFns:
  """The compiled functions that work on slots.

  Attributes:
    empty_state: (params, num_slots, cache_length) -> DecodeState.
    prefill: of decode_loop.make_prefill.
    insert: decode_loop.insert; the state is donated.
    decode_steps: of decode_loop.make_decode_steps; the state is donated.
    read_tree: of score_reading.make_read_tree; None where scores are of one
      token.
  """

  empty_state: Callable[..., decode_loop.DecodeState]
  prefill: Callable[..., decode_loop.DecodeState]
  insert: Callable[..., decode_loop.DecodeState]
  decode_steps: Callable[..., tuple]
  read_tree: Callable[..., tuple] | None


def make_slot_fns(
  fns: types.ModelFns,
  sampling: logits_lib.SamplingParams,
  cot_format: cot_end.CotFormat,
  steps_per_call: int,
  num_valid_tokens: int,
  placement: row_placement.RowPlacement,
) -> SlotFns:
  """What works on slots, compiled when it is used.

  Args:
    fns: the model.
    sampling: how tokens are drawn.
    cot_format: what a CoT ends with.
    steps_per_call: tokens per slot of a call of decode_steps.
    num_valid_tokens: tokens that the tokenizer knows.
    placement: of the slots.

  Returns:
    The functions.
  """
  slots = decode_loop.STATE_AXES
  new_prompts = decode_loop.make_prefill(fns)
  decode_steps = decode_loop.make_decode_steps(
    fns,
    sampling,
    cot_format,
    num_steps=steps_per_call,
    num_valid_tokens=num_valid_tokens,
  )
  records = decode_loop.RECORD_AXES
  decode_steps = placement.map(decode_steps, (slots, 0), (slots, records))
  make_empty = decode_loop.make_empty_state(new_prompts)

  # Split alike before and after each call: no device ever holds all slots, and
  # each function is compiled once.
  def empty_state(*args):
    return placement.split(make_empty(*args), slots)

  def insert(*args):
    return placement.split(decode_loop.insert(*args), slots)

  def decode(*args):
    state, recorded = decode_steps(*args)
    return placement.split(state, slots), recorded

  return SlotFns(
    empty_state=jax.jit(empty_state, static_argnums=(1, 2)),
    prefill=jax.jit(
      placement.map(new_prompts, (0, 0), slots),
      compiler_options=placement.compiler_options(tpu_options.PREFILL),
    ),
    insert=jax.jit(insert, donate_argnums=0),
    decode_steps=jax.jit(
      decode,
      donate_argnums=1,
      compiler_options=placement.compiler_options(tpu_options.DECODING),
    ),
    read_tree=_make_read_tree(fns, cot_format, num_valid_tokens, placement),
  )


def _make_read_tree(fns, cot_format, num_valid_tokens, placement):
  """Of `SlotFns`; None where each score is one token."""
  if cot_format.score_tree is None:
    return None
  read_tree = score_reading.make_read_tree(
    fns, cot_format.score_tree, num_valid_tokens
  )
  axes = decode_loop.STATE_AXES.cache, 0, 0
  return jax.jit(placement.map(read_tree, axes, 0))


@dataclasses.dataclass
class Counts:
  """Figures so far; see `requests.Progress`."""

  prefill_tokens: int = 0
  prefill_secs: float = 0.0
  decode_tokens: int = 0
  decode_secs: float = 0.0
  slot_steps: int = 0
  num_retries: int = 0


class SlotPool:
  """The slots of one call of `Engine.stream`.

  Attributes:
    counts: what was done so far.
  """

  def __init__(
    self,
    fns: SlotFns,
    params: types.PyTree,
    *,
    requests: Sequence[requests_lib.CotRequest],
    limits: np.ndarray,
    key_data: Callable[[Attempt], np.ndarray],
    is_completed: Callable[[Attempt], bool],
    buckets: prompt_queue.Buckets,
    tracker: slot_tracker.SlotTracker,
    num_slots: int,
    cache_length: int,
    placement: row_placement.RowPlacement,
  ):
    """Makes empty slots, with all requests that have room for a CoT waiting.

    Args:
      fns: what works on slots.
      params: the model's.
      requests: in the order in which they are taken.
      limits: [n] tokens that each request's CoT may have.
      key_data: [2] uint32 of an attempt.
      is_completed: whether an attempt without marker gets the fixed words.
      buckets: the shapes in which prompts are read.
      tracker: of B slots, all empty.
      num_slots: how many of them are used.
      cache_length: entries that each slot has room for.
      placement: of slots and prompts.
    """
    self._fns = fns
    self._params = params
    self._requests = requests
    self._limits = limits
    self._key_data = key_data
    self._is_completed = is_completed
    self._buckets = buckets
    self._tracker = tracker
    self._placement = placement
    self._num_slots = num_slots
    self._num_rows = len(tracker.control.starts)
    self._queue = prompt_queue.PromptQueue(buckets)
    wanted = np.flatnonzero(limits > 0).tolist()
    self._queue.add(
      [Attempt(i) for i in wanted],
      [requests[i].prompt_ids for i in wanted],
    )
    self._free = list(range(num_slots))
    self._working: dict[int, Attempt] = {}
    # What was read and not yet copied: (row, attempt).
    self._prompts: decode_loop.DecodeState | None = None
    self._ready = collections.deque[tuple[int, Attempt]]()
    self._state = fns.empty_state(params, self._num_rows, cache_length)
    self.counts = Counts()

  @property
  def has_work(self) -> bool:
    """Whether a CoT is being written, or waits."""
    return bool(self._working or self._ready or self._queue)

  def progress(
    self, reasons: collections.Counter[str]
  ) -> requests_lib.Progress:
    """How far the pool is.

    Args:
      reasons: of the finished samples.
    """
    return requests_lib.Progress(
      num_done=reasons.total(),
      num_total=len(self._requests),
      num_slots=self._num_slots,
      finish_reasons=dict(reasons),
      **vars(self.counts),
    )

  def retry(self, attempt: Attempt) -> None:
    """Puts a failed attempt's next one at the head of the queue."""
    self.counts.num_retries += 1
    again = Attempt(attempt.index, attempt.num_retries + 1)
    length = len(self._requests[attempt.index].prompt_ids)
    self._queue.add_first(again, length)

  def refill(self) -> None:
    """Gives every free slot a prompt, as long as there are any."""
    begin = time.perf_counter()
    while self._free and (self._ready or self._queue):
      if not self._ready:
        self._prefill()
      self._insert()
      # Waited for, so that reading and writing are timed apart.
      jax.block_until_ready(self._state.hidden)
      now = time.perf_counter()
      self.counts.prefill_secs += now - begin
      begin = now

  def decode(self) -> list[tuple[Attempt, slot_tracker.Outcome]]:
    """Writes some tokens in all slots.

    Returns:
      The CoTs that are finished; their slots are free again.
    """
    begin = time.perf_counter()
    control = self._placement.place(self._tracker.control)
    self._state, records = self._fns.decode_steps(
      self._params, self._state, control
    )
    records = jax.device_get(records)
    self._tracker.absorb(records)
    outcomes = self._with_tree_scores(self._tracker.take_outcomes())
    self.counts.decode_tokens += int(records.counts.sum())
    self.counts.slot_steps += int(records.counts.max()) * self._num_slots
    self.counts.decode_secs += time.perf_counter() - begin
    finished = []
    for slot, outcome in outcomes.items():
      finished.append((self._working.pop(slot), outcome))
      self._free.append(slot)
    return finished

  def _prefill(self) -> None:
    batch = self._queue.next_batch()
    prompts = [self._requests[group[0].index].prompt_ids for group in batch]
    padded = self._placement.place(self._buckets.padded(prompts))
    self._prompts = self._fns.prefill(self._params, *padded)
    for row, group in enumerate(batch):
      self._ready.extend((row, attempt) for attempt in group)
    self.counts.prefill_tokens += sum(map(len, prompts))

  def _insert(self) -> None:
    count = min(len(self._free), len(self._ready))
    rows, slots = np.zeros((2, self._num_rows), np.int32)
    for i in range(count):
      rows[i], attempt = self._ready.popleft()
      slots[i] = slot = self._free.pop()
      self._working[slot] = attempt
      self._tracker.start(
        slot,
        prompt_length=len(self._requests[attempt.index].prompt_ids),
        limit=int(self._limits[attempt.index]),
        key_data=self._key_data(attempt),
        is_completed=self._is_completed(attempt),
      )
    self._state = self._fns.insert(
      self._state, self._prompts, rows, slots, np.int32(count)
    )
    if not self._ready:
      self._prompts = None

  def _with_tree_scores(
    self, outcomes: dict[int, slot_tracker.Outcome]
  ) -> dict[int, slot_tracker.Outcome]:
    """Reads scores of several tokens, where there are, behind finished CoTs."""
    if self._fns.read_tree is None or not outcomes:
      return outcomes
    prompts = {
      slot: self._requests[self._working[slot].index].prompt_ids
      for slot in outcomes
    }
    ends = slot_tracker.ends(prompts, outcomes, self._num_rows)
    read = jax.device_get(
      self._fns.read_tree(
        self._params, self._state.cache, *self._placement.place(ends)
      )
    )
    return {
      slot: slot_tracker.scored(outcome, *(part[slot] for part in read))
      for slot, outcome in outcomes.items()
    }
