"""The host side of sampling: what each slot has written, and does next.

A CoT's life in its slot:

    sampling --marker, all agrees with the prefix--------------> finished
       |-----marker, else---------> closing: tokens are forced --> finished
       |-----limit or end token---> closing: fixed words forced -> finished
       |-----the same, given up----------------------------------> finished
       '-----logits not finite-----------------------------------> finished

Slots are only looked at one by one when something may have ended their CoT; all
else is numpy on all slots.

Axes: B slots, Y score grid, F forced tokens per slot.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from tract_jax.sampling import cot_end, decode_loop


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a finished CoT is; see `types.CotSample` for the fields.

  Scores of several tokens are not read yet: `score_probs` has no entries.

  Attributes:
    has_score: whether the score's place was reached, and is finite.
  """

  tokens: np.ndarray
  num_sampled_tokens: int
  finish_reason: str
  score_probs: np.ndarray
  greedy_index: int
  has_score: bool


def ends(
  prompts: Mapping[int, np.ndarray],
  outcomes: Mapping[int, Outcome],
  num_slots: int,
) -> tuple[np.ndarray, np.ndarray]:
  """The last token before each slot's score, and how many there are up to it.

  Args:
    prompts: tokens of each slot's prompt.
    outcomes: of the finished slots.
    num_slots: B; those that are not finished count as slots of one token.

  Returns:
    ([B], [B]) int32.
  """
  last, lengths = np.zeros(num_slots, np.int32), np.ones(num_slots, np.int32)
  for slot, outcome in outcomes.items():
    tokens = np.concatenate([prompts[slot], outcome.tokens])
    last[slot], lengths[slot] = tokens[-1], len(tokens)
  return last, lengths


def scored(
  outcome: Outcome, score_probs: np.ndarray, greedy_index: int, finite: bool
) -> Outcome:
  """An outcome with the distribution over scores that was read after it.

  Args:
    outcome: of a finished CoT.
    score_probs: [Y] float32.
    greedy_index: the score that greedy decoding writes, or -1.
    finite: whether the logits were finite.

  Returns:
    The outcome, "non_finite" where the reading was; with NaN and -1 where there
    is no score.
  """
  if outcome.has_score and not finite:
    outcome = dataclasses.replace(
      outcome, finish_reason='non_finite', has_score=False
    )
  if not outcome.has_score:
    score_probs, greedy_index = np.full_like(score_probs, np.nan), -1
  return dataclasses.replace(
    outcome, score_probs=score_probs, greedy_index=int(greedy_index)
  )


class SlotTracker:
  """The CoTs that are being written, from their prompts to their scores.

  Attributes:
    control: what the next call is asked to do; changed in place.
  """

  def __init__(
    self,
    *,
    num_slots: int,
    max_new_tokens: int,
    cot_format: cot_end.CotFormat,
    marker_filter: cot_end.MarkerFilter,
    encode_text: cot_end.EncodeText,
    decode_text: cot_end.DecodeText,
  ):
    """Makes a tracker of empty slots.

    Args:
      num_slots: B.
      max_new_tokens: the most tokens that a CoT may have.
      cot_format: what a CoT ends with.
      marker_filter: which slots are worth decoding.
      encode_text: tokens of a text in the middle of a line.
      decode_text: text of any token list.
    """
    num_forced = len(cot_format.lead_ids)
    # A CoT's own tokens, then at most `lead_ids`, and a token for the score.
    width = max_new_tokens + num_forced + 1
    self._format = cot_format
    self._filter = marker_filter
    self._encode_text = encode_text
    self._decode_text = decode_text
    self._limits = np.zeros(num_slots, np.int32)
    self._is_completed = np.zeros(num_slots, bool)
    self.control = decode_loop.Control(
      key_data=np.zeros((num_slots, 2), np.uint32),
      prompt_lengths=np.zeros(num_slots, np.int32),
      starts=np.zeros(num_slots, np.int32),
      stops=np.zeros(num_slots, np.int32),
      forced_ids=np.zeros((num_slots, num_forced), np.int32),
      forced_starts=np.zeros(num_slots, np.int32),
      forced_counts=np.zeros(num_slots, np.int32),
    )
    self._tokens = np.zeros((num_slots, width), np.int32)
    self._greedy_indices = np.zeros((num_slots, width), np.int32)
    self._finite = np.zeros((num_slots, width), bool)
    grid_size = len(cot_format.score_ids)
    self._score_probs = np.zeros((num_slots, width, grid_size), np.float32)
    self._ends: dict[int, cot_end.CotEnd] = {}
    self._closing: dict[int, tuple[cot_end.Ending, str]] = {}
    self._outcomes: dict[int, Outcome] = {}

  def start(
    self,
    slot: int,
    *,
    prompt_length: int,
    limit: int,
    key_data: np.ndarray,
    is_completed: bool,
  ) -> None:
    """Begins a CoT in an empty slot that holds its prompt.

    Args:
      slot: its number.
      prompt_length: in tokens.
      limit: tokens that the CoT may have, at least 1.
      key_data: [2] uint32.
      is_completed: whether a CoT without marker gets the fixed words and a
        score; if not, it ends where the model ended it.
    """
    control = self.control
    control.key_data[slot] = key_data
    control.prompt_lengths[slot] = prompt_length
    control.starts[slot] = 0
    control.stops[slot] = self._limits[slot] = limit
    control.forced_counts[slot] = 0
    self._is_completed[slot] = is_completed

  def take_outcomes(self) -> dict[int, Outcome]:
    """The CoTs that were finished since the last call, by slot, now empty."""
    outcomes, self._outcomes = self._outcomes, {}
    return outcomes

  def absorb(self, records: decode_loop.StepRecords) -> None:
    """Takes in what a call recorded, and decides how each goes on.

    Args:
      records: of the call that was given `control`, fetched to the host.
    """
    written = self.control.starts
    is_new = np.arange(len(records.tokens))[:, None] < records.counts
    steps, slots = np.nonzero(is_new)
    columns = written[slots] + steps
    self._tokens[slots, columns] = records.tokens[steps, slots]
    self._greedy_indices[slots, columns] = records.greedy_indices[steps, slots]
    self._finite[slots, columns] = records.finite[steps, slots]
    self._score_probs[slots, columns] = records.score_probs[steps, slots]
    written += records.counts

    has_run = records.counts > 0
    last = np.maximum(written - 1, 0)
    all_slots = np.arange(len(written))
    is_over = (
      (written >= self._limits)
      | (self._tokens[all_slots, last] == self._format.eos_id)
      | ~self._finite[all_slots, last]
    )
    may_end = self._filter.may_end(records.tokens) & is_new
    is_worth_a_look = may_end.any(axis=0) | is_over
    is_worth_a_look[[*self._ends, *self._closing]] = True
    for slot in np.flatnonzero(has_run & is_worth_a_look).tolist():
      ends = np.flatnonzero(may_end[:, slot]) + written[slot] + 1
      ends -= records.counts[slot]
      self._settle(slot, bool(is_over[slot]), ends.tolist())

  def _settle(self, slot: int, is_over: bool, ends: Sequence[int]) -> None:
    """Decides how a slot goes on; `ends` are lengths at which it may end."""
    if slot in self._closing:
      ending, reason = self._closing[slot]
      if self.control.starts[slot] > ending.score_index:
        self._finish(slot, ending, reason)
      return
    num_written = int(self.control.starts[slot])
    is_finite = bool(self._finite[slot, num_written - 1])
    has_eos = bool(self._tokens[slot, num_written - 1] == self._format.eos_id)
    num_tokens = num_written - int(has_eos or not is_finite)
    tokens = self._tokens[slot, :num_tokens].tolist()
    end = self._ends.get(slot) or self._find_end(tokens, is_over, ends)
    if end is not None:
      self._settle_marker(slot, tokens, end, is_over)
    elif is_over and not is_finite:
      self._finish(slot, cot_end.Ending(num_tokens, ()), 'non_finite', False)
    elif is_over:
      reason = 'end_token' if has_eos else 'length'
      if not self._is_completed[slot]:
        self._finish(slot, cot_end.Ending(num_tokens, ()), reason, False)
        return
      ending = cot_end.ending_without_marker(
        tokens, self._format, self._decode_text
      )
      self._close(slot, ending, reason)

  def _settle_marker(
    self, slot: int, tokens: list[int], end: cot_end.CotEnd, is_over: bool
  ) -> None:
    ending = cot_end.ending_after_marker(
      tokens, end, is_over, self._format, self._encode_text, self._decode_text
    )
    if ending is None:
      # Looked at again when there are more tokens.
      self._ends[slot] = end
    else:
      self._close(slot, ending, 'marker')

  def _find_end(
    self, tokens: list[int], is_over: bool, ends: Sequence[int]
  ) -> cot_end.CotEnd | None:
    for end in ends:
      # An end token has been taken off `tokens`.
      if end <= len(tokens) and self._filter.may_hold(tokens[:end]):
        found = cot_end.find_cot_end(
          tokens[:end], self._format.marker, self._decode_text
        )
        if found:
          return found
    # The filter may have missed it: read the whole text once.
    return (
      cot_end.find_cot_end(tokens, self._format.marker, self._decode_text)
      if is_over
      else None
    )

  def _close(self, slot: int, ending: cot_end.Ending, reason: str) -> None:
    """Has the rest up to the score written, if the score is not there yet."""
    control = self.control
    self._ends.pop(slot, None)
    if not ending.forced_ids and control.starts[slot] > ending.score_index:
      self._finish(slot, ending, reason)
      return
    # Without forced tokens the slot has just reached the score's place and is
    # not rewound, so its hidden state is right.
    num_forced = len(ending.forced_ids)
    control.forced_ids[slot, :num_forced] = ending.forced_ids
    control.forced_starts[slot] = control.starts[slot] = ending.num_kept
    control.forced_counts[slot] = num_forced
    control.stops[slot] = ending.score_index + 1
    self._closing[slot] = ending, reason

  def _finish(
    self,
    slot: int,
    ending: cot_end.Ending,
    reason: str,
    has_score: bool = True,
  ) -> None:
    place = ending.score_index
    if has_score and not self._finite[slot, place]:
      reason, has_score = 'non_finite', False
    probs, greedy_index = self._score_probs[slot, place].copy(), -1
    if has_score:
      greedy_index = int(self._greedy_indices[slot, place])
    else:
      probs[:] = np.nan
    self._outcomes[slot] = Outcome(
      tokens=self._tokens[slot, :place].copy(),
      num_sampled_tokens=ending.num_kept,
      finish_reason=reason,
      score_probs=probs,
      greedy_index=greedy_index,
      has_score=has_score,
    )
    self._closing.pop(slot, None)
    # An empty slot, of no length, so that its cache is not read.
    for numbers in (self.control.prompt_lengths, self.control.starts):
      numbers[slot] = 0
    self.control.stops[slot] = 0
