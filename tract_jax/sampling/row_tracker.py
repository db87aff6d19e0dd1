"""The host side of sampling: what each row of a batch has written, and is next.

A row's life:

    sampling --marker, all agrees with the prefix--------------> finished
       |-----marker, else---------> closing: tokens are forced --> finished
       |-----limit or end token---> closing: fixed words forced -> finished
       '-----logits not finite-----------------------------------> finished

Rows are only looked at one by one when something may have ended their CoT; all
else is numpy on whole batches.

Axes: B rows, Y score grid, F forced tokens per row.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from tract_jax.sampling import cot_end, decode_loop


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a finished row gives; see `types.CotSample` for the fields.

  Scores of several tokens are not read yet: `score_probs` has no entries.
  """

  tokens: np.ndarray
  num_sampled_tokens: int
  finish_reason: str
  score_probs: np.ndarray
  greedy_index: int


def ends(
  prompts: Sequence[np.ndarray], outcomes: Sequence[Outcome], num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
  """The last token before each row's score, and how many there are up to it.

  Args:
    prompts: tokens of each row's prompt.
    outcomes: of the rows.
    num_rows: B, at least as many; those that fill the batch have one token.

  Returns:
    ([B], [B]) int32.
  """
  last, lengths = np.zeros(num_rows, np.int32), np.ones(num_rows, np.int32)
  for row, outcome in enumerate(outcomes):
    tokens = np.concatenate([prompts[row], outcome.tokens])
    last[row], lengths[row] = tokens[-1], len(tokens)
  return last, lengths


def scored(
  outcome: Outcome, score_probs: np.ndarray, greedy_index: int, finite: bool
) -> Outcome:
  """An outcome with the distribution over scores that was read after it.

  Args:
    outcome: of a finished row.
    score_probs: [Y] float32.
    greedy_index: the score that greedy decoding writes, or -1.
    finite: whether the logits were finite.

  Returns:
    The outcome; "non_finite" with NaN and -1 where it, or the reading, was.
  """
  if outcome.finish_reason == 'non_finite' or not finite:
    outcome = dataclasses.replace(outcome, finish_reason='non_finite')
    score_probs, greedy_index = np.full_like(score_probs, np.nan), -1
  return dataclasses.replace(
    outcome, score_probs=score_probs, greedy_index=int(greedy_index)
  )


class RowTracker:
  """The rows of one batch, from their prompts to their scores.

  Attributes:
    control: what the next call is asked to do; changed in place by `absorb`.
    outcomes: of the finished rows, by row; none for fillers.
  """

  def __init__(
    self,
    *,
    prompt_lengths: np.ndarray,
    limits: np.ndarray,
    key_data: np.ndarray,
    cot_format: cot_end.CotFormat,
    marker_filter: cot_end.MarkerFilter,
    encode_text: cot_end.EncodeText,
    decode_text: cot_end.DecodeText,
  ):
    """Starts all rows behind their prompts.

    Args:
      prompt_lengths: [B] int32.
      limits: [B] int32, tokens each row may sample; 0 for a row that only
        fills the batch, which counts as finished.
      key_data: [B, 2] uint32.
      cot_format: what a CoT ends with.
      marker_filter: which rows are worth decoding.
      encode_text: tokens of a text in the middle of a line.
      decode_text: text of any token list.
    """
    num_rows = len(limits)
    num_forced = len(cot_format.lead_ids)
    # A row's own tokens, then at most `lead_ids`, and a token for the score.
    width = int(limits.max()) + num_forced + 1
    self._format = cot_format
    self._filter = marker_filter
    self._encode_text = encode_text
    self._decode_text = decode_text
    self._limits = limits
    self.control = decode_loop.Control(
      key_data=key_data,
      prompt_lengths=prompt_lengths,
      starts=np.zeros(num_rows, np.int32),
      stops=limits.astype(np.int32),
      forced_ids=np.zeros((num_rows, num_forced), np.int32),
      forced_starts=np.zeros(num_rows, np.int32),
      forced_counts=np.zeros(num_rows, np.int32),
    )
    self._tokens = np.zeros((num_rows, width), np.int32)
    self._greedy_indices = np.zeros((num_rows, width), np.int32)
    self._finite = np.zeros((num_rows, width), bool)
    grid_size = len(cot_format.score_ids)
    self._score_probs = np.zeros((num_rows, width, grid_size), np.float32)
    self._ends: dict[int, cot_end.CotEnd] = {}
    self._closing: dict[int, tuple[cot_end.Ending, str]] = {}
    self.outcomes: dict[int, Outcome] = {}

  @property
  def is_done(self) -> bool:
    """Whether all rows are finished."""
    return not (self.control.starts < self.control.stops).any()

  def absorb(self, records: decode_loop.StepRecords) -> None:
    """Takes in what a call recorded, and decides how each row goes on.

    Args:
      records: of the call that was given `control`, fetched to the host.
    """
    written = self.control.starts
    is_new = np.arange(len(records.tokens))[:, None] < records.counts
    steps, rows = np.nonzero(is_new)
    columns = written[rows] + steps
    self._tokens[rows, columns] = records.tokens[steps, rows]
    self._greedy_indices[rows, columns] = records.greedy_indices[steps, rows]
    self._finite[rows, columns] = records.finite[steps, rows]
    self._score_probs[rows, columns] = records.score_probs[steps, rows]
    written += records.counts

    has_run = records.counts > 0
    last = np.maximum(written - 1, 0)
    all_rows = np.arange(len(written))
    is_over = (
      (written >= self._limits)
      | (self._tokens[all_rows, last] == self._format.eos_id)
      | ~self._finite[all_rows, last]
    )
    may_end = self._filter.may_end(records.tokens) & is_new
    is_worth_a_look = may_end.any(axis=0) | is_over
    is_worth_a_look[[*self._ends, *self._closing]] = True
    for row in np.flatnonzero(has_run & is_worth_a_look).tolist():
      ends = np.flatnonzero(may_end[:, row]) + written[row] + 1
      ends -= records.counts[row]
      self._settle(row, bool(is_over[row]), ends.tolist())

  def _settle(self, row: int, is_over: bool, ends: Sequence[int]) -> None:
    """Decides how a row goes on; `ends` are lengths at which it may end."""
    if row in self._closing:
      ending, reason = self._closing[row]
      if self.control.starts[row] > ending.score_index:
        self._finish(row, ending, reason)
      return
    num_written = int(self.control.starts[row])
    is_finite = bool(self._finite[row, num_written - 1])
    has_eos = bool(self._tokens[row, num_written - 1] == self._format.eos_id)
    num_tokens = num_written - int(has_eos or not is_finite)
    tokens = self._tokens[row, :num_tokens].tolist()
    end = self._ends.get(row) or self._find_end(tokens, is_over, ends)
    if end is not None:
      self._settle_marker(row, tokens, end, is_over)
    elif is_over and not is_finite:
      self._finish(row, cot_end.Ending(num_tokens, ()), 'non_finite')
    elif is_over:
      ending = cot_end.ending_without_marker(
        tokens, self._format, self._decode_text
      )
      self._close(row, ending, 'end_token' if has_eos else 'length')

  def _settle_marker(
    self, row: int, tokens: list[int], end: cot_end.CotEnd, is_over: bool
  ) -> None:
    ending = cot_end.ending_after_marker(
      tokens, end, is_over, self._format, self._encode_text, self._decode_text
    )
    if ending is None:
      # Looked at again when there are more tokens.
      self._ends[row] = end
    else:
      self._close(row, ending, 'marker')

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

  def _close(self, row: int, ending: cot_end.Ending, reason: str) -> None:
    """Has the rest up to the score written, if the score is not there yet."""
    control = self.control
    self._ends.pop(row, None)
    if not ending.forced_ids and control.starts[row] > ending.score_index:
      self._finish(row, ending, reason)
      return
    # Without forced tokens the row has just reached the score's place and is
    # not rewound, so its hidden state is right.
    num_forced = len(ending.forced_ids)
    control.forced_ids[row, :num_forced] = ending.forced_ids
    control.forced_starts[row] = control.starts[row] = ending.num_kept
    control.forced_counts[row] = num_forced
    control.stops[row] = ending.score_index + 1
    self._closing[row] = ending, reason

  def _finish(self, row: int, ending: cot_end.Ending, reason: str) -> None:
    place = ending.score_index
    is_finite = bool(self._finite[row, place])
    self.outcomes[row] = Outcome(
      tokens=self._tokens[row, :place].copy(),
      num_sampled_tokens=ending.num_kept,
      finish_reason=reason if is_finite else 'non_finite',
      score_probs=(
        self._score_probs[row, place].copy()
        if is_finite
        else np.full(len(self._format.score_ids), np.nan, np.float32)
      ),
      greedy_index=int(self._greedy_indices[row, place]) if is_finite else -1,
    )
    self._closing.pop(row, None)
    self.control.stops[row] = 0
