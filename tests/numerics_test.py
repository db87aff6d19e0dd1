"""Masked sums and the one division."""

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import numerics


def test_masked_sum_leaves_out_what_is_masked():
  values = jnp.array([1.0, 2.0, 4.0])
  mask = jnp.array([True, False, True])
  assert numerics.masked_sum(values, mask) == 5.0
  np.testing.assert_array_equal(
    jax.grad(numerics.masked_sum)(values, mask), [1.0, 0.0, 1.0]
  )


def test_mean_of_nothing_is_zero_with_zero_gradient():
  assert numerics.mean(jnp.array(6.0), jnp.array(4.0)) == 1.5
  value, grad = jax.value_and_grad(numerics.mean)(
    jnp.array(6.0), jnp.array(0.0)
  )
  assert value == 0.0
  assert grad == 0.0
