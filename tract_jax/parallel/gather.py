"""Gathers weights that are split over "fsdp", where they are used.

Left alone, the compiler may multiply by the pieces of a weight one after the
other, passing them from device to device: for training that takes more than
twice as long. An explicit constraint makes it one all-gather for each weight,
which goes on beside other products.
"""

from collections.abc import Sequence
import functools

import jax
from jax.sharding import NamedSharding

from tract_jax import types
from tract_jax.parallel import partition


def gathered(
  mesh: jax.sharding.Mesh,
  logical_axes: Sequence[str | None],
  weight: types.Array,
) -> types.Array:
  """A weight, whole along "fsdp" on every device.

  Its gradient goes back to where the weight lies: each device gets the sum of
  its own part alone.

  Args:
    mesh: of mesh.make_mesh.
    logical_axes: a name, or None, for each dimension.
    weight: split as partition.RULES says.

  Returns:
    The same numbers. Splits over "tensor" stay, but for those that need not be
    even (partition.COPIED_IF_UNEVEN).
  """
  axes = [None if _is_gathered(name) else name for name in logical_axes]
  if axes == list(logical_axes):
    return weight
  return _moved(
    weight,
    partition.named_sharding(mesh, logical_axes),
    partition.named_sharding(mesh, axes),
  )


def _is_gathered(name: str | None) -> bool:
  if name is None:
    return False
  is_split = 'fsdp' in partition.RULES[name]
  return is_split or name in partition.COPIED_IF_UNEVEN


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(
  weight: types.Array, source: NamedSharding, target: NamedSharding
) -> types.Array:
  """The weight as `target` says, its gradient as `source` says."""
  del source  # Only the gradient needs it.
  return jax.lax.with_sharding_constraint(weight, target)


def _moved_fwd(weight, source, target):
  return _moved(weight, source, target), None


def _moved_bwd(source, target, _, cotangent):
  del target
  return (jax.lax.with_sharding_constraint(cotangent, source),)


_moved.defvjp(_moved_fwd, _moved_bwd)
