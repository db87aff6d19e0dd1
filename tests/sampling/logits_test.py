"""Tests of the logits processors and the draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tract_jax import types
from tract_jax.sampling import logits as logits_lib

NUM_ROWS, VOCAB_SIZE = 4, 64


def _logits(seed=0, shape=(NUM_ROWS, VOCAB_SIZE)):
  return 3 * jax.random.normal(jax.random.key(seed), shape)


def _params(**changes):
  neutral = dict(top_p=1.0, repetition_penalty=1.0)
  return logits_lib.SamplingParams(**{**neutral, **changes})


def _seen(tokens):
  seen = np.zeros((NUM_ROWS, VOCAB_SIZE), bool)
  seen[np.arange(NUM_ROWS)[:, None], tokens] = True
  return jnp.asarray(seen)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
  'changes',
  [
    dict(temperature=0.7),
    dict(top_k=5),
    dict(top_k=1000),
    dict(top_p=0.9),
    dict(top_p=0.3),
    dict(top_p=0.999),
    dict(repetition_penalty=1.3),
    dict(repetition_penalty=0.8),
    dict(temperature=1.5, top_k=20, top_p=0.8, repetition_penalty=1.03),
  ],
  ids=str,
)
def test_parity_with_transformers(changes, seed):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  params = _params(**changes)
  tokens = np.random.default_rng(seed).integers(VOCAB_SIZE, size=(NUM_ROWS, 9))
  processors = transformers.LogitsProcessorList(
    [
      transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
      transformers.TemperatureLogitsWarper(params.temperature),
      transformers.TopKLogitsWarper(params.top_k or VOCAB_SIZE),
      transformers.TopPLogitsWarper(params.top_p),
    ]
  )
  logits = _logits(seed)
  wanted = processors(
    torch.from_numpy(tokens), torch.from_numpy(np.array(logits))
  ).numpy()
  got = np.asarray(logits_lib.processed(logits, params, seen=_seen(tokens)))
  np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))
  np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_top_p_by_hand():
  logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.125, 0.125]]))

  def kept(p):
    return np.isfinite(logits_lib.top_p(logits, p))[0].tolist()

  assert kept(0.4) == [True, False, False, False]
  assert kept(0.6) == [True, True, False, False]
  # Equally likely tokens stay or go together.
  assert kept(0.8) == [True, True, True, True]


def test_top_p_on_a_large_flat_and_a_sure_row():
  flat = jnp.zeros((1, 50_000))
  assert np.isfinite(logits_lib.top_p(flat, 0.5)).all()
  sure = jnp.zeros((1, 64)).at[0, 7].set(200.0)
  assert np.flatnonzero(np.isfinite(logits_lib.top_p(sure, 0.9)[0])) == [7]


def test_top_k_keeps_equals():
  logits = jnp.asarray([[3.0, 1.0, 1.0, 0.0]])
  kept = np.isfinite(logits_lib.top_k(logits, 2))[0].tolist()
  assert kept == [True, True, True, False]


def test_penalty_by_hand():
  logits = jnp.asarray([[2.0, -2.0, 2.0, -2.0]])
  seen = jnp.asarray([[True, True, False, False]])
  got = logits_lib.penalized(logits, seen, 2.0)
  np.testing.assert_allclose(got, [[1.0, -4.0, 2.0, -2.0]])


def test_greedy_takes_the_maximum_of_penalized_logits():
  logits = jnp.asarray([[2.0, 1.5]])
  keys = jax.random.split(jax.random.key(0), 1)
  params = _params(temperature=0.0, repetition_penalty=2.0)
  seen = jnp.asarray([[True, False]])
  assert logits_lib.sample_tokens(keys, logits, params).tolist() == [0]
  drawn = logits_lib.sample_tokens(keys, logits, params, seen=seen)
  assert drawn.tolist() == [1]


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_padded_vocabulary_is_never_sampled(temperature):
  logits = jnp.zeros((512, 8)).at[:, 5:].set(50.0)
  keys = jax.random.split(jax.random.key(0), 512)
  drawn = logits_lib.sample_tokens(
    keys, logits, _params(temperature=temperature), num_valid_tokens=5
  )
  assert drawn.max() < 5


def test_inverse_cdf_by_hand():
  # Tokens 3, 200 and 299 of 300, over three blocks, with 1/2, 1/4 and 1/4.
  logits = np.full((1, 300), -np.inf, np.float32)
  logits[0, [3, 200, 299]] = np.log([2.0, 1.0, 1.0])
  below_1 = np.nextafter(np.float32(1), np.float32(0))
  wanted = {0.0: 3, 0.4999: 3, 0.5: 200, 0.7499: 200, 0.75: 299, below_1: 299}
  uniforms = jnp.asarray(list(wanted), jnp.float32)
  rows = jnp.broadcast_to(logits, (len(wanted), 300))
  found = jax.jit(logits_lib.inverse_cdf)(uniforms, rows)
  assert found.tolist() == list(wanted.values())


@pytest.mark.parametrize('size', [5, 128, 1000])
def test_inverse_cdf_equals_a_search_in_sums(size):
  rng = np.random.default_rng(size)
  logits = rng.normal(size=(200, size)).astype(np.float32) * 3
  logits[rng.random(logits.shape) < 0.5] = -np.inf
  logits[:, -1] = 0
  uniforms = rng.random(200).astype(np.float32)
  found = logits_lib.inverse_cdf(jnp.asarray(uniforms), jnp.asarray(logits))
  sums = np.exp(logits.astype(np.float64)).cumsum(axis=1)
  places = sums / sums[:, -1:] - uniforms[:, None]
  # Where a sum is as good as the number, rounding decides.
  sure = np.abs(places).min(axis=1) > 1e-5
  assert sure.mean() > 0.9
  assert (np.asarray(found) == (places <= 0).sum(axis=1))[sure].all()


@pytest.mark.parametrize('size', [3, 50, 700])
def test_a_token_without_probability_is_never_drawn(size):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(500, size)).astype(np.float32)
  # Blocks in front of, between and behind the tokens are empty.
  is_open = np.isin(np.arange(size), [size // 3, size // 2])
  logits = jnp.where(is_open, logits, -jnp.inf)
  for number in (0.0, 0.5, 1 - 2**-24, 1.0):
    found = logits_lib.inverse_cdf(jnp.full(500, number, jnp.float32), logits)
    assert set(found.tolist()) <= {size // 3, size // 2}


def test_sampled_frequencies():
  num_draws = 20_000
  logits = jnp.asarray([[1.0, 0.0, -1.0, 2.0, -2.0, 0.5]])
  params = _params(temperature=1.3, top_p=0.95)
  key_data = jnp.tile(jnp.asarray([[3, 4]], jnp.uint32), (num_draws, 1))
  keys = logits_lib.row_keys(key_data, jnp.arange(num_draws))
  rows = jnp.broadcast_to(logits, (num_draws, 6))
  drawn = logits_lib.sample_tokens(keys, rows, params)
  counts = np.bincount(drawn, minlength=6)
  probs = np.asarray(jax.nn.softmax(logits_lib.processed(logits, params)))[0]
  assert (counts[probs == 0] == 0).all()
  # By hand: the likeliest tokens whose predecessors have a mass below .95.
  tempered = np.exp(np.asarray([1.0, 0.0, -1.0, 2.0, -2.0, 0.5]) / 1.3)
  tempered[4] = 0.0
  wanted = tempered / tempered.sum()
  np.testing.assert_allclose(probs, wanted, atol=1e-6)
  kept = wanted > 0
  pvalue = stats.chisquare(counts[kept], num_draws * wanted[kept]).pvalue
  assert pvalue > 1e-3


def test_row_keys_depend_on_key_and_index_alone():
  key_data = jnp.asarray([[1, 2], [1, 2], [1, 3]], jnp.uint32)
  keys = logits_lib.row_keys(key_data, jnp.asarray([0, 1, 0]))
  data = [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]
  assert len(set(data)) == 3
  alone = logits_lib.row_keys(key_data[2:], jnp.asarray([0]))
  assert tuple(np.asarray(jax.random.key_data(alone))[0].tolist()) == data[2]


def test_bad_params_are_all_reported():
  with pytest.raises(types.InputError) as error:
    logits_lib.SamplingParams(temperature=-1.0, top_p=0.0, max_new_tokens=0)
  lines = str(error.value).splitlines()
  assert [line.split('=')[0] for line in lines] == [
    'sampling.temperature',
    'sampling.top_p',
    'sampling.max_new_tokens',
  ]
