"""CE, RAFT and CoT-RAFT: hand-computed, and against PyTorch."""

import dataclasses
import functools

import hypothesis
from hypothesis import strategies
import jax
from jax import test_util
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives import cases
from tract_jax import numerics, types
from tract_jax.objectives import losses
from tract_jax.parallel import mapping
from tract_jax.parallel import mesh as mesh_lib

OBJECTIVES = cases.OBJECTIVES
EXAMPLES = cases.make_examples(6)
WITHOUT_TARGET = dataclasses.replace(
  EXAMPLES[3],
  cot_mask=np.zeros_like(EXAMPLES[3].cot_mask),
  score_mask=np.zeros_like(EXAMPLES[3].score_mask),
)
# A prompt of one token and no CoT: the score is the first target of its row.
BARE = types.EncodedExample(
  inputs=np.int32([3, 9]),
  targets=np.int32([9, 1]),
  cot_mask=np.array([False, True]),
  score_mask=np.array([True, False]),
  score=3.0,
  target_probs=np.float32([0, 0, 1, 0, 0]),
)
VALUE_AND_GRAD = jax.jit(
  cases.value_and_grad, static_argnames=('objective', 'terms_fn')
)
TERMS = jax.jit(cases.loss_terms, static_argnames=('objective', 'chunk_size'))


def make_batch(layout, num_micro=1):
  """[A, B, L] with 6 rows in all, of 32 tokens and up to four examples."""
  layout = [*layout, *([[]] * (6 - len(layout)))]
  return cases.micro_batches(cases.make_rows(layout, 32, 4), num_micro)


def padded():
  """One example a row."""
  return make_batch([[e] for e in EXAMPLES])


def packed():
  """Up to four examples a row, and rows of padding."""
  return make_batch([EXAMPLES[2:6], [], [EXAMPLES[1], EXAMPLES[0]]])


def accumulated():
  """Micro-batches of unequal numbers of tokens and scores."""
  return make_batch([EXAMPLES[:3], [], [EXAMPLES[5]], EXAMPLES[3:5]], 2)


LAYOUTS = {f.__name__: f for f in (padded, packed, accumulated)}


@pytest.mark.parametrize('name', OBJECTIVES)
def test_value_and_gradient_equal_pytorch(name):
  torch = pytest.importorskip('torch')
  objective, params = OBJECTIVES[name], cases.make_params()
  theirs = cases.torch_params(torch, params)
  expected = cases.torch_loss(torch, theirs, EXAMPLES, objective)
  expected.backward()
  wanted = {k: v.grad.numpy() for k, v in theirs.items()}
  for make in LAYOUTS.values():
    value, grads = VALUE_AND_GRAD(params, make(), objective=objective)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    cases.assert_close(grads, wanted, atol=1e-5)


def release_loss(torch, params, examples, lambda_value, device_batch):
  """One device's loss and gradients in the release, added up as it does.

  The cross-entropy of a micro-batch is divided by the tokens of all of them;
  its squared error is a mean over its rows, divided by their number again.
  """
  total = 0.0
  num_tokens = sum(int(e.cot_mask.sum()) for e in examples)
  for start in range(0, len(examples), device_batch):
    nll, squared = 0.0, []
    for example in examples[start : start + device_batch]:
      picked, log_probs = cases.torch_parts(torch, params, example)
      nll = nll - picked[torch.tensor(example.cot_mask)].sum()
      grid = torch.tensor(cases.GRID)
      squared.append(((log_probs.exp() * grid).sum() - example.score) ** 2)
    score_loss = torch.stack(squared).mean() / device_batch
    loss = nll / num_tokens + lambda_value * score_loss
    loss.backward()
    total += loss.item()
  return total, {name: value.grad.numpy() for name, value in params.items()}


@pytest.mark.parametrize(
  ('device_batch', 'accumulation', 'weight'), [(8, 1, 1 / 8), (4, 2, 1 / 2)]
)
def test_release_scale_is_what_lambda_meant_there(
  device_batch, accumulation, weight
):
  torch = pytest.importorskip('torch')
  examples, params = cases.make_examples(8), cases.make_params()
  expected = release_loss(
    torch, cases.torch_params(torch, params), examples, 1.6, device_batch
  )
  scaled = losses.score_weight('release', 1.6, device_batch, accumulation)
  assert scaled == pytest.approx(1.6 * weight)
  rows = cases.micro_batches(cases.make_rows([[e] for e in examples], 12))
  objective = losses.Objective(1.0, scaled, ce_includes_score=False)
  found = VALUE_AND_GRAD(params, rows, objective=objective)
  cases.assert_close(found, expected, atol=1e-5)


def test_mean_scale_is_lambda_whatever_the_batch():
  assert losses.score_weight('mean', 1.6, 8, 1) == 1.6
  assert losses.score_weight('mean', 1.6, 4, 2) == 1.6
  with pytest.raises(ValueError, match="'sum' is not one of"):
    losses.score_weight('sum', 1.6, 8, 1)


def test_cot_raft_by_hand():
  # Uniform logits over 32 tokens: CE is log 32; the expected score 15 / 32.
  params = jax.tree.map(jnp.zeros_like, cases.make_params())
  squared = np.mean([(15 / 32 - e.score) ** 2 for e in EXAMPLES])
  rows, objective = packed(), OBJECTIVES['cot_raft']
  value, _ = VALUE_AND_GRAD(params, rows, objective=objective)
  np.testing.assert_allclose(value, np.log(32) + 0.7 * squared, rtol=1e-6)


def test_terms_count_tokens_scores_and_mass():
  params = jax.tree.map(jnp.zeros_like, cases.make_params())
  rows = cases.make_rows([EXAMPLES[:2], [EXAMPLES[2]]], 24)
  terms = TERMS(params, rows, objective=OBJECTIVES['cot_raft'])
  assert terms.score_count == 3
  assert terms.ce_count == rows.cot_mask.sum()
  np.testing.assert_allclose(terms.grid_mass_sum, 3 * 5 / 32, rtol=1e-6)
  penalty = 3 * np.log(32 / 5)
  np.testing.assert_allclose(terms.off_grid_sum, penalty, rtol=1e-6)
  assert terms.score_loss_sum == terms.score_sq_sum


def test_each_example_has_one_score_and_padding_has_none():
  params, objective = cases.make_params(), OBJECTIVES['score token in CE']
  layout = [[BARE, *EXAMPLES[:2]], [], [WITHOUT_TARGET, BARE], [EXAMPLES[2]]]
  rows = cases.make_rows(layout, 32)
  num_tokens = 2 * 2 + sum(
    int((e.cot_mask | e.score_mask).sum()) for e in EXAMPLES[:3]
  )
  assert losses.target_counts(rows, objective) == (num_tokens, 5)
  # Chunks that end past the row, and examples alone.
  terms = TERMS(params, rows, objective=objective, chunk_size=11)
  assert (terms.ce_count, terms.score_count) == (num_tokens, 5)
  alone = cases.make_rows([[e] for e in (BARE, BARE, *EXAMPLES[:3])], 7)
  cases.assert_close(terms, TERMS(params, alone, objective=objective))


@pytest.mark.parametrize('name', ['cot_raft', 'crps', 'distribution_ce'])
@pytest.mark.parametrize(('num_targets', 'chunk_size'), [(29, 7), (99, 11)])
def test_chunks_change_nothing(name, num_targets, chunk_size):
  params, rows = cases.make_params(), accumulated()
  in_chunks = functools.partial(
    cases.loss_terms, num_targets=num_targets, chunk_size=chunk_size
  )
  objective = OBJECTIVES[name]
  whole = VALUE_AND_GRAD(params, rows, objective=objective)
  parts = VALUE_AND_GRAD(params, rows, objective=objective, terms_fn=in_chunks)
  cases.assert_close(parts, whole)


@functools.cache
def mapped_terms(mode, objective):
  """loss_terms over eight devices, or on one."""
  if mode == 'single':
    return cases.loss_terms
  mapped = mapping.map_rows(
    functools.partial(cases.loss_terms, objective=objective),
    mesh_lib.make_mesh(*((2, 4, 1) if mode == 'jit' else (8, 1, 1))),
    outputs='sums',
    mode=mode,
  )
  return lambda params, rows, objective: mapped(params, rows)


@functools.cache
def whole(name):
  rows = padded()
  return VALUE_AND_GRAD(cases.make_params(), rows, objective=OBJECTIVES[name])


@strategies.composite
def layouts(draw):
  """The examples anywhere in 16 rows, up to three in one, in any order.

  One without a target may be among them.
  """
  order = draw(strategies.permutations(EXAMPLES))
  if draw(strategies.booleans()):
    order = [WITHOUT_TARGET, *order]
  layout = [[] for _ in range(16)]
  for example in order:
    room = [i for i, row in enumerate(layout) if len(row) < 3]
    layout[draw(strategies.sampled_from(room))].append(example)
  return layout


@pytest.mark.parametrize('name', ['cot_raft', 'distribution_ce on grid'])
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  layout=layouts(),
  num_micro=strategies.sampled_from([1, 2, 8]),
  mode=strategies.sampled_from(['single', 'jit', 'pmap']),
)
def test_any_split_gives_the_same_loss_and_gradient(
  name, layout, num_micro, mode
):
  # Eight devices need a row each.
  num_micro = num_micro if mode == 'single' else min(num_micro, 2)
  rows = cases.micro_batches(cases.make_rows(layout, 27, 3), num_micro)
  found = VALUE_AND_GRAD(
    cases.make_params(),
    rows,
    objective=OBJECTIVES[name],
    terms_fn=mapped_terms(mode, OBJECTIVES[name]),
  )
  cases.assert_close(found, whole(name))


def test_terms_add_up_over_any_split():
  def terms(layout):
    rows = cases.make_rows(layout, 32, 4)
    return TERMS(cases.make_params(), rows, objective=OBJECTIVES['off grid'])

  parts = numerics.tree_add(
    terms([EXAMPLES[:1], []]), terms([EXAMPLES[1:3], EXAMPLES[3:]])
  )
  cases.assert_close(parts, terms([EXAMPLES[:2], EXAMPLES[2:]]))


@pytest.mark.parametrize('name', OBJECTIVES)
def test_gradients_agree_with_finite_differences(name):
  params, objective = cases.make_params(scale=0.3), OBJECTIVES[name]
  rows = cases.make_rows([EXAMPLES[:4], [], [EXAMPLES[5], EXAMPLES[4]]], 32)
  counts = losses.target_counts(rows, objective)

  @jax.jit
  def loss(params):
    terms = cases.loss_terms(params, rows, objective)
    return losses.objective_loss(terms, objective, *counts)

  test_util.check_grads(loss, (params,), order=1, modes=['rev'], rtol=2e-2)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_huge_bfloat16_logits_stay_finite(name):
  objective, rows = OBJECTIVES[name], cases.make_rows([[EXAMPLES[2]]], 12)

  @jax.jit
  @jax.value_and_grad
  def value_and_grad(logits):
    terms = losses.loss_terms(
      lambda h: h,
      logits,
      rows,
      objective,
      cases.TARGET,
      num_targets=12,
      chunk_size=12,
    )
    return losses.objective_loss(terms, objective, 1.0, 1.0)

  for score_logit in (1e4, -1e4):
    logits = np.full((1, 12, cases.V), -score_logit, np.float32)
    logits[..., list(cases.SCORE_IDS)[1:4]] = score_logit
    found, grad = value_and_grad(jnp.asarray(logits, jnp.bfloat16))
    assert np.isfinite(found)
    assert np.isfinite(np.asarray(grad, np.float32)).all()


def test_lambda_zero_is_cross_entropy():
  params, rows = cases.make_params(), packed()
  zero = losses.Objective(1.0, 0.0, True, 'crps')
  found = VALUE_AND_GRAD(params, rows, objective=zero)
  expected = VALUE_AND_GRAD(params, rows, objective=OBJECTIVES['ce'])
  cases.assert_close(found, expected, 0, 0)


def test_example_without_a_distribution_is_not_silent():
  # Two examples in a row, and the distribution of one: no finite number.
  rows = cases.make_rows([EXAMPLES[:2]], 24)
  short = types.Batch(
    **{
      **{f: getattr(rows, f) for f in rows.__dataclass_fields__},
      'target_probs': rows.target_probs[:, :1],
    }
  )
  terms = TERMS(cases.make_params(), short, objective=OBJECTIVES['crps'])
  assert not np.isfinite(terms.score_loss_sum)
