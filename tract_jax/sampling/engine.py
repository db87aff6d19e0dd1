"""Sampling CoTs in batches, and reading the score's distribution with them.

In: a model as pure functions, its params, prompts as token ids. Out: a CoT per
request with the distribution over the score grid where it ends, from the same
pass: nothing is computed twice, and one model gives both.

    requests, by length -> batches of B rows -> prefill (one shape per bucket)
      -> decode_loop, some steps a call <-> row_tracker -> types.CotSample

A CoT depends on its prompt and on a key folded from (seed, purpose, example id,
CoT index) and the token's index, and not on the batch, order, slot or bucket:
up to floating-point rounding, which differs between shapes and may, rarely,
tip a draw that lies on the border of two tokens.

Axes: B rows, L prompt length, V vocabulary, Y score grid.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import json
import time

import jax
import numpy as np

from tract_jax import types
from tract_jax.sampling import cot_end, decode_loop, row_tracker
from tract_jax.sampling import logits as logits_lib

# Arguments of `make_engine`, defined beside what they mean.
CotFormat = cot_end.CotFormat
SamplingParams = logits_lib.SamplingParams


@dataclasses.dataclass(frozen=True)
class CotRequest:
  """One CoT to sample.

  Attributes:
    example_id, cot_index: which input, and which of its CoTs.
    prompt_ids: [l] int32, up to where the CoT begins.
  """

  example_id: str
  cot_index: int
  prompt_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a call of `Engine.sample` is; given after each batch.

  Attributes:
    num_done, num_total: requests.
    prefill_tokens, prefill_secs: of the prompts so far.
    decode_tokens, decode_secs: of the CoTs so far, prompts not counted.
    slot_steps: decoding steps, counted for each slot.
    num_retries: attempts thrown away so far.
    finish_reasons: of the finished samples.
  """

  num_done: int
  num_total: int
  prefill_tokens: int
  prefill_secs: float
  decode_tokens: int
  decode_secs: float
  slot_steps: int
  num_retries: int
  finish_reasons: dict[str, int]

  @property
  def live_steps(self) -> int:
    """Decoding steps of slots that wrote a token; over slot_steps: slot use."""
    return self.decode_tokens


class Engine:
  """A batched sampler with a key-value cache; see `make_engine`."""

  def __init__(
    self,
    fns: types.ModelFns,
    sampling: SamplingParams,
    cot_format: CotFormat,
    encode_text: cot_end.EncodeText,
    decode_text: cot_end.DecodeText,
    *,
    rows: int,
    max_length: int,
    steps_per_call: int,
    length_multiple: int,
    num_valid_tokens: int,
    place_rows: Callable[[types.PyTree], types.PyTree],
  ):
    self._format = cot_format
    self._max_new_tokens = sampling.max_new_tokens
    self._encode_text = encode_text
    self._decode_text = decode_text
    self._num_rows = rows
    self._max_length = max_length
    self._length_multiple = length_multiple
    self._place_rows = place_rows
    self._filter = cot_end.MarkerFilter(cot_format.marker, decode_text)
    self._prefill = jax.jit(decode_loop.make_prefill(fns), static_argnums=3)
    decode_steps = decode_loop.make_decode_steps(
      fns,
      sampling,
      cot_format,
      num_steps=steps_per_call,
      num_valid_tokens=num_valid_tokens,
    )
    self._decode_steps = jax.jit(decode_steps, donate_argnums=1)
    score = decode_loop.make_score(fns, cot_format, num_valid_tokens)
    self._score = jax.jit(score)
    self._read_tree = None
    if cot_format.score_tree is not None:
      self._read_tree = jax.jit(
        decode_loop.make_read_tree(fns, cot_format.score_tree, num_valid_tokens)
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
    """Samples a CoT for each request and reads its score distribution.

    A CoT ends with the marker's first occurrence in its text. Where the model
    does not go on as a target does (another spelling up to the score, an end
    token or the length limit without marker), the row is taken back to the
    last token that fits, and the rest is written for it.

    Args:
      params: the model's.
      requests: in any order; (example_id, cot_index) tells their keys apart.
      seed: of the run.
      purpose: keeps keys of different uses apart, such as "self_cot".
      on_progress: is told the progress after each batch.
      max_length: most tokens of prompt, CoT, fixed words and score together,
        where it is to be less than the engine's.

    Returns:
      Samples in the order of the requests. Prompts that leave no room for a
      token, the fixed words and the score are "too_long"; a row whose logits
      are not finite before its score is known is "non_finite"; both have NaN
      for score_probs and -1 for greedy_index, and do not disturb the others.

    Raises:
      ValueError: an empty prompt, or a format without marker.
    """
    samples = dict(
      self.stream(
        params,
        requests,
        seed,
        purpose,
        on_progress=on_progress,
        max_length=max_length,
      )
    )
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
  ) -> Iterator[tuple[int, types.CotSample]]:
    """As `sample`: (index of the request, its sample), as they are finished."""
    lengths = _lengths([request.prompt_ids for request in requests])
    limits = self._limits(lengths, max_length or self._max_length)
    reasons: collections.Counter[str] = collections.Counter()
    for i in np.flatnonzero(limits < 1).tolist():
      reasons['too_long'] += 1
      yield i, self._too_long(requests[i])
    start_secs = time.monotonic()
    num_tokens = prefill_tokens = 0
    for batch in self._batches(lengths, limits >= 1):
      outcomes = self._sample_batch(
        params,
        [requests[i].prompt_ids for i in batch],
        limits[batch],
        [_key_data(seed, purpose, requests[i]) for i in batch],
      )
      for i, outcome in zip(batch, outcomes, strict=True):
        num_tokens += len(outcome.tokens)
        prefill_tokens += int(lengths[i])
        reasons[outcome.finish_reason] += 1
      if on_progress:
        on_progress(
          Progress(
            num_done=reasons.total(),
            num_total=len(requests),
            prefill_tokens=prefill_tokens,
            prefill_secs=0.0,
            decode_tokens=num_tokens,
            decode_secs=time.monotonic() - start_secs,
            slot_steps=num_tokens,
            num_retries=0,
            finish_reasons=dict(reasons),
          )
        )
      for i, outcome in zip(batch, outcomes, strict=True):
        request = requests[i]
        yield (
          int(i),
          types.CotSample(
            request.example_id, request.cot_index, **vars(outcome)
          ),
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
    for batch in self._batches(lengths, lengths <= self.longest_context):
      rows = self._padded_rows([sequences[i] for i in batch])
      probs, greedy, finite = jax.device_get(
        self._score(params, *self._place_rows(rows))
      )
      n = len(batch)
      score_probs[batch] = np.where(finite[:n, None], probs[:n], np.nan)
      greedy_indices[batch] = np.where(finite[:n], greedy[:n], -1)
    return score_probs, greedy_indices

  def _sample_batch(
    self,
    params: types.PyTree,
    prompts: list[np.ndarray],
    limits: np.ndarray,
    key_data: list[np.ndarray],
  ) -> list[row_tracker.Outcome]:
    """Samples up to B rows to their end."""
    num_fillers = self._num_rows - len(prompts)
    tokens, lengths = self._padded_rows(prompts)
    tracker = row_tracker.RowTracker(
      prompt_lengths=lengths,
      limits=np.pad(limits, (0, num_fillers)),
      key_data=np.pad(np.stack(key_data), ((0, num_fillers), (0, 0))),
      cot_format=self._format,
      marker_filter=self._filter,
      encode_text=self._encode_text,
      decode_text=self._decode_text,
    )
    # The limits of all rows fit into this length, whatever the bucket.
    cache_length = min(
      tokens.shape[1] + self._max_new_tokens + len(self._format.lead_ids) + 1,
      self._max_length,
    )
    tokens, lengths = self._place_rows((tokens, lengths))
    state = self._prefill(params, tokens, lengths, cache_length)
    while not tracker.is_done:
      control = self._place_rows(tracker.control)
      state, records = self._decode_steps(params, state, control)
      tracker.absorb(jax.device_get(records))
    outcomes = [tracker.outcomes[row] for row in range(len(prompts))]
    return self._with_tree_scores(params, state.cache, prompts, outcomes)

  def _with_tree_scores(
    self,
    params: types.PyTree,
    cache: types.KVCache,
    prompts: list[np.ndarray],
    outcomes: list[row_tracker.Outcome],
  ) -> list[row_tracker.Outcome]:
    """Reads scores of several tokens, where there are, behind all rows."""
    if self._read_tree is None:
      return outcomes
    ends = row_tracker.ends(prompts, outcomes, self._num_rows)
    read = self._read_tree(params, cache, *self._place_rows(ends))
    of_rows = zip(*jax.device_get(read), strict=True)
    # Rows that only fill the batch have no outcome.
    pairs = zip(outcomes, of_rows, strict=False)
    return [row_tracker.scored(outcome, *row) for outcome, row in pairs]

  def _batches(
    self, lengths: np.ndarray, is_wanted: np.ndarray
  ) -> Iterator[np.ndarray]:
    """Indices of up to B sequences of similar length at a time."""
    order = np.argsort(lengths, kind='stable')
    order = order[is_wanted[order]]
    for start in range(0, len(order), self._num_rows):
      yield order[start : start + self._num_rows]

  def _padded_rows(
    self, sequences: list[np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, L] and lengths [B] int32; missing rows have one token."""
    longest = max(len(sequence) for sequence in sequences)
    multiple = self._length_multiple
    length = min(-(-longest // multiple) * multiple, self._max_length)
    shape = (self._num_rows, length)
    tokens = np.full(shape, self._format.pad_id, np.int32)
    lengths = np.ones(self._num_rows, np.int32)
    for row, sequence in enumerate(sequences):
      tokens[row, : len(sequence)] = sequence
      lengths[row] = len(sequence)
    return tokens, lengths

  def _too_long(self, request: CotRequest) -> types.CotSample:
    num_scores = len(self._format.score_sequences)
    return types.CotSample(
      example_id=request.example_id,
      cot_index=request.cot_index,
      tokens=np.zeros(0, np.int32),
      num_sampled_tokens=0,
      finish_reason='too_long',
      score_probs=np.full(num_scores, np.nan, np.float32),
      greedy_index=-1,
    )


def make_engine(
  fns: types.ModelFns,
  sampling: SamplingParams,
  cot_format: CotFormat,
  encode_text: cot_end.EncodeText,
  decode_text: cot_end.DecodeText,
  *,
  rows: int,
  max_length: int,
  steps_per_call: int = 16,
  length_multiple: int = 64,
  num_valid_tokens: int | None = None,
  place_rows: Callable[[types.PyTree], types.PyTree] = lambda rows: rows,
) -> Engine:
  """Makes a sampler; nothing is compiled before its first batch.

  Args:
    fns: the model. Its `decode` must drop the token of a row whose cache is
      full.
    sampling: how tokens are drawn.
    cot_format: what a CoT ends with.
    encode_text: tokens of a text in the middle of a line, no special ones.
    decode_text: text of a token list; a longer list's text begins with it, but
      for an unfinished character.
    rows: B, rows decoded together; a short batch is filled up.
    max_length: most tokens of prompt, CoT, fixed words and score together.
    steps_per_call: tokens per row between two looks at the text. More wastes
      steps after a CoT's end, fewer costs more calls.
    length_multiple: prompts are padded to multiples of it, each compiled once.
    num_valid_tokens: tokens that the tokenizer knows; the embedding's rows
      after them are padding and never sampled. None: V.
    place_rows: puts a tree of arrays [B, ...] on the devices, for example
      split by rows. Default: where JAX puts them.

  Returns:
    An engine.

  Raises:
    ValueError: a token that the model does not have, or a size below 1.
  """
  if num_valid_tokens is None:
    num_valid_tokens = fns.vocab_size
  _check_tokens(cot_format, num_valid_tokens, fns.vocab_size)
  sizes = (rows, max_length, steps_per_call, length_multiple)
  if min(sizes) < 1:
    names = 'rows, max_length, steps_per_call, length_multiple'
    raise ValueError(f'({names})={sizes}: below 1')
  return Engine(
    fns,
    sampling,
    cot_format,
    encode_text,
    decode_text,
    rows=rows,
    max_length=max_length,
    steps_per_call=steps_per_call,
    length_multiple=length_multiple,
    num_valid_tokens=num_valid_tokens,
    place_rows=place_rows,
  )


def _check_tokens(
  cot_format: CotFormat, num_valid_tokens: int, vocab_size: int
) -> None:
  if num_valid_tokens > vocab_size:
    raise ValueError(
      f"num_valid_tokens={num_valid_tokens}: more than the model's {vocab_size}"
    )
  scores = (token for ids in cot_format.score_sequences for token in ids)
  wanted = (*scores, *cot_format.lead_ids, cot_format.eos_id)
  for token in wanted:
    if not 0 <= token < num_valid_tokens:
      raise ValueError(
        f'token {token}: not among the {num_valid_tokens} that the tokenizer'
        ' knows'
      )


def _lengths(sequences: Sequence[np.ndarray]) -> np.ndarray:
  """[n] int32; raises ValueError for an empty sequence."""
  lengths = np.asarray([len(sequence) for sequence in sequences], np.int32)
  if (lengths == 0).any():
    raise ValueError(f'sequence {int(np.argmin(lengths))}: has no tokens')
  return lengths


def _key_data(seed: int, purpose: str, request: CotRequest) -> np.ndarray:
  """[2] uint32, the same in any process: Python's own hash is not."""
  name = [seed, purpose, request.example_id, request.cot_index]
  digest = hashlib.sha256(json.dumps(name).encode()).digest()
  return np.frombuffer(digest[:8], '>u4').astype(np.uint32)
