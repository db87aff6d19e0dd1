"""Weights of a base model: in which dtype they are kept and used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipeline import build_test
from tract_jax.models import lora
from tract_jax.pipeline import base_weights, read_data


def _dtypes(tree):
  return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def _setup(lora_rank):
  return build_test.make_setup(dtype='bfloat16', lora_rank=lora_rank)


@pytest.mark.parametrize(
  ('lora_rank', 'trained', 'frozen'),
  [(0, {'float32'}, set()), (2, {'float32'}, {'bfloat16'})],
)
def test_what_is_trained_is_kept_in_float32(lora_rank, trained, frozen):
  model = _setup(lora_rank).model
  parts = base_weights.init_params(model, seed=0)
  assert [_dtypes(part) for part in parts] == [trained, frozen]
  abstract = lora.split_trainable(model.abstract, model.train_base)
  assert [_dtypes(part) for part in abstract] == [trained, frozen]


def test_steps_that_bfloat16_would_round_away_are_made():
  setup = build_test.make_setup(
    run={'train': {'batch_size': 8, 'micro_batch_size': 4, 'lr': 1e-6}},
    dtype='bfloat16',
    lora_rank=0,
  )
  data = read_data.read_data(setup)
  rows = read_data.encode_for_stage(setup, data.train, 'annotator', [], 'rows')
  trainer = build_test.make_trainer(setup, rows)
  trainable, frozen = base_weights.init_params(setup.model, seed=0)
  before = jax.tree.map(np.array, trainable['layers']['mlp'])
  state = trainer.init_state(trainable)
  batch = trainer.to_device(build_test.make_loader(rows).batch(0))
  for _ in range(2):
    state, _ = trainer.step(state, frozen, batch)
  after = jax.tree.map(np.array, state.params['layers']['mlp'])

  def changed(dtype):
    shares = jax.tree.map(
      lambda x, y: np.mean(x.astype(dtype) != y.astype(dtype)), before, after
    )
    return np.mean(jax.tree.leaves(shares))

  assert changed(np.float32) > 0.9
  assert changed(jnp.bfloat16) < 0.1


def test_what_is_sampled_with_has_the_models_dtype():
  for lora_rank in (0, 2):
    setup = _setup(lora_rank)
    params = lora.merge(*base_weights.init_params(setup.model, seed=0))
    used = base_weights.for_sampling(setup.model, params)
    adapters, base = lora.split_trainable(used, train_base=False)
    assert _dtypes(base) == {'bfloat16'}
    assert _dtypes(adapters) == ({'float32'} if lora_rank else set())
    shapes = base_weights.for_sampling(setup.model, setup.model.abstract)
    jax.tree.map(lambda x, like: _same(x, like), used, shapes)


def _same(x, like):
  assert (x.shape, x.dtype) == (like.shape, like.dtype)
  assert x.sharding == like.sharding
