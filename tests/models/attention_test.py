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


@pytest.mark.parametrize(
  ('length', 'blocks'), [(100, 1), (300, 3), (1024, 8), (1025, 5), (4096, 8)]
)
def test_a_long_row_has_larger_blocks_not_more(length, blocks):
  heads = [
    jax.ShapeDtypeStruct((B, length, heads, H), jnp.float32)
    for heads in (N, K, K)
  ]
  segment_ids = jax.ShapeDtypeStruct((B, length), jnp.int32)
  jaxpr = jax.make_jaxpr(
    functools.partial(attention.causal_attention, window=None)
  )(*heads, segment_ids)
  names = [eqn.primitive.name for eqn in jaxpr.eqns]
  assert names.count('checkpoint') + names.count('remat2') == blocks


def test_a_row_of_padding_is_finite():
  segment_ids = jnp.zeros((B, L), jnp.int32)

  def loss(heads):
    return attention.causal_attention(*heads, segment_ids, 2).sum()

  value, grads = jax.jit(jax.value_and_grad(loss))(_heads())
  assert jnp.isfinite(value)
  assert all(jnp.isfinite(grad).all() for grad in grads)


def _over_cache(new, cached, lengths, window, block):
  """`cached_attention` of one token over [B, K, T, H]."""

  # The lengths are an argument: as constants, each would make its own program.
  @jax.jit
  def attend(lengths):
    def read_block(start):
      return [
        jax.lax.dynamic_slice_in_dim(entries, start, block, 2)
        for entries in cached
      ]

    return attention.cached_attention(
      *new,
      read_block=read_block,
      block=block,
      width=cached[0].shape[-1],
      starts=lengths,
      seen=attention.seen_entries(
        cached[0].shape[2], lengths, np.zeros(1, np.int32), window
      ),
      sees_own=np.ones((1, 1), bool),
      window=window,
    )

  return attend(lengths)


def _new_and_cached(lengths, room=0):
  """One token behind each of B rows; what is cached past them is garbage."""
  rows = jnp.arange(B)
  heads = _heads()
  new = [x[rows, lengths][:, None] for x in heads]
  past = (jnp.arange(L + room)[None] >= lengths[:, None])[..., None, None]
  cached = []
  for x in heads[1:]:
    x = jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0)))
    cached.append(jnp.swapaxes(jnp.where(past, 1e3, x), 1, 2))
  return new, cached


@pytest.mark.parametrize('window', [None, 1, 4])
@pytest.mark.parametrize('block', [1, 4, 12])
def test_one_token_over_the_cache_equals_the_whole_row(window, block):
  ones = jnp.ones((B, L), jnp.int32)
  whole = _attention(window)(*_heads(), ones)
  lengths = jnp.array([10, 6])
  new, cached = _new_and_cached(lengths, room=1)
  output = _over_cache(new, cached, lengths, window, block)
  np.testing.assert_allclose(
    output[:, 0], whole[jnp.arange(B), lengths], atol=1e-5
  )


@pytest.mark.parametrize('window', [None, 3])
def test_room_and_other_rows_do_not_change_a_bit(window):
  lengths = jnp.array([10, 3])
  new, cached = _new_and_cached(lengths, room=5)
  wanted = _over_cache(new, cached, lengths, window, 4)
  new, cached = _new_and_cached(lengths, room=13)
  roomy = _over_cache(new, cached, lengths, window, 4)
  np.testing.assert_array_equal(roomy, wanted)
  # The second row does not hear of the first one's other length.
  new, cached = _new_and_cached(jnp.array([1, 3]), room=5)
  beside = _over_cache(new, cached, jnp.array([1, 3]), window, 4)
  np.testing.assert_array_equal(beside[1], wanted[1])


def test_an_empty_cache_gives_the_own_value():
  new = [x[:, :1] for x in _heads()]
  cached = [jnp.full((B, K, 5, H), 7.0)] * 2
  output = _over_cache(new, cached, jnp.zeros(B, jnp.int32), None, 5)
  np.testing.assert_allclose(
    output, jnp.repeat(new[2], N // K, axis=2), atol=1e-6
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


def test_an_idle_row_does_not_make_others_read_what_their_window_left():
  lengths, window, block = jnp.array([0, 10]), 4, 4
  new, cached = _new_and_cached(lengths, room=1)
  expected = _over_cache(new, cached, lengths, window, block)
  # What is read must be finite: what is not seen is multiplied by zero.
  unread = [x.at[:, :, :4].set(jnp.nan) for x in cached]
  found = _over_cache(new, unread, lengths, window, block)
  assert jnp.isfinite(expected).all()
  np.testing.assert_array_equal(found, expected)
