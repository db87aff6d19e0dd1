"""Masked sums, their means, and rows in tiles.

Losses are carried as sums and counts until the whole global batch is known,
so that a loss does not depend on how its rows were split.
"""

import jax
import jax.numpy as jnp

from tract_jax import types

# Rows of `tiled_rows`.
TILE = 16


def masked_sum(values: types.Array, mask: types.Array) -> types.Array:
  """Sum of `values` where `mask` holds.

  Args:
    values: [...] float32; what stands outside the mask must be finite, since
      its gradient is multiplied by zero.
    mask: [...] bool, of the same shape.

  Returns:
    A float32 scalar.
  """
  return jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32)


def count(mask: types.Array) -> types.Array:
  """Number of true entries, as a float32 scalar (exact below 2**24)."""
  return jnp.sum(mask, dtype=jnp.float32)


def mean(total: types.Array, number: types.Array) -> types.Array:
  """`total / number`, and 0 where nothing was counted.

  Args:
    total: a float32 sum.
    number: its float32 count.

  Returns:
    The mean; 0 for a count of 0, with a gradient of 0.
  """
  return jnp.where(number > 0, total / jnp.maximum(number, 1.0), 0.0)


def tree_add(left: types.PyTree, right: types.PyTree) -> types.PyTree:
  """Leafwise sum of two trees of one structure."""
  return jax.tree.map(jnp.add, left, right)


def tiled_rows(rows: types.Array) -> types.Array:
  """Rows with zeros behind them, up to a multiple of 16.

  A compiler chooses by the shape of a matrix product how it is summed. Up to 16
  rows are one product like this, so that a row's result does not depend, bit
  for bit, on how many others there are.

  Args:
    rows: [B, ...].

  Returns:
    [16 n, ...], of which the first B are `rows`.
  """
  missing = -rows.shape[0] % TILE
  if not missing:
    return rows
  return jnp.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
