"""The losses where a score is several tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives import cases
from tract_jax import types
from tract_jax.objectives import losses, score_tree, targets
from tract_jax.text import token_tree

EXAMPLES = cases.make_examples(3)


def lengthened(example, num_tokens):
  """The example with a score of more tokens: the last ones before the end."""
  score_mask = example.score_mask.copy()
  end = len(score_mask) - 1
  score_mask[end - num_tokens : end] = True
  return dataclasses.replace(
    example, score_mask=score_mask, cot_mask=example.cot_mask & ~score_mask
  )


LONG = [lengthened(e, n) for e, n in zip(EXAMPLES, (1, 2, 3), strict=True)]
ROWS = cases.make_rows([[LONG[0], LONG[1]], [LONG[2]]], 16)


def loss(params, rows, objective, with_grid):
  hidden = jnp.take(params['hidden'], rows.inputs, axis=0)
  starts = score_tree.start_indices(rows)
  at_starts = jnp.take_along_axis(hidden, starts[..., None], axis=1)
  logits = at_starts @ params['head']
  log_probs = jax.nn.log_softmax(logits)[..., jnp.array(cases.SCORE_IDS)]
  target = cases.TARGET
  if with_grid:
    target = losses.GridTokens((), cases.GRID)
  terms = losses.loss_terms(
    lambda h: h @ params['head'],
    hidden,
    rows,
    objective,
    target,
    num_targets=16,
    chunk_size=4,
    grid_log_probs=log_probs if with_grid else None,
  )
  counts = losses.target_counts(rows, objective)
  return losses.objective_loss(terms, objective, *counts), terms


def test_given_log_probs_take_the_place_of_those_that_are_read():
  run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=(2, 3))
  params = cases.make_params()
  objective = cases.OBJECTIVES['off grid']
  given, given_grads = run(params, ROWS, objective, True)
  read, read_grads = run(params, ROWS, objective, False)
  cases.assert_close(given, read)
  cases.assert_close(given_grads, read_grads)
  # They matter: the loss is not the cross-entropy alone.
  assert float(given[1].score_loss_sum) > 0.1


def test_a_score_of_several_tokens_is_one_score_and_all_in_the_ce_or_none():
  params = cases.make_params()
  for includes in (False, True):
    objective = losses.Objective(1.0, 1.0, ce_includes_score=includes)
    _, terms = loss(params, ROWS, objective, True)
    assert terms.score_count == 3
    nll, count = 0.0, 0
    for example in LONG:
      log_probs = jax.nn.log_softmax(
        params['hidden'][example.inputs] @ params['head']
      )
      picked = log_probs[np.arange(len(example.targets)), example.targets]
      mask = example.cot_mask | (example.score_mask & includes)
      nll, count = nll - picked[mask].sum(), count + mask.sum()
    np.testing.assert_allclose(terms.ce_sum, nll, rtol=1e-5)
    assert terms.ce_count == count
    ce_count, score_count = losses.target_counts(ROWS, objective)
    assert (ce_count, score_count) == (count, 3)


END = 1
SCORES = ((5,), (5, 7), (9,), (11,), (11, 13, 7))
TREE = token_tree.make_tree([(*score, END) for score in SCORES])


def make_example(number):
  """A prompt of one token, a CoT of some, the score and the end."""
  rng = np.random.default_rng(number)
  score, ratings = SCORES[number % 5], cases.RATINGS[number % 4]
  cot = rng.integers(14, cases.V, number % 3)
  tokens = np.int32([3, *cot, *score, END])
  at = np.arange(len(tokens) - 1)
  score_mask = (at >= len(cot)) & (at < len(cot) + len(score))
  return types.EncodedExample(
    inputs=tokens[:-1],
    targets=tokens[1:],
    cot_mask=~score_mask,
    score_mask=score_mask,
    score=float(np.mean(ratings)),
    target_probs=targets.grid_distribution(ratings, cases.GRID),
  )


def tree_terms(params, rows, objective):
  """LossTerms where a token's hidden state is the table's, at nodes too."""
  hidden = jnp.take(params['hidden'], rows.inputs, axis=0)
  starts = score_tree.start_indices(rows)
  first = jnp.take_along_axis(hidden, starts[..., None], axis=1)[:, :, None]
  after = params['hidden'][np.array(TREE.tokens)]
  after = jnp.broadcast_to(after, (*starts.shape, *after.shape))
  nodes = jnp.concatenate([first, after], axis=2)

  def project(x):
    return x @ params['head']

  return losses.loss_terms(
    project,
    hidden,
    rows,
    objective,
    losses.GridTokens((), cases.GRID),
    num_targets=99,
    chunk_size=7,
    grid_log_probs=score_tree.projected(project, nodes, TREE),
  )


def torch_parts(torch, params, example):
  """As cases.torch_parts, each score written out token by token."""
  picked, _ = cases.torch_parts(torch, params, example)
  context = int(example.inputs[np.flatnonzero(example.score_mask)[0]])
  of_scores = []
  for score in SCORES:
    total, last = 0.0, context
    for token in (*score, END):
      logits = params['hidden'][last] @ params['head']
      total = total + torch.log_softmax(logits, dim=-1)[token]
      last = token
    of_scores.append(total)
  return picked, torch.stack(of_scores)


@pytest.mark.parametrize(
  'name', ['cot_raft', 'crps', 'distribution_ce on grid']
)
def test_value_and_gradient_equal_pytorch(name):
  torch = pytest.importorskip('torch')
  objective, params = cases.OBJECTIVES[name], cases.make_params()
  examples = [make_example(i) for i in range(6)]
  theirs = cases.torch_params(torch, params)
  expected = cases.torch_loss(torch, theirs, examples, objective, torch_parts)
  expected.backward()
  wanted = {k: v.grad.numpy() for k, v in theirs.items()}
  run = jax.jit(cases.value_and_grad, static_argnums=(2, 3))
  a, b, c, d, e, f = examples
  for layout, num_micro in (
    ([[a], [b], [c], [d], [e], [f]], 1),  # Padded.
    ([[c, a, d], [], [f, b, e]], 1),  # Packed.
    ([[f, e], [a, b, d], [], [c]], 2),  # Accumulated, too.
  ):
    layout = [*layout, *([[]] * (6 - len(layout)))]
    rows = cases.micro_batches(cases.make_rows(layout, 18, 3), num_micro)
    found = run(params, rows, objective, tree_terms)
    cases.assert_close(found, (expected.item(), wanted), atol=1e-5)
