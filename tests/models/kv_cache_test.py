import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax import types
from tract_jax.models import kv_cache

LAYERS, B, K, T, H = 3, 2, 2, 5, 4


def _zeros(cache_length=T):
  keys = jnp.zeros((LAYERS, B, K, cache_length, H))
  return types.KVCache(keys, keys, jnp.zeros(B, jnp.int32))


@pytest.mark.parametrize(
  ('cache_length', 'most', 'block'),
  [(5, 128, 1), (48, 128, 16), (256, 128, 128), (1664, 128, 128)]
  + [(1536, 512, 512), (1664, 512, 128)],
)
def test_blocks_are_powers_of_two_that_divide_the_cache(
  cache_length, most, block
):
  assert kv_cache.block_length(cache_length, most) == block


def test_a_block_is_read_from_its_own_layer():
  keys = jnp.arange(LAYERS * B * K * 8 * H, dtype=jnp.float32)
  keys = keys.reshape(LAYERS, B, K, 8, H)
  cache = types.KVCache(keys[:, :, :, :6], -keys[:, :, :, :6], jnp.zeros(B))
  got_keys, got_values = jax.jit(kv_cache.read, static_argnums=(3, 4))(
    cache, 2, 4, 2, jnp.float32
  )
  np.testing.assert_array_equal(got_keys, keys[2, :, :, 4:6])
  np.testing.assert_array_equal(got_values, -keys[2, :, :, 4:6])


def test_a_token_is_written_at_its_rows_length_and_nowhere_else():
  keys, values = np.random.default_rng(0).normal(size=(2, LAYERS, B, K, H))
  old = np.random.default_rng(1).normal(size=(2, LAYERS, B, K, T, H))
  cache = types.KVCache(*map(jnp.array, old), lengths=jnp.array([3, 0]))
  new = jax.jit(kv_cache.appended)(cache, jnp.array(keys), jnp.array(values))
  assert new.lengths.tolist() == [4, 1]
  for got, before, token in (
    (new.keys, old[0], keys),
    (new.values, old[1], values),
  ):
    expected = before.copy()
    expected[:, 0, :, 3] = token[:, 0]
    expected[:, 1, :, 0] = token[:, 1]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_full_row_drops_its_token_and_keeps_the_others():
  cache = _zeros()
  cache = types.KVCache(cache.keys, cache.values, jnp.array([T, T - 1]))
  token = jnp.ones((LAYERS, B, K, H))
  new = kv_cache.appended(cache, token, token)
  assert not new.keys[:, 0].any()
  assert new.keys[:, 1, :, T - 1].all()


def test_from_prefill_makes_room():
  keys = jnp.ones((LAYERS, B, K, 2, H))
  cache = kv_cache.from_prefill(keys, 2 * keys, jnp.array([2, 1]), T)
  assert cache.values.shape == (LAYERS, B, K, T, H)
  assert (cache.values[:, :, :, :2] == 2).all()
  assert not cache.values[:, :, :, 2:].any()
  assert cache.lengths.tolist() == [2, 1]
  with pytest.raises(ValueError, match='cache_length=1'):
    kv_cache.from_prefill(keys, keys, jnp.array([2, 1]), 1)


def test_eight_bits_are_within_half_a_step_of_the_largest_entry():
  keys = np.random.default_rng(0).normal(size=(LAYERS, B, K, 4, H))
  keys[1, 1, 1, 2] = 0
  cache = kv_cache.from_prefill(
    jnp.array(keys), jnp.array(-2 * keys), jnp.array([4, 2]), 8, 'int8'
  )
  assert cache.keys.codes.dtype == jnp.int8 and cache.length == 8
  token = np.random.default_rng(1).normal(size=(LAYERS, B, K, H))
  cache = kv_cache.appended(cache, jnp.array(token), jnp.array(-2 * token))
  got_keys, got_values = kv_cache.read(cache, 1, 0, cache.length, jnp.float32)
  wanted = np.zeros((B, K, 8, H))
  wanted[:, :, :4] = keys[1]
  wanted[0, :, 4], wanted[1, :, 2] = token[1]
  step = np.abs(wanted).max(axis=-1, keepdims=True) / 127
  assert (np.abs(got_keys - wanted) <= step / 2 + 1e-6).all()
  assert (np.abs(got_values + 2 * wanted) <= step + 1e-6).all()
  assert not np.allclose(got_keys, wanted, atol=1e-5)
