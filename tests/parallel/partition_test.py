"""Tests of tract_jax.parallel.partition, on eight virtual devices."""

from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from tract_jax import types
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.parallel import partition


@pytest.fixture(name='mesh')
def _mesh():
  return mesh_lib.make_mesh(2, 2, 2)


@pytest.mark.parametrize(
  ('names', 'spec'),
  [
    (('vocab', 'embed'), PartitionSpec('tensor', 'fsdp')),
    ((None, 'embed', 'heads'), PartitionSpec(None, 'fsdp', 'tensor')),
    ((None, 'mlp', 'lora_rank'), PartitionSpec(None, 'tensor', None)),
    (('rows', 'length'), PartitionSpec(('data', 'fsdp'), None)),
    ((None,), PartitionSpec(None)),
    ((), PartitionSpec()),
  ],
)
def test_names_become_mesh_axes(mesh, names, spec):
  assert partition.named_sharding(mesh, names).spec == spec


def test_rules_name_only_axes_of_the_mesh():
  used = {axis for axes in partition.RULES.values() for axis in axes}
  assert used == set(mesh_lib.AXES)


def test_unknown_name_raises(mesh):
  with pytest.raises(ValueError, match="unknown logical axis 'head'.*heads"):
    partition.named_sharding(mesh, ('embed', 'head'))


@pytest.mark.parametrize('names', [('heads', 'mlp'), ('rows', 'embed')])
def test_mesh_axis_twice_in_one_array_raises(mesh, names):
  with pytest.raises(ValueError, match='two dimensions'):
    partition.named_sharding(mesh, names)


def _abstract(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


def test_tree_of_shardings_places_every_leaf(mesh):
  axes = {
    'embed': {'weight': ('vocab', 'embed')},
    'layers': {'q': (None, 'embed', 'heads'), 'bias': None, 'norm': (None,)},
    'step': (),
  }
  abstract = {
    'embed': {'weight': _abstract(64, 32)},
    'layers': {'q': _abstract(2, 32, 32), 'bias': None, 'norm': _abstract(32)},
    'step': _abstract(),
  }
  shardings = partition.tree_shardings(mesh, axes, abstract)
  assert shardings['layers']['bias'] is None
  shard_shapes = jax.tree.map(
    lambda leaf, s: s.shard_shape(leaf.shape), abstract, shardings
  )
  assert shard_shapes == {
    'embed': {'weight': (32, 16)},
    'layers': {'q': (2, 16, 16), 'bias': None, 'norm': (32,)},
    'step': (),
  }


class Quantized(NamedTuple):
  """Stands for a leaf of several arrays, as a quantised weight is."""

  codes: Any
  scale: Any
  offset: Any = None


def _blocks(size, num_blocks, axis):
  """Logical axes and shapes of a weight of `size` rows in blocks."""
  axes = Quantized((None, axis, 'mlp'), (None, f'{axis}_blocks', 'mlp'))
  return axes, Quantized(_abstract(2, size, 8), _abstract(2, num_blocks, 8))


@pytest.mark.parametrize(
  ('num_blocks', 'expected'),
  [
    (4, (2, 1, 4)),
    (12, (2, 3, 4)),
    (9, (2, 9, 4)),
    (2, (2, 2, 4)),
    (1, (2, 1, 4)),
  ],
)
def test_blocks_are_split_where_they_divide_and_else_copied(
  num_blocks, expected
):
  mesh = mesh_lib.make_mesh(1, 4, 2)
  axes, abstract = _blocks(576, num_blocks, 'embed')
  shardings = partition.tree_shardings(mesh, {'up': axes}, {'up': abstract})
  shards = jax.tree.map(
    lambda s, x: s.shard_shape(x.shape), shardings['up'], abstract
  )
  assert shards == Quantized((2, 144, 4), expected)


def test_a_weight_in_blocks_must_divide_as_any_other():
  mesh = mesh_lib.make_mesh(1, 8, 1)
  axes, abstract = _blocks(9 * 60, 9, 'embed')
  with pytest.raises(types.InputError) as error:
    partition.tree_shardings(mesh, {'up': axes}, {'up': abstract})
  assert str(error.value) == (
    'up.codes: dimension 1 (embed) of size 540 cannot be split over fsdp=8;'
    ' nearest valid fsdp: 6 or 9'
  )


@pytest.mark.parametrize('axis', ['embed', 'heads', 'mlp'])
def test_blocks_lie_as_their_rows_do(axis):
  assert partition.RULES[f'{axis}_blocks'] == partition.RULES[axis]
  assert f'{axis}_blocks' in partition.COPIED_IF_UNEVEN


def test_none_leaf_passes_through_whatever_its_axes(mesh):
  axes = {'a': ('vocab', 'embed')}
  assert partition.tree_shardings(mesh, axes, {'a': None}) == {'a': None}


def test_dimension_that_does_not_divide_is_named_with_nearest():
  mesh = mesh_lib.make_mesh(1, 1, 8)
  axes = {'layers': {'k': (None, 'embed', 'kv_heads')}}
  with pytest.raises(
    types.InputError,
    match=r'layers\.k: dimension 2 \(kv_heads\) of size 12.*tensor=8;'
    r' nearest valid tensor: 6 or 12',
  ):
    partition.tree_shardings(
      mesh, axes, {'layers': {'k': _abstract(2, 32, 12)}}
    )


def test_problems_come_together_once_each():
  mesh = mesh_lib.make_mesh(1, 4, 2)
  axes = {'a': ('embed', 'mlp'), 'b': ('embed', 'mlp'), 'c': ('vocab', None)}
  abstract = {'a': _abstract(6, 4), 'b': _abstract(6, 4), 'c': _abstract(3, 5)}
  with pytest.raises(types.InputError) as error:
    partition.tree_shardings(mesh, axes, abstract)
  lines = str(error.value).split('\n')
  assert [line.split(':')[0] for line in lines] == ['a', 'c']


def test_names_and_shape_must_agree_in_number(mesh):
  with pytest.raises(ValueError, match='a:.*does not name'):
    partition.tree_shardings(mesh, {'a': ('embed',)}, {'a': _abstract(2, 4)})


def test_array_without_names_raises(mesh):
  with pytest.raises(ValueError, match='a: has no logical axes'):
    partition.tree_shardings(mesh, {'a': None}, {'a': _abstract(2)})


def test_cached_heads_that_do_not_divide_are_on_every_device():
  mesh = mesh_lib.make_mesh(data=2, fsdp=1, tensor=4)
  names = None, 'rows', 'cached_heads'
  for heads, on_one in ((8, 2), (3, 3)):
    shape = (5, 8, heads, 16, 2)
    found = partition.array_sharding(mesh, names, shape)
    assert found.shard_shape(shape) == (5, 4, on_one, 16, 2)
    entries = jax.ShapeDtypeStruct(shape, np.int16, sharding=found)
    whole = jax.ShapeDtypeStruct(
      (3,), np.int8, sharding=partition.named_sharding(mesh, ())
    )
    num_bytes = partition.device_bytes([entries, whole])
    assert num_bytes == 5 * 4 * on_one * 16 * 2 * 2 + 3


def test_batches_are_split_by_rows(mesh):
  sharding = partition.batch_sharding(mesh)
  assert sharding.shard_shape((8, 10)) == (2, 10)
  micro = partition.micro_batch_sharding(mesh)
  assert micro.shard_shape((3, 8, 10)) == (3, 2, 10)


def test_rows_that_do_not_divide_name_the_nearest(mesh):
  partition.check_rows(mesh, 8)
  with pytest.raises(
    types.InputError, match=r'rows\) of size 6.*nearest.*rows: 4 or 8'
  ):
    partition.check_rows(mesh, 6)
  with pytest.raises(types.InputError, match='nearest valid.*rows: 4$'):
    partition.check_rows(mesh, 3)
