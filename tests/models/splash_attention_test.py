"""The splash kernel, interpreted on the CPU, against plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.models import attention, splash_attention

B, L, N, K = 2, 200, 4, 2
# A row of two examples and padding, and a row of one example.
SEGMENTS = np.array([[1] * 90 + [2] * 95 + [0] * 15, [1] * L])


def _heads(head_dim, dtype=jnp.float32, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  return [
    jax.random.normal(key, (B, L, heads, head_dim)).astype(dtype)
    for key, heads in zip(keys, (N, K, K), strict=True)
  ]


def _result(attend, heads, window, segments=SEGMENTS):
  """The output [B, L, N, H], and the gradients of a random sum of it."""
  weights = jax.random.normal(jax.random.key(1), heads[0].shape)

  @jax.jit
  def run(heads):
    def loss(heads):
      output = attend(*heads, jnp.array(segments), window)
      return jnp.sum(output.astype(jnp.float32) * weights), output

    grads, output = jax.grad(loss, has_aux=True)(heads)
    return [output, *grads]

  return [np.asarray(x, np.float32) for x in run(heads)]


_splash = functools.partial(splash_attention.causal_attention, interpret=True)


@pytest.fixture(autouse=True)
def _two_blocks(monkeypatch):
  """Rows of 200 tokens are two blocks of 128, with 56 tokens of padding."""
  monkeypatch.setattr(splash_attention, 'MAX_BLOCK', 128)


@pytest.mark.parametrize(
  ('head_dim', 'window'),
  [(64, None), (64, 100), (128, None), (128, 30), (8, 1), (8, L)],
)
def test_equals_plain_attention_in_float32(head_dim, window):
  heads = _heads(head_dim)
  expected = _result(attention.causal_attention, heads, window)
  for got, wanted in zip(
    _result(_splash, heads, window), expected, strict=True
  ):
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(('head_dim', 'window'), [(64, 100), (128, None)])
def test_equals_plain_attention_in_bfloat16(head_dim, window):
  # Outputs are below one half, where a step of bfloat16 is at most 2e-3.
  queries, keys, values = _heads(head_dim, jnp.bfloat16)
  heads = [queries, keys, values / 8]
  got = _result(_splash, heads, window)
  plain = _result(attention.causal_attention, heads, window)
  wide = [x.astype(jnp.float32) for x in heads]
  exact = _result(attention.causal_attention, wide, window)

  np.testing.assert_allclose(got[0], plain[0], rtol=0, atol=2e-3)

  def distances(results):
    return [
      np.sqrt(np.mean((x - y) ** 2) / np.mean(y**2))
      for x, y in zip(results, exact, strict=True)
    ]

  # From the float32 result: the output's is smaller, and the gradients' about
  # as small; those of queries are rounded once more, with their scale.
  ours, theirs = distances(got), distances(plain)
  assert ours[0] < theirs[0]
  assert np.max(np.divide(ours, theirs)) < 1.4


def test_one_head_for_all_queries_and_one_for_each():
  queries, keys, values = _heads(8)
  for num_kv_heads in (1, N):
    heads = [queries] + [
      jnp.tile(x, (1, 1, 2, 1))[:, :, :num_kv_heads] for x in (keys, values)
    ]
    np.testing.assert_allclose(
      _splash(*heads, jnp.array(SEGMENTS), None),
      attention.causal_attention(*heads, jnp.array(SEGMENTS), None),
      atol=1e-5,
    )


def test_rows_of_padding_are_finite():
  for x in _result(_splash, _heads(8), 3, np.zeros((B, L), int)):
    assert np.isfinite(x).all()


@pytest.mark.parametrize(
  ('length', 'block'),
  [(1, 128), (128, 128), (200, 256), (640, 384), (3072, 512), (3200, 512)],
)
def test_blocks_are_few_and_even(monkeypatch, length, block):
  monkeypatch.setattr(splash_attention, 'MAX_BLOCK', 512)
  assert splash_attention.block_length(length) == block


def test_the_square_of_scores_never_exists():
  def loss(heads):
    return _splash(*heads, jnp.array(SEGMENTS), None).sum()

  shapes = [
    variable.aval.shape
    for equation in jax.make_jaxpr(jax.grad(loss))(_heads(8)).eqns
    for variable in equation.outvars
  ]
  assert not [shape for shape in shapes if shape[-2:] in ((L, L), (256, 256))]


# What a TPU runs; neither needs one.


def _lowered(head_dim):
  def loss(heads):
    return splash_attention.causal_attention(
      *heads, jnp.array(SEGMENTS), 100
    ).sum()

  heads = [
    jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in _heads(head_dim)
  ]
  return jax.jit(jax.grad(loss)).trace(heads).lower(lowering_platforms=('tpu',))


@pytest.mark.parametrize('head_dim', [64, 128])
def test_on_a_tpu_it_is_the_kernel(head_dim):
  text = _lowered(head_dim).as_text()
  assert text.count('tpu_custom_call') >= 3
  for phase in ('fwd', 'dq', 'dkv'):
    assert f'splash_mha_{phase}_segmented' in text
