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

from tests.models import small_models
from tests.models import transformer_parity_test as parity
from tract_jax import types
from tract_jax.data import loader
from tract_jax.models import transformer
from tract_jax.objectives import losses
from tract_jax.pipeline import loss_fn as loss_fn_lib
from tract_jax.text import token_tree

CONFIG = small_models.CONFIG
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
  """`gradients_of` of a model of MODELS."""
  return gradients_of(*make_model(model), scores, objective)


def gradients_of(fns, params, scores, objective):
  """batch [B, L] -> (loss, gradient), by the pipeline's own loss."""
  is_tree = scores == 'several tokens'
  score_tokens = python_types.SimpleNamespace(
    ids=() if is_tree else tuple(ids[0] for ids in SCORES[scores]),
    tree=token_tree.make_tree(SCORES[scores]) if is_tree else None,
    grid=python_types.SimpleNamespace(values=VALUES),
  )
  objective = OBJECTIVES[objective]
  loss_fn = loss_fn_lib.make_loss_fn(
    python_types.SimpleNamespace(fns=fns),
    score_tokens,
    objective,
    num_targets=LENGTH,
    chunk_size=LENGTH,
  )
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


def torch_log_probs(torch, model, example, scores):
  """[l, V] log-probabilities, and log p of each score, one token at a time."""

  def read(tokens):
    logits = model(torch.tensor(np.array([tokens])).long()).logits[0]
    return torch.log_softmax(logits, dim=-1)

  start = int(np.flatnonzero(example.score_mask)[0])
  context, found = list(example.inputs[: start + 1]), []
  for score in SCORES[scores]:
    # A score of one token is read without the end token.
    sequence = score[:1] if scores == 'one token' else score
    steps = read([*context, *sequence[:-1]])[start:]
    found.append(sum(steps[j, token] for j, token in enumerate(sequence)))
  return read(example.inputs), torch.stack(found)


def torch_loss(torch, model, examples, scores):
  """CoT-RAFT with lambda .7, each example in a row of its own."""
  nll, errors = [], []
  for example in examples:
    log_probs, of_scores = torch_log_probs(torch, model, example, scores)
    for i in np.flatnonzero(example.cot_mask):
      nll.append(-log_probs[i, int(example.targets[i])])
    expected = of_scores.exp() @ torch.tensor(VALUES)
    errors.append((expected - example.score) ** 2)
  return torch.stack(nll).mean() + 0.7 * torch.stack(errors).mean()


def torch_gradient(model, path):
  """The gradient of a leaf of ours, layers stacked, as we lay it out."""
  name = '.'.join(entry.key for entry in path)
  name = name if name.startswith('lm_head') else f'model.{name}'
  layers = range(model.config.num_hidden_layers) if '.layers.' in name else [0]
  found = [
    model.get_parameter(name.replace('.layers.', f'.layers.{i}.')).grad.numpy()
    for i in layers
  ]
  if name.endswith('proj.weight') or 'lm_head' in name:
    found = [weight.T for weight in found]
  return np.stack(found) if '.layers.' in name else found[0]


@pytest.mark.parametrize(
  ('scores', 'family', 'changes'),
  [
    ('one token', 'llama', {}),
    ('several tokens', 'mistral', {'sliding_window': 4}),
  ],
)
def test_packed_rows_equal_pytorch(scores, family, changes, tmp_path):
  torch = pytest.importorskip('torch')
  model = parity.hf_model(family, changes)
  fns, params = parity.loaded(model, tmp_path)
  a, b, c, d = examples = [make_example(i, scores) for i in range(NUM_EXAMPLES)]
  run = gradients_of(fns, params, scores, 'squared_error')
  value, grads = run(make_batch([[c, a, d], [], [b]]))
  expected = torch_loss(torch, model, examples, scores)
  expected.backward()
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  for path, found in jax.tree_util.tree_leaves_with_path(grads):
    wanted = torch_gradient(model, path)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


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
