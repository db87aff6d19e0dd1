"""Tests of tract_jax.parallel.compiler_options."""

import types

import jax
import numpy as np
import pytest

from tract_jax.parallel import compiler_options
from tract_jax.parallel import mesh as mesh_lib

VMEM = 'xla_tpu_scoped_vmem_limit_kib'


def _mesh_of(platform):
  devices = np.array([types.SimpleNamespace(platform=platform)] * 4)
  return types.SimpleNamespace(devices=devices.reshape(4, 1, 1))


@pytest.mark.parametrize('train_base', [True, False])
def test_each_compiler_is_asked_for_its_own(train_base):
  def names(platform):
    options = compiler_options.for_training(
      _mesh_of(platform), train_base=train_base
    )
    return options and set(options)

  assert names('gpu') is None
  assert names('cpu') == (
    set(compiler_options.CPU_FULL) if train_base else None
  )
  assert names('tpu') >= set(compiler_options.TPU)
  assert (VMEM in names('tpu')) == train_base


def test_this_compiler_knows_its_options():
  mesh = mesh_lib.make_mesh(-1, 1, 1)
  options = compiler_options.for_training(mesh, train_base=True)
  twice = jax.jit(lambda x: 2 * x, compiler_options=options)
  assert twice(2) == 4


def test_each_option_has_a_reason():
  tables = compiler_options.TPU_FULL, compiler_options.CPU_FULL
  assert all(reason for t in tables for _, reason in t.values())
