"""Tests of tract_jax.parallel.tpu_options."""

import types

import numpy as np
import pytest

from tract_jax.parallel import mesh as mesh_lib
from tract_jax.parallel import tpu_options

ALL_REDUCE = 'xla_enable_async_all_reduce'


@pytest.mark.parametrize('train_base', [True, False])
def test_only_tpus_are_asked_for_anything(train_base):
  mesh = mesh_lib.make_mesh(-1, 1, 1)
  assert tpu_options.for_training(mesh, train_base=train_base) is None
  chips = np.array([types.SimpleNamespace(platform='tpu')] * 4)
  mesh = types.SimpleNamespace(devices=chips.reshape(4, 1, 1))
  options = tpu_options.for_training(mesh, train_base=train_base)
  assert options.keys() >= tpu_options.TRAINING.keys()
  assert (ALL_REDUCE in options) == train_base
  assert all(reason for _, reason in tpu_options.FULL_TRAINING.values())
