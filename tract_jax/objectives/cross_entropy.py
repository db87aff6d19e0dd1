"""Cross-entropy at target positions, its gradient computed on the way.

The logits of one chunk of positions exist at a time, and are gone when their
loss and its gradient are: the backward pass scales what is there. Computing
the logits again then would be a third product with the vocabulary more.

Axes: B rows, L length, P target positions per row, D width, V vocabulary.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from tract_jax import numerics, types


def at_targets(
  project: Callable[[types.Array], types.Array],
  hidden: types.Array,
  targets: types.Array,
  mask: types.Array,
  *,
  num_targets: int,
  chunk_size: int,
) -> types.Array:
  """Sum over the masked positions of - log p(target | what stands before).

  Args:
    project: hidden [B, P, D] -> logits [B, P, V]. Arrays of numbers that it
      closes over get their gradients, too.
    hidden: [B, L, D].
    targets: [B, L] int32.
    mask: [B, L] bool, which positions count.
    num_targets: the most of them that any row has (static).
    chunk_size: positions per row whose logits exist at a time.

  Returns:
    A float32 scalar, nats. It has reverse-mode derivatives alone.
  """
  most = min(num_targets, hidden.shape[1])
  num_chunks = max(1, math.ceil(most / chunk_size))
  size = num_chunks * math.ceil(most / num_chunks)
  chunks = jax.tree.map(
    lambda x: _to_chunks(x, num_chunks),
    _wanted_first((hidden, targets), mask, size),
  )
  project, weights = jax.closure_convert(project, chunks[0][0])
  return _scanned(project)(weights, *chunks)


def _scanned(project) -> Callable[..., types.Array]:
  """(weights, chunks of hidden, targets, mask) -> the sum over all chunks."""

  def chunk_sum(weights, hidden, targets, mask):
    logits = project(hidden, *weights).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    nll = jax.nn.logsumexp(logits, axis=-1) - picked[..., 0]
    return numerics.masked_sum(nll, mask)

  @jax.custom_vjp
  def total(weights, *chunks):
    def add(carry, chunk):
      return carry + chunk_sum(weights, *chunk), None

    return jax.lax.scan(add, jnp.zeros(()), chunks)[0]

  def forward(weights, *chunks):
    value_and_grad = jax.value_and_grad(chunk_sum, argnums=(0, 1))

    def add(carry, chunk):
      value, (of_weights, of_hidden) = value_and_grad(weights, *chunk)
      return numerics.tree_add(carry, (value, of_weights)), of_hidden

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights)
    (value, of_weights), of_hidden = jax.lax.scan(add, zeros, chunks)
    return value, (of_weights, of_hidden)

  def backward(grads, factor):
    of_weights, of_hidden = jax.tree.map(
      lambda x: (factor * x).astype(x.dtype), grads
    )
    return of_weights, of_hidden, None, None

  total.defvjp(forward, backward)
  return total


def _wanted_first(fields, mask, size: int):
  """Fields [B, L, ...] and mask at the masked positions: [B, size, ...].

  Those of each row stand first, in order; what follows is masked.
  """
  order = jnp.argsort(~mask, axis=1, stable=True)
  missing = max(0, size - order.shape[1])
  order = jnp.pad(order, ((0, 0), (0, missing)))[:, :size]
  mask = jnp.take_along_axis(mask, order, axis=1)
  mask &= jnp.arange(size)[None] < size - missing
  gathered = [
    jnp.take_along_axis(
      field, order.reshape(*order.shape, *(1,) * (field.ndim - 2)), axis=1
    )
    for field in fields
  ]
  return *gathered, mask


def _to_chunks(x, num_chunks):
  """[B, P, ...] -> [chunks, B, P / chunks, ...]."""
  split = x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:])
  return jnp.moveaxis(split, 1, 0)
