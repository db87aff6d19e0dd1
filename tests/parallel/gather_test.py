"""Tests of tract_jax.parallel.gather, on eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.parallel import gather, partition
from tract_jax.parallel import mesh as mesh_lib

AXES = ('embed', 'mlp')


@pytest.fixture(name='mesh')
def _mesh():
  return mesh_lib.make_mesh(2, 2, 2)


def _weight(mesh, shape=(8, 4), axes=AXES):
  values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  return jax.device_put(values, partition.named_sharding(mesh, axes))


def test_a_weight_is_whole_along_fsdp_and_split_along_tensor(mesh):
  weight = _weight(mesh)
  assert weight.sharding.shard_shape(weight.shape) == (4, 2)
  whole = jax.jit(lambda w: gather.gathered(mesh, AXES, w))(weight)
  assert whole.sharding.shard_shape(whole.shape) == (8, 2)
  np.testing.assert_array_equal(whole, weight)


def test_its_gradient_goes_back_to_where_it_lies(mesh):
  weight = _weight(mesh)
  x = jax.device_put(
    np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32),
    partition.batch_sharding(mesh),
  )

  def loss(weight, x):
    return jnp.sum(jnp.sin(x @ gather.gathered(mesh, AXES, weight)))

  seen = []

  @jax.jit
  def grad(weight, x):
    _, pull = jax.vjp(loss, weight, x)
    result = pull(jnp.ones(()))[0]
    jax.debug.inspect_array_sharding(result, callback=seen.append)
    return result

  expected = jax.grad(lambda w: jnp.sum(jnp.sin(np.asarray(x) @ w)))(
    np.asarray(weight)
  )
  np.testing.assert_allclose(grad(weight, x), expected, atol=1e-5)
  assert seen[0].shard_shape((8, 4)) == (4, 2)


@pytest.mark.parametrize(
  ('axes', 'shape', 'part'),
  [
    ((None,), (8,), None),
    (('heads', 'lora_rank'), (8, 4), None),
    (('lora_rank', 'embed'), (8, 4), (8, 4)),
    # Three blocks of scales on two devices: each has all of them.
    (('mlp_blocks', 'embed'), (3, 4), (3, 4)),
  ],
)
def test_only_what_is_split_over_fsdp_moves(mesh, axes, shape, part):
  weight = np.zeros(shape, np.float32)
  if part is None:
    assert gather.gathered(mesh, axes, weight) is weight
  else:
    whole = jax.jit(lambda w: gather.gathered(mesh, axes, w))(weight)
    assert whole.sharding.shard_shape(shape) == part
