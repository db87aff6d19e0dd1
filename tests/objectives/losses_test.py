"""CE, RAFT and CoT-RAFT: hand-computed, and against PyTorch."""

import functools

import jax
from jax import test_util
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax import numerics, types
from tract_jax.objectives import losses

B, L, D, V = 4, 12, 8, 32
SCORE_IDS = (5, 7, 9, 11, 13)
GRID = (1.0, 2.0, 3.0, 4.0, 5.0)
TARGET = losses.ScoreTarget(SCORE_IDS, GRID)
OBJECTIVES = {
  'ce': losses.Objective(1.0, 0.0, ce_includes_score=True),
  'raft': losses.Objective(0.0, 1.0, ce_includes_score=False),
  'cot_raft': losses.Objective(1.0, 0.7, ce_includes_score=False),
  'cot_raft, digit in': losses.Objective(1.0, 0.7, ce_includes_score=True),
}


def make_rows(num_rows=B, seed=0):
  """Rows with a CoT of differing length; the last row has no target at all."""
  rng = np.random.default_rng(seed)
  cot_mask = np.zeros((num_rows, L), bool)
  score_mask = np.zeros((num_rows, L), bool)
  values = np.zeros((num_rows, L), np.float32)
  for row in range(num_rows - 1):
    start, score = 2 + row % 3, 6 + row % 4
    cot_mask[row, start:score] = True
    cot_mask[row, score + 1] = True
    score_mask[row, score] = True
    values[row, score] = rng.choice([1, 2.5, 4, 5])
  targets = rng.integers(0, V, (num_rows, L)).astype(np.int32)
  targets[score_mask] = rng.choice(SCORE_IDS, score_mask.sum())
  segments = np.ones((num_rows, L), np.int32)
  return types.Batch(
    inputs=targets,
    targets=targets,
    positions=np.tile(np.arange(L, dtype=np.int32), (num_rows, 1)),
    segment_ids=segments,
    cot_mask=cot_mask,
    score_mask=score_mask,
    score_values=values,
  )


def make_model(seed=1, scale=1.0):
  keys = jax.random.split(jax.random.key(seed))
  hidden = jax.random.normal(keys[0], (B, L, D))
  return hidden, scale * jax.random.normal(keys[1], (D, V))


def loss_of(weights, hidden, rows, objective, num_targets=L, chunk_size=L):
  terms = losses.loss_terms(
    lambda h: (h @ weights).astype(jnp.float32),
    hidden,
    rows,
    objective,
    TARGET,
    num_targets=num_targets,
    chunk_size=chunk_size,
  )
  counts = losses.target_counts(rows, objective)
  return losses.objective_loss(terms, objective, *counts)


def torch_loss(torch, weights, hidden, rows, objective):
  """The formulas, row by row, as a PyTorch user would write them down."""
  logits = hidden @ weights
  log_probs = torch.log_softmax(logits, dim=-1)
  nll, errors = [], []
  grid = torch.tensor(GRID)
  for b in range(rows.targets.shape[0]):
    for t in range(rows.targets.shape[1]):
      token = int(rows.targets[b, t])
      is_score = bool(rows.score_mask[b, t])
      in_ce = rows.cot_mask[b, t] or (is_score and objective.ce_includes_score)
      if in_ce:
        nll.append(-log_probs[b, t, token])
      if is_score:
        expected = (log_probs[b, t, list(SCORE_IDS)].exp() * grid).sum()
        errors.append((expected - float(rows.score_values[b, t])) ** 2)
  total = objective.score_weight * torch.stack(errors).mean()
  if objective.ce_weight:
    total = total + objective.ce_weight * torch.stack(nll).mean()
  return total


@pytest.mark.parametrize('name', OBJECTIVES)
def test_value_and_gradient_equal_pytorch(name):
  torch = pytest.importorskip('torch')
  objective, rows = OBJECTIVES[name], make_rows()
  hidden, weights = make_model()
  value, grads = jax.value_and_grad(loss_of, argnums=(0, 1))(
    weights, hidden, rows, objective
  )
  torch_args = [
    torch.tensor(np.array(x), requires_grad=True) for x in (weights, hidden)
  ]
  expected = torch_loss(torch, *torch_args, rows, objective)
  expected.backward()
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  for grad, arg in zip(grads, torch_args, strict=True):
    np.testing.assert_allclose(grad, arg.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_cot_raft_by_hand():
  # Uniform logits over 32 tokens: CE is log 32; the expected score 15 / 32.
  rows = make_rows()
  hidden, weights = jnp.zeros((B, L, D)), jnp.zeros((D, V))
  scores = rows.score_values[rows.score_mask]
  squared = np.mean((15 / 32 - scores) ** 2)
  value = loss_of(weights, hidden, rows, OBJECTIVES['cot_raft'])
  np.testing.assert_allclose(value, np.log(32) + 0.7 * squared, rtol=1e-6)


def test_terms_count_tokens_scores_and_mass():
  rows = make_rows()
  hidden, weights = jnp.zeros((B, L, D)), jnp.zeros((D, V))
  terms = losses.loss_terms(
    lambda h: h @ weights,
    hidden,
    rows,
    OBJECTIVES['cot_raft'],
    TARGET,
    num_targets=L,
    chunk_size=L,
  )
  assert terms.score_count == 3
  assert terms.ce_count == rows.cot_mask.sum()
  np.testing.assert_allclose(terms.grid_mass_sum, 3 * 5 / 32, rtol=1e-6)


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize(
  ('num_targets', 'chunk_size'), [(8, 3), (9, 4), (99, 1)]
)
def test_chunks_change_nothing(name, num_targets, chunk_size):
  objective, rows = OBJECTIVES[name], make_rows()
  hidden, weights = make_model()
  run = jax.value_and_grad(loss_of, argnums=(0, 1))
  whole = run(weights, hidden, rows, objective)
  parts = run(weights, hidden, rows, objective, num_targets, chunk_size)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    parts,
    whole,
  )


@pytest.mark.parametrize('name', OBJECTIVES)
def test_order_and_rows_without_target_change_nothing(name):
  objective, rows = OBJECTIVES[name], make_rows()
  hidden, weights = make_model()
  order = np.array([3, 1, 0, 2])
  grad = jax.value_and_grad(loss_of)
  whole = grad(weights, hidden, rows, objective)
  moved = jax.tree.map(lambda x: x[order], rows)
  shuffled = grad(weights, hidden[order], moved, objective)
  without = jax.tree.map(lambda x: x[:-1], rows)
  shorter = grad(weights, hidden[:-1], without, objective)
  for other in (shuffled, shorter):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
      other,
      whole,
    )


def test_terms_add_up_over_any_split():
  objective, rows = OBJECTIVES['cot_raft'], make_rows()
  hidden, weights = make_model()

  def terms(part):
    return losses.loss_terms(
      lambda h: h @ weights,
      hidden[part],
      jax.tree.map(lambda x: x[part], rows),
      objective,
      TARGET,
      num_targets=8,
      chunk_size=8,
    )

  whole = terms(slice(None))
  parts = numerics.tree_add(terms(slice(0, 1)), terms(slice(1, None)))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), parts, whole
  )


def test_gradients_agree_with_finite_differences():
  rows = make_rows()
  hidden, weights = make_model(scale=0.3)
  for objective in OBJECTIVES.values():
    test_util.check_grads(
      lambda w, h, o=objective: loss_of(w, h, rows, o),
      (weights, hidden),
      order=1,
      modes=['rev'],
      rtol=2e-2,
    )


def test_huge_bfloat16_logits_stay_finite():
  rows = make_rows()
  hidden, weights = make_model(scale=1e4)
  hidden = hidden.astype(jnp.bfloat16)
  weights = weights.astype(jnp.bfloat16)
  value, grad = jax.value_and_grad(loss_of)(
    weights, hidden, rows, OBJECTIVES['cot_raft']
  )
  assert np.isfinite(value)
  assert np.isfinite(np.asarray(grad, np.float32)).all()


def test_lambda_zero_is_cross_entropy_of_the_words():
  rows = make_rows()
  hidden, weights = make_model()
  zero = losses.Objective(1.0, 0.0, ce_includes_score=True)
  value = loss_of(weights, hidden, rows, zero)
  assert value == loss_of(weights, hidden, rows, OBJECTIVES['ce'])
