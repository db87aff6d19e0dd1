"""Where sampled rows lie: on one device, or split over several."""

from collections.abc import Callable
import dataclasses

import jax

from tract_jax import types
from tract_jax.parallel import mapping, partition, tpu_options

# Names of an array's dimensions, by the axis that has the rows: [B, ...], and
# caches [layers, B, K, ...].
_LOGICAL_AXES = {0: ('rows',), 1: (None, 'rows', 'cached_heads')}


@dataclasses.dataclass(frozen=True)
class RowPlacement:
  """How slots and batches of prompts are spread over devices of one process.

  Attributes:
    mesh: of mesh.make_mesh; None: wherever JAX puts them.
    mode: "jit" or "pmap", as for `mapping.map_slots`.
  """

  mesh: jax.sharding.Mesh | None = None
  mode: str = 'jit'

  @property
  def multiple(self) -> int:
    """Numbers of rows must be multiples of it."""
    return 1 if self.mesh is None else partition.num_row_shards(self.mesh)

  def place(self, rows: types.PyTree) -> types.PyTree:
    """Puts arrays [B, ...] on the devices, split by rows."""
    if self.mesh is None:
      return rows
    return jax.device_put(rows, partition.batch_sharding(self.mesh))

  def split(self, slots: types.PyTree, axes: types.PyTree) -> types.PyTree:
    """Constrains, while it is traced, how slots are split.

    Args:
      slots: arrays [B, ...] and caches [layers, B, K, ...]; the latter are
        split by heads, too.
      axes: for each of them, or for all of a part, the axis of B: 0 or 1.

    Returns:
      The slots.
    """
    if self.mesh is None:
      return slots
    return jax.lax.with_sharding_constraint(slots, self.shardings(slots, axes))

  def shardings(self, slots: types.PyTree, axes: types.PyTree) -> types.PyTree:
    """How `split` splits slots on a mesh.

    Args:
      slots: arrays as for `split`, or their shapes.
      axes: as for `split`.

    Returns:
      Tree like `slots` of shardings.
    """
    return mapping.along(
      lambda axis, x: partition.array_sharding(
        self.mesh, _LOGICAL_AXES[axis], x.shape
      ),
      axes,
      slots,
    )

  def map(
    self,
    fn: Callable[..., types.PyTree],
    in_axes: tuple[types.PyTree, ...],
    out_axes: types.PyTree,
  ) -> Callable[..., types.PyTree]:
    """Maps (params, *slots) -> slots; see `mapping.map_slots`."""
    if self.mesh is None:
      return fn
    return mapping.map_slots(fn, self.mesh, in_axes, out_axes, self.mode)

  def compiler_options(
    self, tables: dict[str, tpu_options.Table]
  ) -> dict[str, str] | None:
    """For `jax.jit` around a mapped function; tables as of tpu_options."""
    if self.mesh is None or self.mode != 'jit':
      return None
    return tpu_options.for_chip(self.mesh, tables)


ONE_DEVICE = RowPlacement()
