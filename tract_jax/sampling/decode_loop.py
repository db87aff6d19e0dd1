"""The device side of sampling: a prefill, and a loop of decoding steps.

One step of one row, with n tokens of prompt and CoT in its cache:

    hidden [D] --project--> logits [V] --> probabilities at the score tokens,
                                           likeliest one         (recorded)
                                       --> sampled, or forced, token t
    t --decode--> hidden' [D], cache with n + 1 tokens

So every token's distribution is recorded before the token is drawn, and the
score's is among them wherever the CoT ends. Scores of several tokens are read
once, after the CoT, by `make_read_tree`. The host says per row where the
next token goes (`Control`): a smaller place than before rewinds the row. A
rewound row's hidden state is that of a later token, so its next token must be
forced; the state is right again after it.

Axes: B rows, V vocabulary, Y score grid, D width, F forced tokens per row.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.objectives import score_tree
from tract_jax.sampling import cot_end
from tract_jax.sampling import logits as logits_lib

_pytree = functools.partial(jax.tree_util.register_dataclass, meta_fields=[])


@functools.partial(_pytree, data_fields=['cache', 'hidden', 'seen'])
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


@functools.partial(
  _pytree,
  data_fields=[
    'key_data',
    'prompt_lengths',
    'starts',
    'stops',
    'forced_ids',
    'forced_starts',
    'forced_counts',
  ],
)
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


@functools.partial(
  _pytree,
  data_fields=['tokens', 'score_probs', 'greedy_indices', 'finite', 'counts'],
)
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


def score_distribution(
  logits: types.Array,
  score_ids: tuple[int, ...],
  num_valid_tokens: int,
) -> tuple[types.Array, types.Array, types.Array]:
  """The score's distribution if the next token were the score.

  Args:
    logits: [B, V] float32, raw.
    score_ids: Y score tokens.
    num_valid_tokens: tokens that the tokenizer knows.

  Returns:
    score_probs [B, Y] float32, softmax over the whole vocabulary; the score
    that is the likeliest valid token [B] int32, -1 where that is no score;
    whether the valid tokens' logits are finite [B].
  """
  # In float32, padded rows included: the distribution that training sees.
  log_mass = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  ids = jnp.asarray(score_ids, jnp.int32)
  score_probs = jnp.exp(logits[:, ids] - log_mass)
  valid = logits[:, :num_valid_tokens]
  is_greedy = jnp.argmax(valid, axis=-1)[:, None] == ids[None]
  numbers = jnp.arange(1, len(score_ids) + 1, dtype=jnp.int32)[None]
  greedy_indices = jnp.sum(jnp.where(is_greedy, numbers, 0), axis=-1) - 1
  return score_probs, greedy_indices, jnp.isfinite(valid).all(axis=-1)


def make_prefill(
  fns: types.ModelFns,
) -> Callable[..., DecodeState]:
  """The function that reads prompts into a new cache.

  Args:
    fns: the model.

  Returns:
    (params, tokens [B, L], lengths [B], cache_length) -> DecodeState.
  """

  def prefill(params, tokens, lengths, cache_length):
    hidden, cache = fns.prefill(params, tokens, lengths, cache_length)
    num_rows, length = tokens.shape
    is_token = jnp.arange(length)[None] < lengths[:, None]
    seen = jnp.zeros((num_rows, fns.vocab_size), bool)
    rows = jnp.arange(num_rows)[:, None]
    seen = seen.at[rows, tokens].max(is_token)
    return DecodeState(cache=cache, hidden=hidden, seen=seen)

  return prefill


def make_score(
  fns: types.ModelFns, cot_format: cot_end.CotFormat, num_valid_tokens: int
) -> Callable[..., tuple[types.Array, types.Array, types.Array]]:
  """The function that reads the distribution after given tokens.

  Args:
    fns: the model.
    cot_format: gives the score tokens.
    num_valid_tokens: tokens that the tokenizer knows.

  Returns:
    (params, tokens [B, L], lengths [B]) -> see `score_distribution`.
  """
  if cot_format.score_tree is not None:
    read_tree = make_read_tree(fns, cot_format.score_tree, num_valid_tokens)

  def score(params, tokens, lengths):
    hidden, cache = fns.prefill(params, tokens, lengths, tokens.shape[1])
    if cot_format.score_tree is not None:
      last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
      return read_tree(params, cache, last, lengths)
    logits = fns.project(params, hidden)
    return score_distribution(logits, cot_format.score_ids, num_valid_tokens)

  return score


def make_read_tree(
  fns: types.ModelFns, tree: types.TokenTree, num_valid_tokens: int
) -> Callable[..., tuple[types.Array, types.Array, types.Array]]:
  """The function that reads the distribution over scores of several tokens.

  One pass over all nodes of the tree, from the cache of what stands before
  them; that is neither copied nor changed.

  Args:
    fns: the model.
    tree: the scores, each with the end token.
    num_valid_tokens: tokens that the tokenizer knows.

  Returns:
    (params, cache, last tokens [B], lengths [B]) -> as `score_distribution`,
    for rows of `lengths` tokens that end in `last`.
  """

  def read_tree(params, cache, last, lengths):
    # The last token is read anew: a row may have gone on, and only its keys
    # and values are left, not its hidden state.
    past = dataclasses.replace(cache, lengths=lengths - 1)
    logits = fns.project(params, fns.decode_tree(params, last, tree, past))
    valid = logits[..., :num_valid_tokens]
    greedy_tokens = jnp.argmax(valid, axis=-1).astype(jnp.int32)
    return (
      jnp.exp(score_tree.log_probs(logits, tree)),
      score_tree.greedy_index(greedy_tokens, tree),
      jnp.isfinite(valid).all(axis=(-2, -1)),
    )

  return read_tree


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
    logits = fns.project(params, state.hidden)
    probs, greedy, finite = score_distribution(
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
