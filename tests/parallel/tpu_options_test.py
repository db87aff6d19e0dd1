"""Tests of tract_jax.parallel.tpu_options."""

import types

import numpy as np
import pytest

from tract_jax.parallel import mesh as mesh_lib
from tract_jax.parallel import tpu_options

ALL_REDUCE = 'xla_enable_async_all_reduce'


ALL_GATHER = 'xla_enable_async_all_gather'
TABLES = (
  tpu_options.TRAINING,
  tpu_options.FULL_TRAINING,
  tpu_options.V6E_TRAINING,
)


def mesh_of(device_kind):
  device = types.SimpleNamespace(platform='tpu', device_kind=device_kind)
  return types.SimpleNamespace(devices=np.array([device] * 4).reshape(4, 1, 1))


@pytest.mark.parametrize('train_base', [True, False])
def test_only_tpus_are_asked_for_anything(train_base):
  mesh = mesh_lib.make_mesh(-1, 1, 1)
  assert tpu_options.for_training(mesh, train_base=train_base) is None
  for kind in ('TPU v5 lite', 'TPU v5', 'TPU v6 lite', 'TPU v9'):
    options = tpu_options.for_training(mesh_of(kind), train_base=train_base)
    assert options.keys() >= tpu_options.TRAINING.keys()
    is_v6e = kind == 'TPU v6 lite'
    assert (ALL_REDUCE in options) == (train_base and not is_v6e)
    assert (ALL_GATHER in options) == is_v6e


def test_every_option_has_a_reason():
  assert all(reason for table in TABLES for _, reason in table.values())
