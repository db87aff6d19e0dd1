"""Tests of which parts of a leaf a process reads, by hand."""

import dataclasses

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from tract_jax.models import shard_reads
from tract_jax.parallel import mesh as mesh_lib

KERNEL = shard_reads.Layout(stacked=True, transposed=True)
EMBEDDING = shard_reads.Layout(stacked=False, transposed=False)
# [num_layers, D, F] of tensors [F, D].
SHAPE = (2, 8, 12)


@dataclasses.dataclass(frozen=True)
class Device:
  """What a sharding asks of a device."""

  id: int
  process_index: int
  platform: str = 'tpu'


def elsewhere(sizes, num_processes):
  """A mesh of devices of which none is here."""
  count = int(np.prod(sizes))
  grid = np.empty(count, object)
  grid[:] = [Device(i, i * num_processes // count) for i in range(count)]
  return jax.sharding.Mesh(grid.reshape(sizes), mesh_lib.AXES)


def leaf_on(mesh, *spec, shape=SHAPE):
  sharding = NamedSharding(mesh, PartitionSpec(*spec))
  return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)


def ranges_of(shards):
  return [shard.ranges for shard in shards]


def test_leaf_without_sharding_is_one_shard_on_the_default_device():
  leaf = jax.ShapeDtypeStruct(SHAPE, np.float32)
  assert shard_reads.process_shards(leaf) == [
    shard_reads.Shard(((0, 2), (0, 8), (0, 12)), (None,))
  ]


def test_copies_on_devices_of_a_process_are_one_shard():
  mesh = jax.make_mesh((2, 2, 2), mesh_lib.AXES)
  shards = shard_reads.process_shards(leaf_on(mesh, None, 'fsdp'))
  assert ranges_of(shards) == [
    ((0, 2), (0, 4), (0, 12)),
    ((0, 2), (4, 8), (0, 12)),
  ]
  grid = mesh.devices
  assert set(shards[0].devices) == set(grid[:, 0].flat)
  assert set(shards[1].devices) == set(grid[:, 1].flat)


@pytest.mark.parametrize(
  'spec, expected',
  [
    # Devices 4 .. 7 of (data=2, fsdp=2, tensor=2): data 1.
    ((None, 'fsdp', 'tensor'), [(0, 0), (0, 6), (4, 0), (4, 6)]),
    ((None, ('data', 'fsdp')), [(4, 0), (6, 0)]),
    ((None, ('fsdp', 'data')), [(2, 0), (6, 0)]),
    ((None, None, 'data'), [(0, 6)]),
    ((), [(0, 0)]),
  ],
)
def test_devices_elsewhere_and_an_abstract_mesh_agree(spec, expected):
  sizes = (2, 2, 2)
  here = shard_reads.process_shards(
    leaf_on(elsewhere(sizes, 2), *spec), process_index=1
  )
  abstract = jax.sharding.AbstractMesh(sizes, mesh_lib.AXES)
  planned = shard_reads.process_shards(
    leaf_on(abstract, *spec), process_index=1, num_processes=2
  )
  assert ranges_of(planned) == ranges_of(here)
  assert [(r[1][0], r[2][0]) for r in ranges_of(planned)] == expected
  for ours, theirs in zip(planned, here, strict=True):
    assert len(ours.devices) == len(theirs.devices) == 4 // len(expected)


def test_devices_that_do_not_divide_among_processes():
  abstract = jax.sharding.AbstractMesh((2, 2, 2), mesh_lib.AXES)
  with pytest.raises(ValueError, match='8 devices do not divide among 3'):
    shard_reads.process_shards(leaf_on(abstract), num_processes=3)


@pytest.mark.parametrize(
  'whole_rows, expected',
  [
    # D is split over fsdp: columns of the tensors. F over tensor: rows.
    (False, [(1, 2 * 6 * 4)] * 4),
    (True, [(2, 2 * 6 * 8)] * 2),
  ],
)
def test_shards_of_the_same_rows_share_a_read(whole_rows, expected):
  mesh = jax.make_mesh((1, 2, 2), mesh_lib.AXES)
  leaf = leaf_on(mesh, None, 'fsdp', 'tensor')
  shards = shard_reads.process_shards(leaf)
  reads = shard_reads.plan(leaf, KERNEL, shards, whole_rows=whole_rows)
  assert [(len(r.shards), r.num_elements) for r in reads] == expected
  assert sorted(s.ranges for r in reads for s in r.shards) == sorted(
    ranges_of(shards)
  )


@pytest.mark.parametrize('whole_rows, num_readers', [(False, 1), (True, 4)])
def test_strips_are_rows_of_one_layer(monkeypatch, whole_rows, num_readers):
  monkeypatch.setattr(shard_reads, '_STRIP_BYTES', 5 * 8 * 4)
  leaf = jax.ShapeDtypeStruct(SHAPE, np.float32)
  shards = shard_reads.process_shards(leaf)
  (read,) = shard_reads.plan(leaf, KERNEL, shards, whole_rows=whole_rows)
  assert read.strips == [
    *[(0, 0, 5), (0, 5, 10), (0, 10, 12)],
    *[(1, 0, 5), (1, 5, 10), (1, 10, 12)],
  ]
  assert read.strips_bytes == num_readers * 5 * 8 * 4


class _Tensor:
  """A View of an array."""

  def __init__(self, array):
    self._array = array

  def get_shape(self):
    return list(self._array.shape)

  def __getitem__(self, index):
    assert len(index) == self._array.ndim
    return self._array[index]


def _filled(leaf, layout, arrays, spec_shards, whole_rows):
  shards = shard_reads.process_shards(leaf)[spec_shards]
  results = []
  for read in shard_reads.plan(leaf, layout, shards, whole_rows=whole_rows):
    targets = [np.empty(s.shape, np.float32) for s in read.shards]
    read.fill(targets, [_Tensor(a) for a in arrays])
    results += zip(read.shards, targets, strict=True)
  return results


@pytest.mark.parametrize('whole_rows', [False, True])
def test_second_half_of_stacked_kernels(whole_rows):
  rng = np.random.default_rng(0)
  arrays = rng.standard_normal((2, 12, 8)).astype(np.float16)
  whole = arrays.swapaxes(1, 2).astype(np.float32)
  mesh = jax.make_mesh((2, 2, 2), mesh_lib.AXES)
  leaf = leaf_on(mesh, 'data', 'fsdp', 'tensor')
  results = _filled(leaf, KERNEL, arrays, slice(4, 8), whole_rows)
  assert len(results) == 4
  for shard, target in results:
    index = tuple(slice(*part) for part in shard.ranges)
    assert index[0] == slice(1, 2)
    np.testing.assert_array_equal(target, whole[index])


@pytest.mark.parametrize('whole_rows', [False, True])
def test_rows_and_columns_of_an_embedding(whole_rows):
  rng = np.random.default_rng(0)
  array = rng.standard_normal((12, 8)).astype(np.float32)
  mesh = jax.make_mesh((2, 2, 2), mesh_lib.AXES)
  leaf = leaf_on(mesh, 'tensor', 'fsdp', shape=(12, 8))
  results = _filled(leaf, EMBEDDING, [array], slice(None), whole_rows)
  assert len(results) == 4
  for shard, target in results:
    index = tuple(slice(*part) for part in shard.ranges)
    np.testing.assert_array_equal(target, array[index])


@pytest.mark.parametrize('stacked', [False, True])
def test_vectors(stacked):
  arrays = np.arange(16, dtype=np.float32).reshape(2, 8)
  shape = (2, 8) if stacked else (8,)
  spec = (None, 'fsdp') if stacked else ('fsdp',)
  mesh = jax.make_mesh((2, 2, 2), mesh_lib.AXES)
  layout = shard_reads.Layout(stacked=stacked, transposed=True)
  leaf = leaf_on(mesh, *spec, shape=shape)
  (_, first), (_, second) = _filled(leaf, layout, arrays, slice(None), False)
  whole = arrays if stacked else arrays[0]
  np.testing.assert_array_equal(np.concatenate([first, second], -1), whole)
