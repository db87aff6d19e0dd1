"""What a process reads of a leaf's tensors, and how it comes into its shards.

In: a leaf's shape and sharding, and its tensors. Out: the shards that this
process holds, each distinct one once, whatever the number of its copies.

In a file a layer is a tensor [rows, columns], so every leaf is looked at as
[layers, rows, columns]; one that is not stacked has one layer, a vector one
column. What is read at a time is a strip of rows of one tensor:

  leaf [num_layers, D, F] of tensors [F, D], D split over 2 devices

                columns (D)
               dev 0 | dev 1
  rows (F)     ------+------  strip
               ------+------  strip
"""

from collections.abc import Iterator, Sequence
from concurrent import futures
import dataclasses
import itertools
import math
from typing import Any, TypeAlias

import jax
import numpy as np

from tract_jax.models import safetensors_file

# (start, stop) of each dimension.
Ranges: TypeAlias = tuple[tuple[int, int], ...]

# One stream does not fill the line to a bucket; a disk gains nothing by more.
_NUM_REMOTE_READERS = 4
_STRIP_BYTES = 16 * 2**20
_MAX_ITEM_BYTES = 4
# A transposed copy of so few rows at a time misses the cache far less: 4 times
# as fast.
_COPIED_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a leaf is made of its tensors.

  Attributes:
    stacked: its first dimension is the layers, a tensor each.
    transposed: the others are in the reverse order of a tensor's.
  """

  stacked: bool
  transposed: bool

  def tensor_shape(self, shape: Sequence[int]) -> list[int]:
    """The shape of each tensor of a leaf of this shape."""
    rest = list(shape[1:] if self.stacked else shape)
    return rest[::-1] if self.transposed else rest

  def ranges(self, ranges: Ranges) -> Ranges:
    """Ranges of a leaf as ranges of [layers, rows, columns]."""
    layers = ranges[0] if self.stacked else (0, 1)
    rest = ranges[1:] if self.stacked else ranges
    if self.transposed:
      rest = rest[::-1]
    return (layers, *rest, (0, 1))[:3]

  def view(self, array: np.ndarray) -> np.ndarray:
    """A leaf's shard as [layers, rows, columns], the same memory."""
    array = array if self.stacked else array[None]
    if array.ndim < 3:
      return array[..., None]
    return array.swapaxes(1, 2) if self.transposed else array


@dataclasses.dataclass(frozen=True)
class Shard:
  """A part of a leaf that devices of this process hold.

  Attributes:
    ranges: of the leaf's dimensions.
    devices: those that hold it, all of this process; (None,) is the default
      device of a leaf without sharding. Those of an abstract mesh are None.
  """

  ranges: Ranges
  devices: tuple[Any, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in self.ranges)


@dataclasses.dataclass(frozen=True)
class Read:
  """One pass over rows of a leaf's tensors, for the shards that lie in them.

  Attributes:
    layout: of the leaf.
    shards: they differ in their columns alone.
    width: how many columns are read of each row.
    num_readers: how many strips are read, and held, at a time.
  """

  layout: Layout
  shards: tuple[Shard, ...]
  width: int
  num_readers: int

  @property
  def num_elements(self) -> int:
    """How many elements are read of the tensors."""
    layers, rows, _ = self.layout.ranges(self.shards[0].ranges)
    return (layers[1] - layers[0]) * (rows[1] - rows[0]) * self.width

  @property
  def strips(self) -> list[tuple[int, int, int]]:
    """(layer, first row, last row + 1) of every strip."""
    layers, (start, stop), _ = self.layout.ranges(self.shards[0].ranges)
    step = max(1, _STRIP_BYTES // (self.width * _MAX_ITEM_BYTES))
    return [
      (layer, row, min(row + step, stop))
      for layer in range(*layers)
      for row in range(start, stop, step)
    ]

  @property
  def strips_bytes(self) -> int:
    """At most, of the strips that are held at a time."""
    sizes = sorted(stop - start for _, start, stop in self.strips)
    return sum(sizes[-self.num_readers :]) * self.width * _MAX_ITEM_BYTES

  def fill(
    self,
    targets: Sequence[np.ndarray],
    tensors: Sequence[safetensors_file.View],
  ) -> None:
    """Reads and casts.

    Args:
      targets: an array for each of `shards`, of its shape.
      tensors: all of the leaf's.
    """
    places = [self.layout.ranges(shard.ranges) for shard in self.shards]
    views = [self.layout.view(target) for target in targets]
    (first_layer, _), (first_row, _), _ = places[0]
    columns = [place[2] for place in places]
    first = min(start for start, _ in columns)
    last = max(stop for _, stop in columns)

    def read(strip: tuple[int, int, int]) -> None:
      layer, start, stop = strip
      tensor = tensors[layer]
      index = (slice(start, stop), slice(first, last))
      rows = tensor[index[: len(tensor.get_shape())]].reshape(stop - start, -1)
      for view, (low, high) in zip(views, columns, strict=True):
        target = view[layer - first_layer, start - first_row : stop - first_row]
        wanted = rows[:, low - first : high - first]
        for i in range(0, stop - start, _COPIED_ROWS):
          target[i : i + _COPIED_ROWS] = wanted[i : i + _COPIED_ROWS]

    with futures.ThreadPoolExecutor(self.num_readers) as readers:
      for _ in readers.map(read, self.strips):
        pass


def plan(
  leaf: jax.ShapeDtypeStruct,
  layout: Layout,
  shards: Sequence[Shard],
  *,
  whole_rows: bool,
) -> list[Read]:
  """What is read for the shards of a leaf, in order.

  Args:
    leaf: its shape.
    layout: of the leaf.
    shards: of `process_shards`.
    whole_rows: whether rows come whole, from a remote file. Then shards of the
      same rows are read together, so that each row comes once; else each shard
      for itself.

  Returns:
    The reads; every shard is in one of them.
  """
  all_columns = layout.ranges(tuple((0, size) for size in leaf.shape))[2]
  groups: dict[Ranges, list[Shard]] = {}
  for shard in shards:
    place = layout.ranges(shard.ranges)
    groups.setdefault(place[:2] if whole_rows else place, []).append(shard)
  reads = []
  for place, members in groups.items():
    start, stop = all_columns if whole_rows else place[2]
    num_readers = _NUM_REMOTE_READERS if whole_rows else 1
    reads.append(Read(layout, tuple(members), stop - start, num_readers))
  return reads


def process_shards(
  leaf: jax.ShapeDtypeStruct,
  process_index: int | None = None,
  num_processes: int = 1,
) -> list[Shard]:
  """The distinct shards of a leaf that a process holds.

  Args:
    leaf: shape and sharding; one without sharding has one whole shard.
    process_index: of the process; None is this one.
    num_processes: of an AbstractMesh, whose devices are divided among them
      evenly and in their order. Any other mesh knows whose its devices are.

  Returns:
    The shards, in the order of the mesh's devices.
  """
  if leaf.sharding is None:
    return [Shard(tuple((0, size) for size in leaf.shape), (None,))]
  mesh = getattr(leaf.sharding, 'mesh', None)
  indices: Any
  if isinstance(mesh, jax.sharding.AbstractMesh):
    indices = _abstract_indices(leaf, process_index or 0, num_processes)
  else:
    indices = leaf.sharding.devices_indices_map(leaf.shape).items()
    if process_index is None:
      process_index = jax.process_index()
    indices = [(d, i) for d, i in indices if d.process_index == process_index]
  shards: dict[Ranges, list[Any]] = {}
  for device, index in indices:
    parts = zip(index, leaf.shape, strict=True)
    ranges = tuple(part.indices(size)[:2] for part, size in parts)
    shards.setdefault(ranges, []).append(device)
  return [Shard(ranges, tuple(devices)) for ranges, devices in shards.items()]


def _abstract_indices(
  leaf: jax.ShapeDtypeStruct, process_index: int, num_processes: int
) -> Iterator[tuple[None, tuple[slice, ...]]]:
  """The slices that a process's devices of an abstract mesh hold."""
  mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
  places = list(itertools.product(*(range(n) for n in mesh.axis_sizes)))
  if len(places) % num_processes:
    raise ValueError(
      f'{len(places)} devices do not divide among {num_processes} processes'
    )
  share = len(places) // num_processes
  entries = [*spec, *[None] * (len(leaf.shape) - len(spec))]
  for place in places[process_index * share : (process_index + 1) * share]:
    position = dict(zip(mesh.axis_names, place, strict=True))
    index = []
    for size, entry in zip(leaf.shape, entries, strict=True):
      axes = (entry,) if isinstance(entry, str) else entry or ()
      block = 0
      for axis in axes:
        block = block * mesh.shape[axis] + position[axis]
      length = size // math.prod(mesh.shape[axis] for axis in axes)
      index.append(slice(block * length, (block + 1) * length))
    yield None, tuple(index)
