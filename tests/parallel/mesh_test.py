"""Tests of tract_jax.parallel.mesh, on eight virtual devices."""

import jax
import pytest

from tract_jax import types
from tract_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
  ('asked', 'sizes'),
  [
    ((8, 1, 1), (8, 1, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((1, -1, 1), (1, 8, 1)),
    ((2, 1, -1), (2, 1, 4)),
    ((-1, 8, 1), (1, 8, 1)),
  ],
)
def test_minus_one_is_what_is_left(asked, sizes):
  mesh = mesh_lib.make_mesh(*asked)
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert mesh.devices.shape == sizes


def test_every_device_is_used_once_and_axes_are_auto():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  assert sorted(d.id for d in mesh.devices.flat) == list(range(8))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_mesh_over_some_devices():
  mesh = mesh_lib.make_mesh(1, -1, 1, devices=jax.devices()[4:6])
  assert [d.id for d in mesh.devices.flat] == [4, 5]


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ((3, -1, 1), r'data=3.*8 devices; nearest.*data=4, fsdp=2, tensor=1'),
    ((1, 16, 1), r'fsdp=16.*nearest.*data=1, fsdp=8, tensor=1'),
    ((1, 4, 1), r'nearest valid sizes: data=1, fsdp=8, tensor=1'),
    ((0, 1, 1), r'data=0.*a size is a positive number'),
    ((-2, 1, 1), r'data=-2.*a size is a positive number'),
    ((-1, -1, 1), r'only one size may be -1'),
  ],
)
def test_sizes_that_do_not_fit_name_the_nearest(asked, message):
  with pytest.raises(types.InputError, match=message):
    mesh_lib.make_mesh(*asked)


def test_nearest_sizes_are_valid():
  for asked in [(3, 1, 1), (5, -1, 1), (1, 7, 3), (100, 100, 100)]:
    with pytest.raises(types.InputError) as error:
      mesh_lib.resolve_sizes(*asked, num_devices=12)
    tail = str(error.value).rsplit(': ', 1)[1]
    nearest = [int(part.split('=')[1]) for part in tail.split(', ')]
    assert mesh_lib.resolve_sizes(*nearest, num_devices=12) == tuple(nearest)
    if -1 in asked:  # the free size stays free; the fixed one moves least
      assert nearest[0] in (4, 6)


class _SliceDevice:
  """As much of a TPU device as a mesh over slices looks at."""

  platform = 'other'
  device_kind = 'other'

  def __init__(self, index, slice_index):
    self.id = index
    self.process_index = slice_index
    self.slice_index = slice_index


def test_only_data_crosses_slices():
  devices = [_SliceDevice(i, slice_index=i % 2) for i in range(8)]
  mesh = mesh_lib.make_mesh(2, 4, 1, devices=devices)
  slices = [[d.slice_index for d in row.flat] for row in mesh.devices]
  assert slices == [[0] * 4, [1] * 4]
  with pytest.raises(types.InputError, match='multiple of the 2 slices'):
    mesh_lib.make_mesh(1, 8, 1, devices=devices)
