"""Trees of arrays as flat dictionaries, for storage.

A leaf's name is its path: dictionary keys, field names and indices joined by
"/", such as "opt_state/1/mu/layers/q_proj". None counts as a leaf here, so
that a stored tree says where nothing stood.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tract_jax import types


def flatten(tree: types.PyTree) -> dict[str, Any]:
  """{name: leaf} of a tree.

  Args:
    tree: leaves are arrays, None, or what stands for arrays with a shape and a
      dtype.

  Returns:
    The leaves in the tree's order.

  Raises:
    TypeError: a leaf is none of these.
    ValueError: two leaves have one name, or a key is empty or has a "/".
  """
  names, leaves, _ = _paths(tree)
  for name, leaf in zip(names, leaves, strict=True):
    dtype = getattr(leaf, 'dtype', None)
    if leaf is not None and (
      not isinstance(dtype, np.dtype) or dtype.kind in 'OSUMm'
    ):
      raise TypeError(f'leaf {name}: not an array of numbers: {leaf!r:.80}')
  return dict(zip(names, leaves, strict=True))


def unflatten(like: types.PyTree, leaves: Mapping[str, Any]) -> types.PyTree:
  """The tree of the structure of `like` with the leaves of those names."""
  names, _, structure = _paths(like)
  return jax.tree_util.tree_unflatten(structure, [leaves[n] for n in names])


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """{"a/b": x} as {"a": {"b": x}}: the tree as far as names tell it."""
  tree: dict[str, Any] = {}
  for name, value in leaves.items():
    *folders, last = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = value
  return tree


def _paths(tree: types.PyTree) -> tuple[list[str], list[Any], Any]:
  """Names and leaves, in order, and the tree's structure."""
  with_paths, structure = jax.tree_util.tree_flatten_with_path(
    tree, is_leaf=lambda x: x is None
  )
  names = []
  for path, _ in with_paths:
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    if not parts or any(not part or '/' in part for part in parts):
      raise ValueError(f'leaf {parts}: a name must be there, without "/"')
    names.append('/'.join(parts))
  if len(set(names)) < len(names):
    raise ValueError(f'two leaves have one name: {sorted(names)}')
  return names, [leaf for _, leaf in with_paths], structure
