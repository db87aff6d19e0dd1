import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.models import attention

B, L, N, K, H = 2, 11, 4, 2, 8


def _heads(length=L, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  return [
    jax.random.normal(key, (B, length, heads, H))
    for key, heads in zip(keys, (N, K, K), strict=True)
  ]


def _attention(window):
  return jax.jit(functools.partial(attention.causal_attention, window=window))


def _by_hand(queries, keys, values, segment_ids, window):
  """One query at a time, in float64."""
  queries, keys, values = (np.float64(x) for x in (queries, keys, values))
  output = np.zeros(queries.shape)
  for b, i, n in np.ndindex(*queries.shape[:3]):
    k = n // (N // K)
    seen = [
      j
      for j in range(i + 1)
      if segment_ids[b, i] == segment_ids[b, j]
      and (window is None or i - j < window)
    ]
    scores = keys[b, seen, k] @ queries[b, i, n] / np.sqrt(H)
    probs = np.exp(scores - scores.max())
    output[b, i, n] = probs / probs.sum() @ values[b, seen, k]
  return output


SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 2, [1] * 11])


@pytest.mark.parametrize('window', [None, 1, 3, 100])
@pytest.mark.parametrize('block', [3, 4, 11, 512])
def test_equals_attention_by_hand(monkeypatch, window, block):
  monkeypatch.setattr(attention, 'QUERY_BLOCK', block)
  heads = _heads()
  output = _attention(window)(*heads, jnp.array(SEGMENTS))
  expected = _by_hand(*heads, SEGMENTS, window)
  np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize('window', [None, 4])
def test_blocks_give_the_gradient_of_one_block(monkeypatch, window):
  weights = jax.random.normal(jax.random.key(1), (B, L, N, H))

  def loss(heads):
    output = attention.causal_attention(*heads, jnp.array(SEGMENTS), window)
    return jnp.sum(output * weights)

  whole = jax.jit(jax.grad(loss))(_heads())
  monkeypatch.setattr(attention, 'QUERY_BLOCK', 3)
  # A new function, so that it is traced again.
  blocked = jax.jit(jax.grad(lambda heads: loss(heads)))(_heads())
  for got, expected in zip(blocked, whole, strict=True):
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_square_of_scores_never_exists(monkeypatch):
  monkeypatch.setattr(attention, 'QUERY_BLOCK', 16)
  length = 64
  segment_ids = jnp.ones((B, length), jnp.int32)

  def loss(heads):
    return attention.causal_attention(*heads, segment_ids, None).sum()

  pattern = rf'\[[\d,]*{length},{length}\]'
  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(_heads(length)))
  assert not re.search(pattern, jaxpr)
  monkeypatch.setattr(attention, 'QUERY_BLOCK', length)
  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(_heads(length)))
  assert re.search(pattern, jaxpr)


def test_a_row_of_padding_is_finite():
  segment_ids = jnp.zeros((B, L), jnp.int32)

  def loss(heads):
    return attention.causal_attention(*heads, segment_ids, 2).sum()

  value, grads = jax.jit(jax.value_and_grad(loss))(_heads())
  assert jnp.isfinite(value)
  assert all(jnp.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize('window', [None, 1, 4])
def test_one_token_over_the_cache_equals_the_whole_row(window):
  queries, keys, values = _heads()
  ones = jnp.ones((B, L), jnp.int32)
  whole = _attention(window)(queries, keys, values, ones)
  lengths = jnp.array([10, 6])
  rows = jnp.arange(B)
  new = [x[rows, lengths][:, None] for x in (queries, keys, values)]
  # What stands at and past the lengths is garbage, and large.
  past = (jnp.arange(L)[None] >= lengths[:, None])[..., None, None]
  cached = [jnp.swapaxes(jnp.where(past, 1e3, x), 1, 2) for x in (keys, values)]
  output = attention.cached_attention(*new, *cached, lengths, window)
  np.testing.assert_allclose(output[:, 0], whole[rows, lengths], atol=1e-5)


def test_an_empty_cache_gives_the_own_value():
  queries, keys, values = (x[:, :1] for x in _heads())
  cached = jnp.full((B, K, 5, H), 7.0)
  output = attention.cached_attention(
    queries, keys, values, cached, cached, jnp.zeros(B, jnp.int32), None
  )
  np.testing.assert_allclose(
    output, jnp.repeat(values, N // K, axis=2), atol=1e-6
  )


def test_softmax_is_float32_for_bfloat16_heads():
  # 1,024 equal keys: a bfloat16 sum of probabilities stops at 256.
  length = 1024
  queries = jnp.zeros((1, length, 1, H), jnp.bfloat16)
  ones = jnp.ones((1, length, 1, H), jnp.bfloat16)
  output = attention.causal_attention(
    queries, queries, ones, jnp.ones((1, length), jnp.int32), None
  )
  assert output.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(output), 1.0, atol=1e-2)
