"""Device meshes: which device holds which part of the work.

A mesh has three axes, outermost first:

  data    rows are split, parameters are copies; also across TPU slices
  fsdp    rows are split, and so are the parameters, gathered layer by layer
  tensor  heads and hidden units are split, rows are copies
"""

from collections.abc import Iterator, Sequence
import math

import jax
from jax.experimental import mesh_utils

from tract_jax import types

AXES = ('data', 'fsdp', 'tensor')


def _all_sizes(num_devices: int) -> Iterator[tuple[int, int, int]]:
  """Every (data, fsdp, tensor) whose product is `num_devices`."""
  divisors = [d for d in range(1, num_devices + 1) if num_devices % d == 0]
  for data in divisors:
    for fsdp in divisors:
      if num_devices % (data * fsdp) == 0:
        yield data, fsdp, num_devices // (data * fsdp)


def _nearest_sizes(
  asked: tuple[int, int, int], num_devices: int
) -> tuple[int, int, int]:
  """The valid sizes nearest to those asked for, by ratio; -1 is free."""

  def distance(sizes):
    ratios = (
      abs(math.log(size / want))
      for size, want in zip(sizes, asked, strict=True)
      if want > 0
    )
    # Of two as near, the one with less of "tensor", which costs most traffic.
    return round(sum(ratios), 6), sizes[2]

  return min(_all_sizes(num_devices), key=distance)


def _show(sizes: Sequence[int]) -> str:
  return ', '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))


def resolve_sizes(
  data: int,
  fsdp: int,
  tensor: int,
  num_devices: int,
  key: str = 'config.mesh',
) -> tuple[int, int, int]:
  """The mesh's sizes with -1 filled in.

  Args:
    data: size of axis "data", or -1 for what is left.
    fsdp: size of axis "fsdp", or -1.
    tensor: size of axis "tensor", or -1. At most one of the three may be -1.
    num_devices: devices to spread over; every one is used.
    key: what the sizes are called, for messages.

  Returns:
    (data, fsdp, tensor), whose product is `num_devices`.

  Raises:
    types.InputError: a size is neither positive nor -1, two are -1, or the
      sizes do not make up `num_devices`; the nearest valid sizes are named.

  Example:
    >>> resolve_sizes(-1, 2, 1, num_devices=8)
    (4, 2, 1)
  """
  asked = (data, fsdp, tensor)
  if any(size < 1 and size != -1 for size in asked):
    raise types.InputError(
      f'{key}: {_show(asked)}: a size is a positive number, or -1 for what is'
      ' left'
    )
  if asked.count(-1) > 1:
    raise types.InputError(f'{key}: {_show(asked)}: only one size may be -1')
  fixed = math.prod(size for size in asked if size != -1)
  left = num_devices // fixed
  data, fsdp, tensor = (left if size == -1 else size for size in asked)
  sizes = data, fsdp, tensor
  if math.prod(sizes) != num_devices:
    nearest = _nearest_sizes(asked, num_devices)
    raise types.InputError(
      f'{key}: {_show(asked)} does not fit {num_devices} devices; nearest valid'
      f' sizes: {_show(nearest)}'
    )
  return sizes


def make_mesh(
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[jax.Device] | None = None,
  key: str = 'config.mesh',
) -> jax.sharding.Mesh:
  """Makes the mesh of a run.

  Neighbours on the axes are neighbours on the chips' own network. With several
  TPU slices, which a slower network joins, only "data" crosses them.

  Args:
    data: size of axis "data", or -1 for what is left.
    fsdp: size of axis "fsdp", or -1.
    tensor: size of axis "tensor", or -1.
    devices: default all devices of all processes; `jax.local_devices()` gives
      a host its own mesh.
    key: what the sizes are called, for messages.

  Returns:
    A mesh with axes `AXES`, of type Auto: the compiler places what the
    shardings leave open.

  Raises:
    types.InputError: as `resolve_sizes`, or "data" is not a multiple of the
      number of slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = resolve_sizes(data, fsdp, tensor, len(devices), key)
  num_slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if sizes[0] % num_slices:
    raise types.InputError(
      f'{key}: {_show(sizes)}: data must be a multiple of the {num_slices}'
      ' slices, since no other axis may cross them'
    )
  # Splitting a physical axis is what 8 x 2 on a 4 x 4 torus needs.
  if num_slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // num_slices, *sizes[1:]),
      (num_slices, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  else:
    grid = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(grid, AXES, axis_types=auto)
