"""A tiny model and a tiny tokenizer whose every answer is known.

The model's logits are a fixed random function of the row's whole history (so a
wrong cache shows), plus 1,000 for the token that the row's script says comes
next. A row's first prompt token picks its script; script 0 says nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.sampling import cot_end

PAD, EOS, NAN = 0, 1, 2
# These tokens pick scripts 0 to 9, and stand for nothing else.
FIRST_SCRIPT = 3
PIECES = ['<pad>', '<eos>', '<nan>', *(f'<{k}>' for k in range(10))]
NUM_SCRIPTS, MAX_SCRIPT = 10, 32
FIRST_TEXT = len(PIECES)
PIECES += list(' abceghilnorstvwS')
PIECES += [' So', ' the', ' overall', ' score', ' is', ' is.', 'all s', 'core']
PIECES += ['1', '2', '3', '4', '5', 'is 4', '\n']
VOCAB_SIZE = len(PIECES) + 3  # Three padded rows.
SCORE_IDS = tuple(PIECES.index(score) for score in '12345')
MARKER = 'So the overall score is'


def encode_text(text: str) -> list[int]:
  """The longest pieces from left to right."""
  ids = []
  while text:
    piece = max((p for p in PIECES[FIRST_TEXT:] if text.startswith(p)), key=len)
    ids.append(PIECES.index(piece))
    text = text[len(piece) :]
  return ids


def decode_text(ids: Sequence[int]) -> str:
  return ''.join(PIECES[i] for i in ids)


def index_of(logits: np.ndarray) -> int:
  """Which score the likeliest token of logits [V] is; -1 for none."""
  token = int(logits[: len(PIECES)].argmax())
  return SCORE_IDS.index(token) if token in SCORE_IDS else -1


COT_FORMAT = cot_end.CotFormat(
  marker=MARKER,
  lead_ids=tuple(encode_text(f' {MARKER} ')),
  prefix_ids=tuple(encode_text(' ')),
  score_ids=SCORE_IDS,
  eos_id=EOS,
  pad_id=PAD,
)


def make_fns() -> types.ModelFns:
  """A model that writes params['scripts'][k] in rows that begin with <k>."""

  def init(key):
    return {
      'table': jax.random.normal(key, (97, VOCAB_SIZE)),
      'scripts': jnp.full((NUM_SCRIPTS, MAX_SCRIPT), -1, jnp.int32),
    }

  def hidden_of(params, tokens, lengths):
    """[B, 2] float32 of tokens [B, T]: a hash of the history, and the script's
    token. A prompt is as long as its second token says."""
    places = jnp.arange(tokens.shape[1])[None]
    weights = (places * places * 7 + places + 1) % 89
    is_token = places < lengths[:, None]
    digest = jnp.where(is_token, tokens * weights, 0).sum(axis=1) % 97
    written = lengths - tokens[:, 1]
    scripts = params['scripts'][tokens[:, 0] - FIRST_SCRIPT]
    wanted = jnp.take_along_axis(
      scripts, jnp.clip(written, 0, MAX_SCRIPT - 1)[:, None], axis=1
    )[:, 0]
    return jnp.stack([digest, wanted], axis=1).astype(jnp.float32)

  def project(params, hidden):
    digest, wanted = hidden[..., 0], hidden[..., 1].astype(jnp.int32)
    logits = params['table'][digest.astype(jnp.int32)]
    # One-hot of -1 is all zeros.
    logits += 1000.0 * jax.nn.one_hot(wanted, VOCAB_SIZE)
    return jnp.where((wanted == NAN)[..., None], jnp.nan, logits)

  def cache_of(tokens, lengths):
    keys = tokens[None, :, None, :, None]
    return types.KVCache(keys, keys, lengths)

  def prefill(params, tokens, lengths, cache_length):
    room = cache_length - tokens.shape[1]
    tokens = jnp.pad(tokens, ((0, 0), (0, room)))
    return hidden_of(params, tokens, lengths), cache_of(tokens, lengths)

  def decode(params, tokens, cache):
    rows = jnp.arange(tokens.shape[0])
    history = cache.keys[0, :, 0, :, 0]
    history = history.at[rows, cache.lengths].set(tokens, mode='drop')
    lengths = cache.lengths + 1
    return hidden_of(params, history, lengths), cache_of(history, lengths)

  def decode_tree(params, tokens, tree, cache):
    nodes = []
    rows = jnp.arange(tokens.shape[0])
    for node in range(len(tree.tokens) + 1):
      past = cache.keys[0, :, 0, :, 0]
      path = [i for i in range(1, node + 1) if tree.sees[node, i]]
      # The fake needs a place for every token, whatever the cache's length.
      past = jnp.pad(past, ((0, 0), (0, 1 + len(path))))
      past = past.at[rows, cache.lengths].set(tokens)
      for depth, i in enumerate(path, start=1):
        past = past.at[rows, cache.lengths + depth].set(tree.tokens[i - 1])
      nodes.append(hidden_of(params, past, cache.lengths + 1 + len(path)))
    return jnp.stack(nodes, axis=1)

  return types.ModelFns(
    init=init,
    hidden=None,
    project=project,
    head=None,
    prefill=prefill,
    decode=decode,
    hidden_and_tree=None,
    decode_tree=decode_tree,
    logical_axes=None,
    vocab_size=VOCAB_SIZE,
    cache_block=128,
  )


def prompt(script: int, length: int = 5) -> np.ndarray:
  """A prompt of `length` tokens for a script; 0 for none."""
  ids = [FIRST_SCRIPT + script, length, *range(FIRST_TEXT, VOCAB_SIZE)]
  return np.resize(np.asarray(ids, np.int32), length)


FNS = make_fns()


def make_params(scripts: Sequence[Sequence[int]] = ()) -> types.PyTree:
  """Params with scripts[0] for rows that begin with <1>, and so on.

  A script's <nan> makes all logits NaN at its place. Behind its end a script
  says nothing.
  """
  table = np.full((NUM_SCRIPTS, MAX_SCRIPT), -1, np.int32)
  for k, script in enumerate(scripts):
    table[k + 1, : len(script)] = script
  return {**FNS.init(jax.random.key(0)), 'scripts': jnp.asarray(table)}


@jax.jit
def _next_logits(params, tokens, lengths):
  hidden, _ = FNS.prefill(params, tokens, lengths, tokens.shape[1])
  return FNS.project(params, hidden)[0]


def next_logits(params: types.PyTree, tokens: Sequence[int]) -> np.ndarray:
  """Logits [V] after one row's tokens, by a prefill of them alone."""
  row = np.zeros((1, 128), np.int32)
  row[0, : len(tokens)] = tokens
  lengths = np.asarray([len(tokens)], np.int32)
  return np.array(_next_logits(params, row, lengths))
