"""The one table that says over which mesh axes a logical axis is split.

Weights and batches name their dimensions ("embed", "heads", "rows"); the mesh
knows "data", "fsdp" and "tensor". Nothing else in the project joins the two.
"""

from collections.abc import Iterator, Sequence
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tract_jax import types

# Logical axis -> the mesh axes it is split over, outermost first. One entry
# for each logical name in the project; () is a dimension that is never split.
RULES: dict[str, tuple[str, ...]] = {
  # Batches and caches.
  'rows': ('data', 'fsdp'),
  'length': (),
  'cached_heads': ('tensor',),
  # Weights.
  'vocab': ('tensor',),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  'lora_rank': (),
  # Scales of a quantised weight: blocks of rows along its input axis, split as
  # the rows are, so that a device holds the scales of its own.
  'embed_blocks': ('fsdp',),
  'heads_blocks': ('tensor',),
  'mlp_blocks': ('tensor',),
}

# Names whose dimension is copied to every device where its mesh axes do not
# divide it: blocks are 64 times fewer than rows, so 9 of them may meet 2
# devices where their 576 rows split evenly, and 3 cached heads 4 devices that
# share the weights of all. Any other name is then an error.
COPIED_IF_UNEVEN = frozenset(
  {'cached_heads', 'embed_blocks', 'heads_blocks', 'mlp_blocks'}
)

# The name of each dimension of an array; None is a dimension without name,
# which is never split.
LogicalAxes = Sequence[str | None]


def partition_spec(logical_axes: LogicalAxes) -> PartitionSpec:
  """Translates the names of an array's dimensions by `RULES`.

  Args:
    logical_axes: a name, or None, for each dimension.

  Returns:
    The PartitionSpec of that array.

  Raises:
    ValueError: a name is not in `RULES`, or two dimensions of the array would
      be split over the same mesh axis.

  Example:
    >>> partition_spec((None, 'embed', 'heads'))
    PartitionSpec(None, 'fsdp', 'tensor')
  """
  entries: list[tuple[str, ...]] = []
  for name in logical_axes:
    if name is not None and name not in RULES:
      raise ValueError(
        f'unknown logical axis {name!r} in {tuple(logical_axes)}; known:'
        f' {", ".join(RULES)}'
      )
    entries.append(() if name is None else RULES[name])
  used = [axis for entry in entries for axis in entry]
  for axis in used:
    if used.count(axis) > 1:
      raise ValueError(
        f'two dimensions of {tuple(logical_axes)} would be split over mesh'
        f' axis {axis!r}'
      )
  return PartitionSpec(
    *(e[0] if len(e) == 1 else e if e else None for e in entries)
  )


def named_sharding(
  mesh: jax.sharding.Mesh, logical_axes: LogicalAxes
) -> NamedSharding:
  """The sharding on `mesh` of an array with these dimensions.

  Args:
    mesh: of mesh.make_mesh.
    logical_axes: a name, or None, for each dimension; () is a scalar, and the
      sharding of whatever is copied to every device.

  Returns:
    Its sharding.

  Raises:
    ValueError: as `partition_spec`.
  """
  return NamedSharding(mesh, partition_spec(logical_axes))


def array_sharding(
  mesh: jax.sharding.Mesh, logical_axes: LogicalAxes, shape: Sequence[int]
) -> NamedSharding:
  """The sharding on `mesh` of an array of this shape.

  Args:
    mesh: of mesh.make_mesh.
    logical_axes: a name, or None, for each of the first dimensions; the others
      are not split.
    shape: of the array.

  Returns:
    Its sharding; dimensions of `COPIED_IF_UNEVEN` that cannot be split evenly
    are not.

  Raises:
    ValueError: as `partition_spec`.
  """
  return named_sharding(mesh, _splittable(mesh, logical_axes, shape))


def device_bytes(tree: types.PyTree) -> int:
  """Bytes of each device's part of a tree of arrays.

  Args:
    tree: of jax.ShapeDtypeStruct with shardings, or arrays.

  Returns:
    The bytes, 4-bit codes packed two to a byte.
  """
  return sum(
    math.prod(x.sharding.shard_shape(x.shape))
    * jax.dtypes.itemsize_bits(x.dtype)
    // 8
    for x in jax.tree.leaves(tree)
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of each field of a Batch [B, L]: its rows are split."""
  return named_sharding(mesh, ('rows',))


def micro_batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of micro-batches [A, B, L]: the rows of each are split."""
  return named_sharding(mesh, (None, 'rows'))


def num_row_shards(mesh: jax.sharding.Mesh) -> int:
  """In how many parts the rows of a batch are split."""
  return _num_shards(mesh, 'rows')


def check_rows(mesh: jax.sharding.Mesh, num_rows: int) -> None:
  """Rejects a number of rows that cannot be split evenly.

  Args:
    mesh: of mesh.make_mesh.
    num_rows: B, of the global batch or of one of its micro-batches.

  Raises:
    types.InputError: the nearest valid numbers are named.
  """
  if problem := _problem(mesh, 'batch', 0, 'rows', num_rows):
    raise types.InputError(problem)


def _num_shards(mesh: jax.sharding.Mesh, name: str) -> int:
  """In how many parts a dimension of this name is split."""
  return math.prod(mesh.shape[axis] for axis in RULES[name])


def _splittable(
  mesh: jax.sharding.Mesh, axes: LogicalAxes, shape: Sequence[int]
) -> LogicalAxes:
  """The names, without those of `COPIED_IF_UNEVEN` that do not divide."""
  return [
    None
    if name in COPIED_IF_UNEVEN and size % _num_shards(mesh, name)
    else name
    for name, size in zip(axes, shape, strict=False)
  ]


def _nearest_multiples(size: int, divisor: int) -> list[int]:
  lower = size // divisor * divisor
  return [n for n in (lower, lower + divisor) if n > 0]


def _nearest_divisors(size: int, divisor: int) -> list[int]:
  """The divisors of `size` on both sides of `divisor`, which is not one."""
  divisors = [d for d in range(1, size + 1) if size % d == 0]
  lower = [d for d in divisors if d < divisor]
  upper = [d for d in divisors if d > divisor]
  return lower[-1:] + upper[:1]


def _problem(
  mesh: jax.sharding.Mesh, leaf: str, dimension: int, name: str, size: int
) -> str | None:
  """Why a dimension of this size cannot be split over its mesh axes."""
  axes = RULES[name]
  num_shards = _num_shards(mesh, name)
  if size % num_shards == 0:
    return None
  shown = ' x '.join(f'{axis}={mesh.shape[axis]}' for axis in axes)
  if name == 'rows':
    choice, what = _nearest_multiples(size, num_shards), 'numbers of rows'
  else:
    choice, what = _nearest_divisors(size, num_shards), f'{" x ".join(axes)}'
  return (
    f'{leaf}: dimension {dimension} ({name}) of size {size} cannot be split'
    f' over {shown}; nearest valid {what}:'
    f' {" or ".join(str(n) for n in choice)}'
  )


def _leaf_problems(
  mesh: jax.sharding.Mesh, leaf: str, axes: LogicalAxes, shape: Sequence[int]
) -> Iterator[tuple[tuple[str, int], str]]:
  """((logical name, size), message) of each dimension that does not divide."""
  for i, (name, size) in enumerate(zip(axes, shape, strict=True)):
    if name is not None and (text := _problem(mesh, leaf, i, name, size)):
      yield (name, size), text


def tree_shardings(
  mesh: jax.sharding.Mesh,
  logical_axes_tree: types.PyTree,
  abstract_tree: types.PyTree,
) -> types.PyTree:
  """The sharding of every leaf of a tree of weights.

  Args:
    mesh: of mesh.make_mesh.
    logical_axes_tree: like `abstract_tree`, with the names of the dimensions
      (a tuple) in place of each array, those inside a quantised leaf too.
    abstract_tree: arrays or jax.ShapeDtypeStruct; None where there is none.

  Returns:
    A tree like `abstract_tree` of NamedSharding; None stays None.

  Raises:
    types.InputError: dimensions that their mesh axes do not divide, a line for
      each (name, size), with the first such leaf and the nearest valid sizes.
    ValueError: as `partition_spec`, or names and shape differ in number.
  """
  problems: dict[tuple[str, int], str] = {}

  def leaf_sharding(path, leaf, axes) -> Any:
    if leaf is None:
      return None
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    if axes is None:
      raise ValueError(f'{name}: has no logical axes')
    if len(axes) != len(leaf.shape):
      raise ValueError(f'{name}: {tuple(axes)} does not name {leaf.shape}')
    axes = _splittable(mesh, axes, leaf.shape)
    sharding = named_sharding(mesh, axes)
    for key, text in _leaf_problems(mesh, name, axes, leaf.shape):
      problems.setdefault(key, text)
    return sharding

  shardings = jax.tree_util.tree_map_with_path(
    leaf_sharding,
    abstract_tree,
    logical_axes_tree,
    is_leaf=lambda leaf: leaf is None,
  )
  if problems:
    raise types.InputError('\n'.join(problems.values()))
  return shardings
