"""The device side of sampling: prefill, insertion, and decoding steps.

Prompts are read a few at a time into a cache of their own, and copied from
there into slots: rows of the big state, which are decoded all together. A slot
whose CoT is finished takes the next prompt, while the others go on.

One step of one slot, with n tokens of prompt and CoT in its cache:

    hidden [D] --project--> logits [V] --> probabilities at the score tokens,
                                           likeliest one         (recorded)
                                       --> sampled, or forced, token t
    t --decode--> hidden' [D], cache with n + 1 tokens

So every token's distribution is recorded before the token is drawn, and the
score's is among them wherever the CoT ends. Scores of several tokens are read
once, after the CoT (score_reading). The host says per slot where the next token
goes (`Control`): a smaller place than before rewinds it. A rewound slot's
hidden state is that of a later token, so its next token must be forced; the
state is right again after it.

Axes: B rows (slots, or prompts), V vocabulary, Y score grid, D width, F forced
tokens per row.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import numerics, types
from tract_jax.sampling import cot_end, score_reading
from tract_jax.sampling import logits as logits_lib

# Of the cache's leaves [layers, B, K, T, ...].
_LENGTH_AXIS = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """What stays on the device between calls; donated to the next one.

  Attributes:
    cache: of prompts and generated tokens.
    hidden: [B, D] at each row's last token: gives the next distribution.
    seen: [B, V] bool, tokens of prompt and CoT, for the repetition penalty.
      Not rewound: nothing is sampled after a row was.
  """

  cache: types.KVCache
  hidden: types.Array
  seen: types.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
  """What the host asks of each row in a call. Token 0 follows the prompt.

  Attributes:
    key_data: [B, 2] uint32, the row's key.
    prompt_lengths: [B] int32.
    starts: [B] int32, index of the next token.
    stops: [B] int32, the row rests from this index on.
    forced_ids: [B, F] int32.
    forced_starts, forced_counts: [B] int32, where forced tokens begin, and how
      many there are.
  """

  key_data: np.ndarray
  prompt_lengths: np.ndarray
  starts: np.ndarray
  stops: np.ndarray
  forced_ids: np.ndarray
  forced_starts: np.ndarray
  forced_counts: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepRecords:
  """What a call recorded; row b's entries from counts[b] on are empty.

  Attributes:
    tokens: [steps, B] int32, sampled or forced.
    score_probs: [steps, B, Y] float32, probabilities of the score tokens in
      that token's place, softmax over the whole vocabulary of raw logits; of
      scores of several tokens none is recorded.
    greedy_indices: [steps, B] int32, the score that is the likeliest token
      there; -1 where that is no score.
    finite: [steps, B] bool, whether the logits there are all finite.
    counts: [B] int32, tokens of each row in this call.
  """

  tokens: types.Array
  score_probs: types.Array
  greedy_indices: types.Array
  finite: types.Array
  counts: types.Array


# Which axis of each array has the rows.
STATE_AXES = DecodeState(
  cache=types.KVCache(keys=1, values=1, lengths=0), hidden=0, seen=0
)
RECORD_AXES = StepRecords(
  tokens=1, score_probs=1, greedy_indices=1, finite=1, counts=0
)


def make_prefill(
  fns: types.ModelFns,
) -> Callable[..., DecodeState]:
  """The function that reads prompts into a new cache.

  Args:
    fns: the model.

  Returns:
    (params, tokens [B, L], lengths [B]) -> DecodeState with a cache of L
    entries, just as long as the prompts.
  """

  def prefill(params, tokens, lengths):
    num_rows, length = tokens.shape
    hidden, cache = fns.prefill(params, tokens, lengths, length)
    is_token = jnp.arange(length)[None] < lengths[:, None]
    seen = jnp.zeros((num_rows, fns.vocab_size), bool)
    rows = jnp.arange(num_rows)[:, None]
    seen = seen.at[rows, tokens].max(is_token)
    return DecodeState(cache=cache, hidden=hidden, seen=seen)

  return prefill


def cache_length(longest: int, most: int, block: int) -> int:
  """Entries of a cache that is read in blocks.

  Args:
    longest: tokens of the longest row that it is to hold.
    most: tokens that any row may have.
    block: `ModelFns.cache_block`.

  Returns:
    T, a multiple of the block; of a smaller one where no row fills it.
  """
  multiple = min(block, 1 << (most - 1).bit_length())
  return -(-longest // multiple) * multiple


def make_empty_state(
  prefill: Callable[..., DecodeState],
) -> Callable[..., DecodeState]:
  """The function that makes slots which hold nothing yet.

  Args:
    prefill: of `make_prefill`; says what a state is made of.

  Returns:
    (params, num_slots, cache_length) -> DecodeState of zeros.
  """

  def empty_state(params, num_slots, cache_length):
    ones = jnp.ones((num_slots, 1), jnp.int32)
    like = jax.eval_shape(prefill, params, ones, ones[:, 0])

    def roomy(leaf):
      shape = list(leaf.shape)
      if leaf.ndim > 1:
        shape[_LENGTH_AXIS] = cache_length
      return jnp.zeros(shape, leaf.dtype)

    return dataclasses.replace(
      jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like),
      cache=jax.tree.map(roomy, like.cache),
    )

  return empty_state


def insert(
  state: DecodeState,
  prompts: DecodeState,
  rows: types.Array,
  slots: types.Array,
  count: types.Array,
) -> DecodeState:
  """Copies prompts into slots; several slots may take the same one.

  What the slots held before stays behind the prompts' ends, where nobody sees
  it.

  Args:
    state: of S slots and T cache entries.
    prompts: of P rows and at most T entries.
    rows, slots: [n] int32, which prompt goes where.
    count: how many of them; the others are not looked at.

  Returns:
    The state.
  """

  def copy(i, state):
    def put(axis, old, new):
      row = jax.lax.dynamic_slice_in_dim(new, rows[i], 1, axis)
      starts = [0] * old.ndim
      starts[axis] = slots[i]
      return jax.lax.dynamic_update_slice(old, row.astype(old.dtype), starts)

    return jax.tree.map(
      lambda axis, *parts: jax.tree.map(functools.partial(put, axis), *parts),
      STATE_AXES,
      state,
      prompts,
    )

  return jax.lax.fori_loop(0, count, copy, state)


def make_decode_steps(
  fns: types.ModelFns,
  sampling: logits_lib.SamplingParams,
  cot_format: cot_end.CotFormat,
  *,
  num_steps: int,
  num_valid_tokens: int,
) -> Callable[..., tuple[DecodeState, StepRecords]]:
  """The function that writes up to `num_steps` tokens in each row.

  Args:
    fns: the model.
    sampling: how tokens are drawn.
    cot_format: gives score, end and padding tokens.
    num_steps: most steps of one call; it ends early when all rows rest.
    num_valid_tokens: tokens that the tokenizer knows.

  Returns:
    (params, DecodeState, Control) -> (DecodeState, StepRecords).
  """
  step = _make_step(fns, sampling, cot_format, num_valid_tokens)

  def decode_steps(params, state, control):
    lengths = control.prompt_lengths + control.starts
    state = dataclasses.replace(
      state, cache=dataclasses.replace(state.cache, lengths=lengths)
    )
    records = _empty_records(
      num_steps, control.starts.shape[0], len(cot_format.score_ids)
    )
    carry = (0, control.starts < control.stops, state, records)
    *_, state, records = jax.lax.while_loop(
      lambda carry: (carry[0] < num_steps) & carry[1].any(),
      lambda carry: step(params, control, carry),
      carry,
    )
    return state, records

  return decode_steps


def _make_step(
  fns: types.ModelFns,
  sampling: logits_lib.SamplingParams,
  cot_format: cot_end.CotFormat,
  num_valid_tokens: int,
) -> Callable[..., tuple]:
  """One step of all rows, as the loop's body."""

  def step(params, control, carry):
    i, is_running, state, records = carry
    indices = control.starts + i
    hidden = numerics.tiled_rows(state.hidden)
    logits = fns.project(params, hidden)[: len(state.hidden)]
    probs, greedy, finite = score_reading.score_distribution(
      logits, cot_format.score_ids, num_valid_tokens
    )
    drawn = logits_lib.sample_tokens(
      logits_lib.row_keys(control.key_data, indices),
      logits,
      sampling,
      seen=state.seen,
      num_valid_tokens=num_valid_tokens,
    )
    forced, is_forced = _forced_tokens(control, indices)
    tokens = jnp.where(is_forced, forced, drawn)
    tokens = jnp.where(is_running, tokens, cot_format.pad_id)
    state = _appended(fns, params, state, tokens, is_running)
    records = StepRecords(
      tokens=records.tokens.at[i].set(tokens),
      score_probs=records.score_probs.at[i].set(probs),
      greedy_indices=records.greedy_indices.at[i].set(greedy),
      finite=records.finite.at[i].set(finite),
      counts=records.counts + is_running,
    )
    # A forced token's own distribution is of no use and may be a rewound
    # row's; so it stops nothing.
    goes_on = is_forced | (finite & (tokens != cot_format.eos_id))
    is_running &= goes_on & (indices + 1 < control.stops)
    return i + 1, is_running, state, records

  return step


def _forced_tokens(
  control: Control, indices: types.Array
) -> tuple[types.Array, types.Array]:
  """The forced token at each row's index, and whether there is one."""
  places = indices - control.forced_starts
  is_forced = (places >= 0) & (places < control.forced_counts)
  places = jnp.where(is_forced, places, 0)
  forced = jnp.take_along_axis(control.forced_ids, places[:, None], axis=1)
  return forced[:, 0], is_forced


def _appended(
  fns: types.ModelFns,
  params: types.PyTree,
  state: DecodeState,
  tokens: types.Array,
  is_running: types.Array,
) -> DecodeState:
  """The state after one more token in the running rows."""
  hidden, cache = fns.decode(params, tokens, state.cache)
  # A resting row's cache gets garbage past its length, which nobody sees.
  lengths = jnp.where(is_running, cache.lengths, state.cache.lengths)
  rows = jnp.arange(tokens.shape[0])
  return DecodeState(
    cache=dataclasses.replace(cache, lengths=lengths),
    hidden=jnp.where(is_running[:, None], hidden, state.hidden),
    seen=state.seen.at[rows, tokens].max(is_running),
  )


def _empty_records(num_steps: int, num_rows: int, grid_size: int):
  shape = (num_steps, num_rows)
  return StepRecords(
    tokens=jnp.zeros(shape, jnp.int32),
    score_probs=jnp.zeros((*shape, grid_size), jnp.float32),
    greedy_indices=jnp.zeros(shape, jnp.int32),
    finite=jnp.zeros(shape, bool),
    counts=jnp.zeros((num_rows,), jnp.int32),
  )
