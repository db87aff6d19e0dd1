"""Small examples, their rows in any layout, and the formulas in PyTorch.

The model is a table of hidden states and a projection, so an example's logits
do not depend on the row that it lies in. Axes as in losses.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.data import loader
from tract_jax.objectives import losses, targets
from tract_jax.training import step

D, V = 8, 32
SCORE_IDS = (5, 7, 9, 11, 13)
GRID = (1.0, 2.0, 3.0, 4.0, 5.0)
TARGET = losses.GridTokens(SCORE_IDS, GRID)
RATINGS = ((4.0,), (2.5,), (1.0, 2.0, 4.5), (5.0, 5.0, 3.0))

_cot_raft = functools.partial(losses.Objective, 1.0, 0.7)
OBJECTIVES = {
  'ce': losses.Objective(1.0, 0.0, ce_includes_score=True),
  'raft': losses.Objective(0.0, 1.0, ce_includes_score=False),
  'cot_raft': _cot_raft(False),
  'score token in CE': _cot_raft(True),
  'grid': _cot_raft(False, expectation='grid'),
  'off grid': _cot_raft(False, off_grid_weight=0.3),
  'crps': _cot_raft(False, 'crps'),
  'crps on grid': _cot_raft(False, 'crps', 'grid'),
  'wasserstein': _cot_raft(False, 'wasserstein'),
  'wasserstein on grid': _cot_raft(False, 'wasserstein', 'grid'),
  'distribution_ce': _cot_raft(False, 'distribution_ce'),
  'distribution_ce on grid': _cot_raft(True, 'distribution_ce', 'grid', 0.2),
}


def make_examples(number, seed=0):
  """Examples of 5 to 9 tokens: whole, fractional and several ratings."""
  rng = np.random.default_rng(seed)
  made = []
  for i in range(number):
    length, num_prompt = 5 + i % 5, i % 2
    ratings = RATINGS[i % len(RATINGS)]
    position = np.arange(length)
    score_mask = position == length - 2
    tokens = rng.integers(0, V, length).astype(np.int32)
    tokens[length - 2] = rng.choice(SCORE_IDS)
    made.append(
      types.EncodedExample(
        inputs=rng.integers(0, V, length).astype(np.int32),
        targets=tokens,
        cot_mask=(position >= num_prompt) & ~score_mask,
        score_mask=score_mask,
        score=float(np.mean(ratings)),
        target_probs=targets.grid_distribution(ratings, GRID),
      )
    )
  return made


def make_rows(layout, length, most=None):
  """Examples in rows, one after the other; an empty list is an empty row."""
  return loader.make_batch(
    layout,
    batch_size=len(layout),
    length=length,
    max_examples=most or max(1, *map(len, layout)),
    num_scores=len(GRID),
  )


def make_params(scale=0.7, seed=1):
  keys = jax.random.split(jax.random.key(seed))
  return {
    'hidden': jax.random.normal(keys[0], (V, D)),
    'head': scale * jax.random.normal(keys[1], (D, V)),
  }


def loss_terms(params, rows, objective, num_targets=99, chunk_size=99):
  """LossTerms of rows [B, L]."""
  return losses.loss_terms(
    lambda h: h @ params['head'],
    jnp.take(params['hidden'], rows.inputs, axis=0),
    rows,
    objective,
    TARGET,
    num_targets=num_targets,
    chunk_size=chunk_size,
  )


def value_and_grad(params, rows, objective, terms_fn=loss_terms):
  """The objective on micro-batches [A, B, L], and the gradient of a step."""
  grads, terms = step.gradients(
    lambda params, _, micro: terms_fn(params, micro, objective),
    params,
    None,
    rows,
    objective,
  )
  counts = losses.target_counts(rows, objective)
  return losses.objective_loss(terms, objective, *counts), grads


def micro_batches(rows, number=1):
  """[B, L] -> [number, B / number, L]."""
  return jax.tree.map(lambda x: np.reshape(x, (number, -1, *x.shape[1:])), rows)


def torch_parts(torch, params, example):
  """Of one example: [T] log-likelihoods, and log p of each score."""
  hidden = params['hidden'][torch.tensor(example.inputs).long()]
  log_probs = torch.log_softmax(hidden @ params['head'], dim=-1)
  wanted = torch.tensor(example.targets).long()
  picked = log_probs[torch.arange(len(wanted)), wanted]
  at = int(np.flatnonzero(example.score_mask)[0])
  return picked, log_probs[at, list(SCORE_IDS)]


def torch_score_loss(torch, log_probs, example, objective):
  """The score loss as its definition reads, point by point."""
  probs = log_probs.exp()
  if objective.expectation == 'grid':
    probs = probs / probs.sum()
  if objective.score_loss == 'squared_error':
    expected = sum(p * y for p, y in zip(probs, GRID, strict=True))
    return (expected - example.score) ** 2
  rater = [float(q) for q in example.target_probs]
  if objective.score_loss == 'distribution_ce':
    pairs = zip(rater, probs, strict=True)
    return -sum(q * p.log() for q, p in pairs)
  # Mass off the grid is a score of 0, which lies below this grid.
  points, total = (0.0, *GRID), 0.0
  model = (1 - probs.sum(), *probs)
  rater = (0.0, *rater)
  for i in range(len(GRID)):
    gap = sum(model[: i + 1]) - sum(rater[: i + 1])
    power = gap**2 if objective.score_loss == 'crps' else gap.abs()
    total = total + power * (points[i + 1] - points[i])
  return total


def torch_loss(torch, params, examples, objective, parts=torch_parts):
  """The objective over examples, as a PyTorch user would write it down."""
  nll, scores, leaks = [], [], []
  for example in examples:
    picked, log_probs = parts(torch, params, example)
    tokens = example.cot_mask | (
      example.score_mask & objective.ce_includes_score
    )
    nll += [-x for x, wanted in zip(picked, tokens, strict=True) if wanted]
    scores.append(torch_score_loss(torch, log_probs, example, objective))
    leaks.append(-log_probs.exp().sum().log())
  return (
    objective.ce_weight * torch.stack(nll).mean()
    + objective.score_weight * torch.stack(scores).mean()
    + objective.off_grid_weight * torch.stack(leaks).mean()
  )


def torch_params(torch, params):
  return {
    name: torch.tensor(np.array(value), requires_grad=True)
    for name, value in params.items()
  }


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
    actual,
    expected,
  )
