"""Tests of tract_jax.parallel.tpu_options."""

import types

import numpy as np

from tract_jax.parallel import mesh as mesh_lib
from tract_jax.parallel import tpu_options


def test_only_tpus_are_asked_for_anything():
  assert tpu_options.for_training(mesh_lib.make_mesh(-1, 1, 1)) is None
  chips = np.array([types.SimpleNamespace(platform='tpu')] * 4)
  mesh = types.SimpleNamespace(devices=chips.reshape(4, 1, 1))
  options = tpu_options.for_training(mesh)
  assert options.keys() == tpu_options.TRAINING.keys()
  assert options['xla_tpu_scoped_vmem_limit_kib'] == '65536'
  assert all(reason for _, reason in tpu_options.TRAINING.values())
