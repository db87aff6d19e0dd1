"""Heads that have more room in the cache than they need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tract_jax.models import placement, transformer

CONFIG = small_models.CONFIG


@pytest.mark.parametrize('kind', ['', 'int8'])
def test_a_cache_of_wider_heads_gives_the_same(kind):
  params = transformer.make_model(CONFIG).init(jax.random.key(1))
  tokens = jax.random.randint(jax.random.key(0), (2, 14), 0, 64)
  found = []
  for multiple, width in ((1, CONFIG.head_dim), (24, 24)):
    fns = transformer.make_model(
      CONFIG,
      cache_quantization=kind,
      placement=placement.Placement(cache_multiple=multiple),
    )
    _, cache = fns.prefill(params, tokens[:, :9], jnp.array([9, 4]), 14)
    for i in range(9, 12):
      hidden, cache = fns.decode(params, tokens[:, i], cache)
      found.append(hidden)
    assert cache.width == width
    assert {x.shape[-1] for x in jax.tree.leaves(cache.keys)} <= {width, 14}
  np.testing.assert_allclose(found[:3], found[3:], atol=1e-6)
