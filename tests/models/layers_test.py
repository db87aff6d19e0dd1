import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.models import config as config_lib
from tract_jax.models import layers, lora, rope

CONFIG = config_lib.ModelConfig(
  vocab_size=64,
  hidden_size=2,
  intermediate_size=3,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_position_embeddings=16,
  norm_eps=0.5,
)


def _spec(rank=0, alpha=4.0, dtype=jnp.float32):
  return layers.Spec(CONFIG, lora.LoraConfig(rank, alpha), jnp.dtype(dtype))


def test_norm_by_hand():
  norm = layers.RMSNorm(_spec(), 2)
  norm.weight[...] = jnp.array([2.0, 10.0])
  # The mean square of (1, 2) is 2.5; with eps 0.5, its root is sqrt(3).
  got = norm(jnp.array([[1.0, 2.0]]))
  np.testing.assert_allclose(got, [[2 / 3**0.5, 20 / 3**0.5]], rtol=1e-6)


def test_heads_are_normed_one_by_one_before_they_are_rotated():
  config = dataclasses.replace(CONFIG, qk_norm=True)
  spec = layers.Spec(config, lora.LoraConfig(0, 1.0), jnp.dtype(jnp.float32))
  attention = layers.Attention(spec, nnx.Rngs(jax.random.key(0)))
  attention.k_norm.weight[...] = jnp.arange(1.0, 9.0)
  # Weights of order 1: the mean square is far from eps.
  weight = jax.random.normal(jax.random.key(1), (2, 16))
  attention.k_proj.weight[...] = weight
  rotation = rope.rotations(jnp.array([[5]]), rope.inverse_frequencies(config))
  x = jnp.array([[[1.0, -2.0]]])
  _, (keys, _) = attention(x, rotation, lambda queries, *_: queries)

  for head in range(2):
    raw = (x[0, 0] @ weight)[8 * head : 8 * head + 8]
    normed = raw / jnp.sqrt(jnp.mean(raw**2) + 0.5) * jnp.arange(1.0, 9.0)
    expected = rope.rotated(normed[None, None, None], rotation)[0, 0, 0]
    np.testing.assert_allclose(keys[0, 0, head], expected, rtol=1e-5)


def test_the_norm_of_bfloat16_is_taken_in_float32():
  norm = layers.RMSNorm(_spec(dtype=jnp.bfloat16), 2)
  # The squares of 200 and 201 fall together in bfloat16, and so would these.
  x = jnp.array([200.0, 201.0], jnp.bfloat16)
  assert norm(x).dtype == jnp.bfloat16
  wide = np.float32(x)
  expected = wide / np.sqrt(np.mean(wide**2) + 0.5)
  np.testing.assert_allclose(np.float32(norm(x)), expected, rtol=4e-3)


def test_linear_by_hand():
  linear = layers.Linear(
    _spec(rank=2),
    'up_proj',
    (2,),
    (1,),
    ('embed', 'mlp'),
    nnx.Rngs(jax.random.key(0)),
    bias=True,
  )
  linear.weight[...] = jnp.array([[1.0], [2.0]])
  linear.bias[...] = jnp.array([100.0])
  linear.lora_a[...] = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  linear.lora_b[...] = jnp.array([[10.0], [20.0]])
  # x = (1, 3): x W = 7, x A B = 70, times alpha / R = 2.
  got = linear(jnp.array([[[1.0, 3.0]]]))
  assert got.tolist() == [[[247.0]]]


@pytest.mark.parametrize(
  ('num_rows', 'keeps'), [((2, 3), True), ((2, 2), False), ((6,), True)]
)
def test_heads_are_dimensions_of_products_of_many_rows(num_rows, keeps):
  spec = dataclasses.replace(_spec(), keep_heads=True)
  dims, axes = ((3, 2), (5, 4)), ('heads', 'embed')
  linear = layers.Linear(
    spec, 'o_proj', *dims, axes, nnx.Rngs(jax.random.key(0)), bias=True
  )
  linear.bias[...] = jnp.arange(20.0)
  x = jax.random.normal(jax.random.key(1), (*num_rows, 3, 2))
  expected = x.reshape(-1, 6) @ linear.weight[...] + jnp.arange(20.0)[None]
  np.testing.assert_allclose(
    linear(x), expected.reshape(*num_rows, 5, 4), rtol=1e-5, atol=1e-5
  )
  product = next(
    eqn
    for eqn in jax.make_jaxpr(linear)(x).eqns
    if eqn.primitive.name == 'dot_general'
  )
  flat = (np.prod(num_rows), 20)
  shape = (*num_rows, 5, 4) if keeps else flat
  assert product.outvars[0].aval.shape == shape


@pytest.mark.parametrize('rank', [0, 2])
def test_variables_have_their_type_and_axes(rank):
  block = layers.Block(_spec(rank), nnx.Rngs(jax.random.key(0)))
  adapters = nnx.to_flat_state(nnx.state(block, nnx.LoRAParam))
  assert len(adapters) == (14 if rank else 0)
  for path, variable in nnx.to_flat_state(nnx.state(block)):
    assert len(variable.logical_axes) == variable.ndim, path
    assert isinstance(variable, nnx.LoRAParam) == ('lora' in path[-1])


def test_a_new_adapter_is_zero_in_b_and_bounded_in_a():
  linear = layers.Linear(
    _spec(rank=8, dtype=jnp.bfloat16),
    'q_proj',
    (100,),
    (5, 10),
    ('embed', 'heads'),
    nnx.Rngs(jax.random.key(0)),
  )
  assert linear.weight.dtype == jnp.bfloat16
  assert linear.lora_a.dtype == linear.lora_b.dtype == jnp.float32
  assert not linear.lora_b[...].any()
  assert 0.09 < jnp.abs(linear.lora_a[...]).max() <= 0.1


def test_silu_is_exact_where_the_sigmoid_is_tiny():
  x = np.array([-100.0, -30.0, -12.0, -1.0, 0.0, 2.0, 100.0])
  exact = x / (1 + np.exp(-x))
  np.testing.assert_allclose(
    layers.silu(jnp.float32(x)), exact, rtol=1e-6, atol=1e-30
  )


def test_slope_of_silu_is_exact_and_finite():
  x = np.array([-1000.0, -100.0, -12.0, -1.0, 0.0, 2.0, 100.0])
  sigmoid = 1 / (1 + np.exp(-np.maximum(x, -700)))
  exact = sigmoid * (1 + x * (1 - sigmoid))
  slope = jax.vmap(jax.grad(layers.silu))(jnp.float32(x))
  np.testing.assert_allclose(slope, exact, rtol=1e-5, atol=1e-30)
