"""Tests of tract_jax.parallel.tpu_options."""

import types

import numpy as np
import pytest

from tract_jax.parallel import mesh as mesh_lib
from tract_jax.parallel import row_placement, tpu_options

ALL_REDUCE = 'xla_enable_async_all_reduce'


ALL_GATHER = 'xla_enable_async_all_gather'


def mesh_of(device_kind):
  device = types.SimpleNamespace(platform='tpu', device_kind=device_kind)
  return types.SimpleNamespace(devices=np.array([device] * 4).reshape(4, 1, 1))


@pytest.mark.parametrize('train_base', [True, False])
def test_only_tpus_are_asked_for_anything(train_base):
  mesh = mesh_lib.make_mesh(-1, 1, 1)
  assert tpu_options.for_training(mesh, train_base=train_base) is None


@pytest.mark.parametrize(
  ('kind', 'train_base', 'table'),
  [
    ('TPU v5 lite', False, tpu_options.TRAINING),
    ('TPU v5 lite', True, tpu_options.FULL_TRAINING),
    ('TPU v5', False, tpu_options.TRAINING),
    ('TPU v9', True, tpu_options.FULL_TRAINING),
    ('TPU v6 lite', False, tpu_options.V6E_TRAINING),
    ('TPU v6e', True, tpu_options.V6E_TRAINING),
  ],
)
def test_chips_have_options_of_their_own(kind, train_base, table):
  options = tpu_options.for_training(mesh_of(kind), train_base=train_base)
  assert options == {name: value for name, (value, _) in table.items()}
  assert all(reason for _, reason in table.values())
  is_v6e = 'v6' in kind
  assert (ALL_REDUCE in options) == (train_base and not is_v6e)
  assert (ALL_GATHER in options) == is_v6e
  limit = options['xla_tpu_scoped_vmem_limit_kib']
  assert limit == ('65536' if is_v6e else '32768')


@pytest.mark.parametrize(
  ('kind', 'prefill', 'decoding'),
  [
    ('TPU v5 lite', None, '65536'),
    ('TPU v5', '32768', '32768'),
    ('TPU v6 lite', '32768', '65536'),
    ('TPU v9', None, None),
  ],
)
def test_sampling_has_options_where_a_chip_gains_by_them(
  kind, prefill, decoding
):
  placement = row_placement.RowPlacement(mesh_of(kind))
  for tables, limit in (
    (tpu_options.PREFILL, prefill),
    (tpu_options.DECODING, decoding),
  ):
    wanted = {'xla_tpu_scoped_vmem_limit_kib': limit} if limit else None
    assert placement.compiler_options(tables) == wanted
    for table in tables.values():
      assert all(reason for _, reason in table.values())


def test_sampling_has_no_options_elsewhere():
  on_cpu = row_placement.RowPlacement(mesh_lib.make_mesh(-1, 1, 1))
  by_pmap = row_placement.RowPlacement(mesh_of('TPU v5 lite'), 'pmap')
  for placement in (row_placement.ONE_DEVICE, on_cpu, by_pmap):
    assert placement.compiler_options(tpu_options.DECODING) is None
