"""What each policy stores for the backward pass, counted and by hand.

Axes: B = 4 rows, L = 16, D = 32, N = 4, K = 2, H = 8, F = 48, 3 layers.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tract_jax import types
from tract_jax.models import (
  placement,
  remat,
  splash_attention,
  transformer,
)

B, L, LAYERS = 4, 16, 3
CONFIG = dataclasses.replace(small_models.CONFIG, num_layers=LAYERS)
D, F = CONFIG.hidden_size, CONFIG.intermediate_size
NH = CONFIG.num_heads * CONFIG.head_dim
KH = CONFIG.num_kv_heads * CONFIG.head_dim

# Numbers per token and layer.
STORED = {
  'dots': D + NH + 2 * KH + NH + D + 2 * F,
  'heads': D + NH + 2 * KH + NH + D,
  'inputs': D + NH + D,
  'attention': D + NH,
  'full': D,
}


def _make_loss(**kwargs):
  """params -> a number, and params."""
  fns = transformer.make_model(CONFIG, **kwargs)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.array(rng.normal(0.5, 0.2, x.shape), x.dtype),
    transformer.abstract_params(fns),
  )
  tokens = jax.random.randint(jax.random.key(0), (B, L), 0, 64)
  positions = jnp.broadcast_to(jnp.arange(L)[None], (B, L))

  def loss(params):
    hidden = fns.hidden(params, tokens, positions, jnp.ones_like(tokens))
    return jnp.sum(jnp.sin(hidden))

  return loss, params


def _stored_per_token(loss, params) -> float:
  """Numbers per token and layer that the backward pass finds stored."""
  residuals = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
  weights = {leaf.shape for leaf in jax.tree.leaves(params)}
  sizes = [
    math.prod(leaf.shape)
    for leaf in jax.tree.leaves(residuals)
    if leaf.shape[:1] == (LAYERS,) and leaf.shape not in weights
  ]
  return sum(sizes) / (LAYERS * B * L)


@pytest.mark.parametrize('policy', STORED)
def test_a_policy_stores_what_it_says(policy):
  loss, params = _make_loss(remat=policy)
  assert _stored_per_token(loss, params) == STORED[policy]


def test_policies_store_less_and_less():
  assert list(remat.POLICIES) == ['none', *STORED]
  sizes = [_stored_per_token(*_make_loss(remat=p)) for p in remat.POLICIES]
  assert sizes == sorted(sizes, reverse=True)
  assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize('fuse', [False, True])
@pytest.mark.parametrize('policy', STORED)
def test_what_adapters_make_of_their_inputs_is_stored(policy, fuse):
  rank, num_adapted = 2, 7
  loss, params = _make_loss(
    remat=policy,
    lora_rank=rank,
    placement=placement.Placement(fuse_adapters=fuse),
  )
  stored = _stored_per_token(loss, params)
  assert stored == STORED[policy] + num_adapted * rank


@pytest.mark.parametrize('policy', ['attention', 'full'])
def test_the_kernels_results_are_stored_by_name(policy):
  attend = functools.partial(splash_attention.causal_attention, interpret=True)
  loss, params = _make_loss(remat=policy, placement=placement.Placement(attend))
  # The output [N, 128, H] of rows padded to a block, and log-sum-exps [N, 128].
  results = 128 / L * (NH + CONFIG.num_heads)
  is_stored = policy == 'attention'
  assert _stored_per_token(loss, params) == D + is_stored * results


@pytest.mark.parametrize('policy', [*STORED])
def test_a_policy_changes_no_gradient(policy):
  loss, params = _make_loss(remat='none')
  expected = jax.jit(jax.grad(loss))(params)
  again, _ = _make_loss(remat=policy)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    jax.jit(jax.grad(again))(params),
    expected,
  )


def test_an_unknown_policy_is_refused():
  with pytest.raises(types.InputError, match="remat='some'"):
    transformer.make_model(CONFIG, remat='some')
