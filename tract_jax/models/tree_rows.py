"""A token tree put behind a place of every row, as one line of nodes.

    row      a  b  c  4  E          starts at c, the node 0
    nodes          c  1  0  2       tokens of the tree of "1", "1 0" and "2"
    depths         0  1  2  1       so that positions are start + depth

A node sees the row before its start, itself and its ancestors. Axes as in
types.py, and Q = E M nodes in a row.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tract_jax import types


@dataclasses.dataclass(frozen=True)
class PlacedTree:
  """The nodes of a tree in every row.

  Attributes:
    tokens: [B, Q] int32.
    starts: [B, Q] int32, where in the row the node's tree starts.
    depths: [1, Q] int32, tokens from there to the node.
    sees_own: [Q, Q] bool, whether node i sees node j.
    num_nodes: M.
    window: most tokens that a node sees, itself included; None: all.
  """

  tokens: types.Array
  starts: types.Array
  depths: np.ndarray
  sees_own: np.ndarray
  num_nodes: int
  window: int | None

  def sees_past(self, length: int) -> types.Array:
    """[B, Q, length] bool, which of a row's places each node sees."""
    places = jnp.arange(length)[None, None]
    seen = places < self.starts[..., None]
    if self.window is not None:
      seen &= (self.starts + self.depths)[..., None] - places < self.window
    return seen

  def for_each(self, of_starts: types.Array) -> types.Array:
    """[B, E] of trees -> [B, Q] of their nodes."""
    return jnp.repeat(of_starts, self.num_nodes, axis=1)

  def split(self, of_nodes: types.Array) -> types.Array:
    """[B, Q, ...] -> [B, E, M, ...]."""
    rows, _, *rest = of_nodes.shape
    return of_nodes.reshape(rows, -1, self.num_nodes, *rest)


def placed(
  tree: types.TokenTree,
  roots: types.Array,
  starts: types.Array,
  window: int | None,
) -> PlacedTree:
  """Puts a tree behind each of several places of every row.

  Args:
    tree: the token tree.
    roots: [B, E] int32, the tokens that are node 0.
    starts: [B, E] int32, where they stand.
    window: as for `attention.causal_attention`.

  Returns:
    The nodes, tree after tree.
  """
  num_rows, num_trees = roots.shape
  others = jnp.asarray(tree.tokens, jnp.int32)[None, None]
  others = jnp.broadcast_to(others, (num_rows, num_trees, len(tree.tokens)))
  tokens = jnp.concatenate([roots[..., None], others], axis=-1)
  num_nodes = tokens.shape[-1]
  sees = tree.sees
  if window is not None:
    sees = sees & (tree.depths[:, None] - tree.depths[None] < window)
  return PlacedTree(
    tokens=tokens.reshape(num_rows, -1),
    starts=jnp.repeat(starts, num_nodes, axis=1),
    depths=np.tile(tree.depths, num_trees)[None],
    sees_own=np.kron(np.eye(num_trees, dtype=bool), sees),
    num_nodes=num_nodes,
    window=window,
  )
