"""Examples that share a row do not see each other, and are learnt as if alone.

A small transformer under the loss of the pipeline, with scores of one token and
of several, with all of the past and with a window shorter than an example.
"""

import dataclasses
import functools
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import loader
from tract_jax.models import config as config_lib
from tract_jax.models import transformer
from tract_jax.objectives import losses
from tract_jax.pipeline import build
from tract_jax.text import token_tree

CONFIG = config_lib.ModelConfig(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_position_embeddings=64,
)
MODELS = {
  'full': CONFIG,
  'window': dataclasses.replace(CONFIG, sliding_window=4),
}
VALUES = (1.0, 2.0, 3.0)
# Tokens of each score and the end token; the single tokens have no tree.
SCORES = {
  'one token': ((5, 9), (6, 9), (7, 9)),
  'several tokens': ((5, 9), (5, 6, 9), (8, 9)),
}
OBJECTIVES = {
  'ce': losses.Objective(1.0, 0.0, ce_includes_score=True),
  'squared_error': losses.Objective(1.0, 0.7, ce_includes_score=False),
  'distribution_ce': losses.Objective(
    1.0, 0.7, False, 'distribution_ce', 'grid', 0.3
  ),
}
NUM_EXAMPLES, LENGTH = 4, 32


def make_example(number, scores):
  """An example of 8 to 11 tokens that stand in no other example."""
  rng = np.random.default_rng(number)
  score = SCORES[scores][number % 3][:-1]
  length = 8 + number
  end = length - 1
  position = np.arange(length)
  score_mask = (position >= end - len(score)) & (position < end)
  targets = rng.integers(10, 64, length).astype(np.int32)
  targets[score_mask] = score
  return types.EncodedExample(
    inputs=(10 + 12 * number + position).astype(np.int32),
    targets=targets,
    cot_mask=(position >= 3) & ~score_mask,
    score_mask=score_mask,
    score=VALUES[number % 3] + 0.25,
    target_probs=np.roll([0.5, 0.4, 0.1], number).astype(np.float32),
  )


def make_batch(layout):
  """[4, L] of lists of examples."""
  return loader.make_batch(
    layout, batch_size=4, length=LENGTH, max_examples=3, num_scores=3
  )


@functools.cache
def make_model(name):
  fns = transformer.make_model(MODELS[name], remat='none')
  rng = np.random.default_rng(0)

  def leaf(path, abstract):
    mean = 1.0 if 'norm' in jax.tree_util.keystr(path) else 0.0
    return jnp.array(rng.normal(mean, 0.2, abstract.shape), abstract.dtype)

  params = jax.tree_util.tree_map_with_path(
    leaf, transformer.abstract_params(fns)
  )
  return fns, params


@functools.cache
def make_gradients(model, scores, objective):
  """batch [B, L] -> (loss, gradient), by the pipeline's own loss."""
  fns, params = make_model(model)
  is_tree = scores == 'several tokens'
  score_tokens = python_types.SimpleNamespace(
    ids=() if is_tree else tuple(ids[0] for ids in SCORES[scores]),
    tree=token_tree.make_tree(SCORES[scores]) if is_tree else None,
  )
  setup = python_types.SimpleNamespace(
    model=python_types.SimpleNamespace(fns=fns),
    grid=python_types.SimpleNamespace(values=VALUES),
    cot_scores=score_tokens,
    config=python_types.SimpleNamespace(
      train=python_types.SimpleNamespace(logit_chunk=LENGTH)
    ),
  )
  objective = OBJECTIVES[objective]
  loss_fn = build._make_loss_fn(setup, objective, True, LENGTH)
  frozen = jax.tree.map(lambda _: None, params)

  @jax.jit
  def run(batch):
    def loss(params):
      terms = loss_fn(params, frozen, batch)
      counts = terms.ce_count, terms.score_count
      return losses.objective_loss(terms, objective, *counts)

    return jax.value_and_grad(loss)(params)

  return run


@pytest.mark.parametrize('scores', SCORES)
@pytest.mark.parametrize(
  ('model', 'objective'),
  [('full', 'squared_error'), *(('window', name) for name in OBJECTIVES)],
)
def test_packed_examples_are_learnt_as_if_alone(model, scores, objective):
  run = make_gradients(model, scores, objective)
  a, b, c, d = (make_example(i, scores) for i in range(NUM_EXAMPLES))
  alone = run(make_batch([[a], [b], [c], [d]]))
  # The longest pack leaves two places of padding.
  packed = run(make_batch([[c, a, d], [], [b]]))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
    packed,
    alone,
  )
  assert float(alone[0]) > 0.1


def without_targets(example):
  return dataclasses.replace(
    example,
    cot_mask=np.zeros_like(example.cot_mask),
    score_mask=np.zeros_like(example.score_mask),
  )


@pytest.mark.parametrize('scores', SCORES)
@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('number', range(3))
def test_no_gradient_reaches_another_example(model, scores, number):
  run = make_gradients(model, scores, 'squared_error')
  examples = [make_example(i, scores) for i in range(3)]
  row = [
    e if i == number else without_targets(e) for i, e in enumerate(examples)
  ]
  _, grads = run(make_batch([row]))
  reached = np.abs(grads['embed_tokens']['weight']).max(axis=1)
  for i, example in enumerate(examples):
    if i == number:
      assert (reached[example.inputs] > 0).all()
    else:
      assert (reached[example.inputs] == 0).all()


def test_the_window_is_shorter_than_an_example():
  batch = make_batch([[make_example(i, 'one token') for i in range(3)]])
  loss, other = (
    make_gradients(model, 'one token', 'squared_error')(batch)[0]
    for model in MODELS
  )
  assert abs(float(loss - other)) > 1e-3
