"""The losses where a score is several tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.objectives import cases
from tract_jax.objectives import losses, score_tree

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
    target = losses.ScoreTarget((), cases.GRID)
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
