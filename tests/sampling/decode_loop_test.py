"""Tests of sampling on a tiny Llama, against passes without cache.

The marker is a single letter, so that a random model often writes it, in all
ways: as the end of a token, inside one, before the prefix and before others.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.sampling import fakes
from tract_jax.models import config as config_lib
from tract_jax.models import transformer
from tract_jax.sampling import decode_loop, score_reading
from tract_jax.sampling import engine as engine_lib
from tract_jax.sampling import logits as logits_lib
from tract_jax.sampling import requests as requests_lib

NUM_VALID = len(fakes.PIECES)
MAX_LENGTH = 48
SEED = 8
MARKER = 'o'
COT_FORMAT = dataclasses.replace(
  fakes.COT_FORMAT,
  marker=MARKER,
  lead_ids=tuple(fakes.encode_text(' ') + fakes.encode_text('o ')),
)
SAMPLING = engine_lib.SamplingParams(
  temperature=1.2, top_k=40, top_p=0.97, max_new_tokens=16
)


@functools.cache
def _model():
  config = config_lib.ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=MAX_LENGTH,
    sliding_window=24,
    initializer_range=0.2,
  )
  fns = transformer.make_model(config)
  return fns, fns.init(jax.random.key(2))


@functools.cache
def _full_logits():
  fns, _ = _model()

  def full_logits(params, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = fns.hidden(params, tokens, positions, jnp.ones_like(tokens))
    return fns.project(params, hidden)[0]

  return jax.jit(full_logits)


def _next_logits(tokens):
  """Logits [V] after a row's tokens, without cache or other rows."""
  row = np.zeros((1, MAX_LENGTH), np.int32)
  row[0, : len(tokens)] = tokens
  return np.asarray(_full_logits()(_model()[1], row))[len(tokens) - 1]


@functools.cache
def _samples(sampling=SAMPLING, shuffled=False, **settings):
  """(request, sample) of 96 prompts; the longest leave little room."""
  fns, params = _model()
  rng = np.random.default_rng(0)
  requests = [
    engine_lib.CotRequest(
      example_id=str(i),
      cot_index=0,
      prompt_ids=rng.integers(3, NUM_VALID, 4 + i % 40).astype(np.int32),
    )
    for i in range(96)
  ]
  engine = engine_lib.Engine(
    fns,
    sampling,
    COT_FORMAT,
    fakes.encode_text,
    fakes.decode_text,
    max_length=MAX_LENGTH,
    num_valid_tokens=NUM_VALID,
    **{'slots': 16, 'length_multiple': 16, 'steps_per_call': 4, **settings},
  )
  order = np.random.default_rng(1).permutation(96) if shuffled else range(96)
  samples = dict(
    zip(
      order,
      engine.sample(params, [requests[i] for i in order], SEED, 'test'),
      strict=True,
    )
  )
  return [(requests[i], samples[i]) for i in range(96)]


def test_all_ways_to_end_occur():
  ways = {
    (s.finish_reason, len(s.tokens) - s.num_sampled_tokens)
    for _, s in _samples()
  }
  # The model wrote all; the prefix was written for it; the marker's rest, too;
  # and no marker came.
  assert {('marker', 0), ('marker', 1), ('marker', 3)} < ways
  assert {('end_token', 3), ('length', 3)} < ways


def test_distributions_equal_full_passes():
  for request, sample in _samples():
    logits = _next_logits([*request.prompt_ids, *sample.tokens])
    probs = special.softmax(logits.astype(np.float64))
    np.testing.assert_allclose(
      sample.score_probs, probs[list(fakes.SCORE_IDS)], atol=1e-5
    )
    assert sample.greedy_index == fakes.index_of(logits)


@pytest.mark.parametrize(
  'settings',
  [
    dict(slots=1),
    dict(slots=4, shuffled=True),
    dict(slots=16, steps_per_call=9),
    dict(slots=7, shuffled=True, steps_per_call=1),
  ],
)
def test_slots_and_order_do_not_change_a_bit(settings):
  for (_, got), (_, wanted) in zip(
    _samples(**settings), _samples(), strict=True
  ):
    np.testing.assert_equal(vars(got), vars(wanted))


def test_more_slots_give_the_same_but_for_rounding():
  for (_, got), (_, wanted) in zip(_samples(slots=32), _samples(), strict=True):
    assert got.tokens.tolist() == wanted.tokens.tolist()
    np.testing.assert_allclose(got.score_probs, wanted.score_probs, atol=1e-6)


def test_texts_end_with_the_first_marker():
  for _, sample in _samples():
    text = fakes.decode_text(sample.tokens)
    assert text.endswith(MARKER + ' ')
    assert text.index(MARKER) == len(text) - 2


@functools.partial(jax.jit, static_argnums=4)
def _drawn(key_data, index, logits, seen, sampling):
  keys = logits_lib.row_keys(key_data, index)
  return logits_lib.sample_tokens(
    keys, logits, sampling, seen=seen, num_valid_tokens=NUM_VALID
  )


def _reference_cot(request, sampling, num_retries=0):
  """A CoT drawn with full passes, one token at a time."""
  key_data = requests_lib.key_data(SEED, 'test', request, num_retries)[None]
  tokens = request.prompt_ids.tolist()
  for i in range(sampling.max_new_tokens):
    seen = np.zeros((1, 64), bool)
    seen[0, tokens] = True
    logits = _next_logits(tokens)[None]
    (token,) = _drawn(
      key_data, np.asarray([i]), logits, seen, sampling
    ).tolist()
    if token == fakes.EOS:
      break
    tokens.append(token)
    if MARKER in fakes.PIECES[token] or len(tokens) == MAX_LENGTH:
      break
  return tokens[len(request.prompt_ids) :]


@pytest.mark.parametrize('temperature', [SAMPLING.temperature, 0.0])
def test_cots_equal_a_loop_of_full_passes(temperature):
  sampling = dataclasses.replace(
    SAMPLING, temperature=temperature, repetition_penalty=1.3
  )
  num_tokens = 0
  for request, sample in _samples(sampling)[:24]:
    wanted = _reference_cot(request, sampling)
    num = sample.num_sampled_tokens
    # A prefix that the model wrote itself comes after the marker.
    sampled = sample.tokens[: min(num, len(wanted))].tolist()
    assert sampled == wanted[: len(sampled)]
    # What the reference has beyond is the token that reached past the marker,
    # or space at the end.
    beyond = fakes.decode_text(wanted[num:])
    assert not beyond.strip() or MARKER in beyond
    num_tokens += len(sampled)
  assert num_tokens > 30


def test_retried_cots_are_drawn_with_keys_of_their_own():
  tried = _samples(max_retries=2)
  num_mended = 0
  for (request, once), (_, sample) in zip(_samples(), tried, strict=True):
    if once.finish_reason in ('marker', 'too_long'):
      np.testing.assert_equal(vars(sample), vars(once))
      continue
    assert sample.num_retries > 0
    if sample.finish_reason == 'marker':
      num_mended += 1
      wanted = _reference_cot(request, SAMPLING, sample.num_retries)
      num = min(sample.num_sampled_tokens, len(wanted))
      assert sample.tokens[:num].tolist() == wanted[:num]
    else:
      assert sample.num_retries == 2
  assert num_mended > 3


def test_one_call_by_hand():
  word = fakes.encode_text('abc')
  params = fakes.make_params(
    [
      # Never heard of, because tokens are forced in its place.
      [fakes.NAN, fakes.EOS, *word],
      [*word, fakes.EOS],
      word * 4,
      word,
    ]
  )
  tokens = np.stack([fakes.prompt(k) for k in (1, 2, 3, 4)])
  lengths = np.full(4, 5, np.int32)
  prefill = decode_loop.make_prefill(fakes.FNS)
  prompts = prefill(params, tokens, lengths)
  state = decode_loop.make_empty_state(prefill)(params, 4, 24)
  order = jnp.arange(4)
  # Only the first count rows are copied.
  state = decode_loop.insert(state, prompts, order, order, 3)
  assert (state.cache.keys[:, :3, :, :5] == prompts.cache.keys[:, :3]).all()
  assert not state.cache.keys[:, 3].any() and not state.seen[3].any()
  state = decode_loop.insert(state, prompts, order[3:], order[3:], 1)
  steps = decode_loop.make_decode_steps(
    fakes.FNS, SAMPLING, COT_FORMAT, num_steps=8, num_valid_tokens=NUM_VALID
  )
  forced_ids = np.zeros((4, 2), np.int32)
  forced_ids[0] = word[:2]
  control = decode_loop.Control(
    key_data=np.zeros((4, 2), np.uint32),
    prompt_lengths=lengths,
    starts=np.zeros(4, np.int32),
    stops=np.asarray([3, 20, 6, 0], np.int32),
    forced_ids=forced_ids,
    forced_starts=np.zeros(4, np.int32),
    forced_counts=np.asarray([2, 0, 0, 0], np.int32),
  )
  state, records = jax.jit(steps)(params, state, control)
  # Forced, then one drawn; to the end token; to the stop; never started.
  counts = [3, 4, 6, 0]
  assert records.counts.tolist() == counts
  assert state.cache.lengths.tolist() == [5 + count for count in counts]
  written = [records.tokens[: counts[row], row].tolist() for row in range(4)]
  assert written == [[*word[:2], word[0]], [*word, fakes.EOS], word * 2, []]
  assert records.finite[:3, 0].tolist() == [False, True, True]
  # All rows rest after six steps of eight.
  assert not records.tokens[6:].any()


def test_rows_and_vocabulary_do_not_mix():
  """Gradients of a row's distribution reach only its own logits."""

  def mass(logits):
    probs, _, _ = score_reading.score_distribution(logits, fakes.SCORE_IDS, 50)
    return probs[0].sum()

  logits = jax.random.normal(jax.random.key(0), (2, 64))
  grads = jax.grad(mass)(logits)
  # The softmax is over the padded rows of the vocabulary, too.
  assert (grads[0] != 0).all() and (grads[1] == 0).all()


def test_greedy_index_and_finiteness_are_of_valid_tokens():
  logits = jnp.zeros((4, 8)).at[0, 2].set(1.0).at[0, 7].set(5.0)
  logits = logits.at[1, 3].set(jnp.nan).at[2, 0].set(-jnp.inf)
  logits = logits.at[3, 7].set(-jnp.inf)
  _, greedy, finite = score_reading.score_distribution(logits, (1, 2), 6)
  assert greedy[0] == 1
  _, greedy, _ = score_reading.score_distribution(logits, (1, 3, 7), 6)
  assert greedy[0] == -1
  assert finite.tolist() == [True, False, False, True]
