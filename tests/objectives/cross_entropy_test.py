"""Cross-entropy in chunks: its value, its gradient, and how it is computed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.objectives import cross_entropy

B, L, D, V = 3, 10, 4, 24


def task(seed=0):
  """Hidden states, a head, targets and which of them count."""
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(B, L, D)).astype(np.float32)
  head = rng.normal(size=(D, V)).astype(np.float32)
  targets = rng.integers(V, size=(B, L)).astype(np.int32)
  mask = rng.random((B, L)) < 0.5
  # A row without any, and one where all count.
  mask[0], mask[1] = False, True
  return hidden, head, targets, mask


def total(hidden, head, targets, mask, num_targets=L, chunk_size=3):
  return cross_entropy.at_targets(
    lambda x: x @ head,
    hidden,
    targets,
    mask,
    num_targets=num_targets,
    chunk_size=chunk_size,
  )


def plain(hidden, head, targets, mask):
  log_probs = jax.nn.log_softmax(hidden @ head)
  picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
  return -jnp.sum(jnp.where(mask, picked[..., 0], 0.0))


@pytest.mark.parametrize(
  ('num_targets', 'chunk_size'), [(L, L), (L, 3), (99, 4), (L, 1)]
)
def test_value_and_gradient_are_those_of_the_plain_formula(
  num_targets, chunk_size
):
  hidden, head, targets, mask = task()
  chunked = functools.partial(
    total, num_targets=num_targets, chunk_size=chunk_size
  )

  def both(fn):
    # A factor behind it: the backward pass scales what the forward one made.
    def scaled(hidden, head):
      return 0.3 * fn(hidden, head, targets, mask) ** 2

    return jax.value_and_grad(scaled, (0, 1))(hidden, head)

  found, expected = both(chunked), both(plain)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5),
    found,
    expected,
  )
  # Without a gradient the same sum.
  np.testing.assert_allclose(
    chunked(hidden, head, targets, mask),
    plain(hidden, head, targets, mask),
    rtol=1e-5,
  )


def test_fewer_places_than_positions_hold_every_target():
  hidden, head, targets, mask = task()
  mask[1, 4:] = False
  most = int(mask.sum(axis=1).max())
  assert most < L
  found = total(hidden, head, targets, mask, num_targets=most, chunk_size=2)
  expected = plain(hidden, head, targets, mask)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_hidden_states_that_do_not_count_have_no_gradient():
  hidden, head, targets, mask = task()
  grad = jax.grad(total)(hidden, head, targets, mask)
  assert (np.abs(grad).max(axis=-1) > 0).tolist() == mask.tolist()


@pytest.mark.usefixtures('compiled_anew')
@pytest.mark.parametrize(('argnums', 'expected'), [((0, 1), 3), (0, 2)])
def test_logits_are_computed_once(argnums, expected):
  # Logits, and the gradient of hidden states; and of the head if it is wanted.
  args = task()
  both = jax.jit(jax.value_and_grad(total, argnums))
  text = both.lower(*args).compile().as_text()
  assert len(re.findall(r'\bdot\(', text)) == expected


def test_bfloat16_hidden_states_get_bfloat16_gradients():
  hidden, head, targets, mask = task()
  hidden = jnp.asarray(hidden, jnp.bfloat16)
  found = jax.grad(total)(hidden, head, targets, mask)
  assert found.dtype == jnp.bfloat16
  expected = jax.grad(plain)(hidden.astype(jnp.float32), head, targets, mask)
  np.testing.assert_allclose(
    np.asarray(found, np.float32), expected, rtol=0.02, atol=0.02
  )
