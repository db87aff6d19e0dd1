"""The schedule of the learning rate."""

import math

import numpy as np

from tract_jax.training import optimizer


def test_schedule_by_hand():
  config = optimizer.OptimizerConfig(lr=2.0, warmup_fraction=0.25)
  schedule = optimizer.make_schedule(config, 8)
  # Up over two steps, then half a cosine over six.
  falling = [1 + math.cos(math.pi * i / 6) for i in range(7)]
  found = [float(schedule(i)) for i in range(9)]
  np.testing.assert_allclose(found, [0, 1, *falling], atol=1e-6)


def test_without_warm_up_the_first_update_has_the_whole_rate():
  config = optimizer.OptimizerConfig(lr=2.0, warmup_fraction=0.0)
  assert float(optimizer.make_schedule(config, 8)(0)) == 2.0
