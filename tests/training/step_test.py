"""One update: accumulation, guards, and agreement with PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tract_jax import types
from tract_jax.objectives import losses
from tract_jax.training import optimizer as optimizer_lib
from tract_jax.training import state as state_lib
from tract_jax.training import step as step_lib

B, L, D, V = 8, 10, 8, 16
OBJECTIVE = losses.Objective(1.0, 1.0, ce_includes_score=False)
TARGET = losses.GridTokens((1, 2, 3), (1.0, 2.0, 3.0))


def make_rows(seed=0):
  """Rows whose numbers of targets differ; the last has none."""
  rng = np.random.default_rng(seed)
  cot_mask = np.zeros((B, L), bool)
  score_mask = np.zeros((B, L), bool)
  for row in range(B - 1):
    cot_mask[row, 2 : 4 + row % 5] = True
    score_mask[row, 9] = True
  tokens = rng.integers(0, V, (B, L)).astype(np.int32)
  return types.Batch(
    inputs=tokens,
    targets=tokens,
    positions=np.tile(np.arange(L, dtype=np.int32), (B, 1)),
    segment_ids=np.ones((B, L), np.int32),
    cot_mask=cot_mask,
    score_mask=score_mask,
    score_values=np.where(score_mask, 2.5, 0).astype(np.float32),
    target_probs=np.tile(np.float32([0, 0.5, 0.5]), (B, 1, 1)),
  )


def init_params(scale=0.7):
  keys = jax.random.split(jax.random.key(0))
  return {
    'embed': scale * jax.random.normal(keys[0], (V, D)),
    'head': scale * jax.random.normal(keys[1], (D, V)),
  }


def loss_fn(params, frozen, rows, objective=OBJECTIVE):
  del frozen
  hidden = jnp.take(params['embed'], rows.inputs, axis=0)
  return losses.loss_terms(
    lambda h: h @ params['head'],
    hidden,
    rows,
    objective,
    TARGET,
    num_targets=8,
    chunk_size=8,
  )


def split_rows(rows, num_micro):
  return jax.tree.map(
    lambda x: jnp.asarray(x).reshape(num_micro, -1, *x.shape[1:]), rows
  )


def make_step(lr=1e-2, num_steps=10, objective=OBJECTIVE, config=None):
  config = config or optimizer_lib.OptimizerConfig(lr, warmup_fraction=0.0)
  optimizer = optimizer_lib.make_optimizer(config, num_steps)
  schedule = optimizer_lib.make_schedule(config, num_steps)
  loss = functools.partial(loss_fn, objective=objective)
  step = step_lib.make_step(loss, objective, optimizer, schedule)
  return jax.jit(step), state_lib.init_state(init_params(), optimizer)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
    actual,
    expected,
  )


@pytest.mark.parametrize('num_micro', [2, 4, 8])
def test_accumulated_gradients_equal_whole_ones(num_micro):
  gradients = functools.partial(
    step_lib.gradients, loss_fn, init_params(), None, objective=OBJECTIVE
  )
  whole = gradients(batch=split_rows(make_rows(), 1))
  parts = gradients(batch=split_rows(make_rows(), num_micro))
  assert_close(parts, whole)


def test_update_equals_pytorch_adamw_with_clipping():
  torch = pytest.importorskip('torch')
  numbers = {'b1': 0.6, 'b2': 0.8, 'eps': 0.1, 'weight_decay': 0.3}
  config = optimizer_lib.OptimizerConfig(
    lr=1e-2, warmup_fraction=0.0, clip_norm=0.5, **numbers
  )
  step, state = make_step(config=config)
  theirs = {
    k: torch.nn.Parameter(torch.tensor(np.array(v)))
    for k, v in init_params().items()
  }
  adamw = torch.optim.AdamW(
    theirs.values(), betas=(0.6, 0.8), eps=0.1, weight_decay=0.3
  )
  # Of the first update scale and moments say nothing.
  for number in range(3):
    grads, _ = step_lib.gradients(
      loss_fn, state.params, None, split_rows(make_rows(), 1), OBJECTIVE
    )
    for k, parameter in theirs.items():
      parameter.grad = torch.tensor(np.array(grads[k]))
    torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
    schedule = optimizer_lib.make_schedule(config, 10)
    adamw.param_groups[0]['lr'] = float(schedule(number))
    adamw.step()
    state, metrics = step(state, None, split_rows(make_rows(), 2))
    assert metrics.grad_norm > 0.5
  assert_close(
    state.params, {k: v.detach().numpy() for k, v in theirs.items()}, 1e-4
  )


def test_metrics_are_means_over_the_global_batch():
  step, state = make_step()
  rows = make_rows()
  _, metrics = step(state, None, split_rows(rows, 4))
  hidden = np.asarray(init_params()['embed'])[rows.inputs]
  logits = hidden @ np.asarray(init_params()['head'])
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  picked = np.take_along_axis(log_probs, rows.targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(
    metrics.ce, -picked[rows.cot_mask].mean(), rtol=1e-5
  )
  probs = np.exp(log_probs[rows.score_mask][:, 1:4])
  errors = probs @ np.array([1.0, 2.0, 3.0]) - 2.5
  np.testing.assert_allclose(metrics.score_mse, (errors**2).mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics.grid_mass, probs.sum(-1).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    metrics.loss, metrics.ce + metrics.score_mse, rtol=1e-6
  )
  assert metrics.score_loss == metrics.score_mse
  off_grid = -np.log(probs.sum(-1)).mean()
  np.testing.assert_allclose(metrics.off_grid, off_grid, rtol=1e-5)
  assert metrics.num_tokens == B * L


def test_parts_add_up_to_the_loss():
  objective = losses.Objective(
    2.0, 3.0, False, score_loss='crps', off_grid_weight=0.5
  )
  step, state = make_step(objective=objective)
  _, metrics = step(state, None, split_rows(make_rows(), 4))
  parts = (metrics.ce, metrics.score_loss, metrics.off_grid)
  assert all(part > 0 for part in parts)
  np.testing.assert_allclose(
    metrics.loss, np.dot([2.0, 3.0, 0.5], parts), rtol=1e-6
  )
  # The figure that all objectives have in common is another one.
  assert abs(metrics.score_mse - metrics.score_loss) > 0.01


def test_non_finite_update_is_skipped_and_counted():
  step, state = make_step()
  rows = make_rows()
  poisoned = np.array(rows.score_values)
  poisoned[0, 9] = np.nan
  bad = types.Batch(
    **{
      f: poisoned if f == 'score_values' else getattr(rows, f)
      for f in rows.__dataclass_fields__
    }
  )
  after, metrics = step(state, None, split_rows(bad, 2))
  assert not metrics.finite
  assert after.step == 1
  assert_close(after.params, state.params, 0, 0)
  assert_close(after.opt_state, state.opt_state, 0, 0)
  first_rate = metrics.lr
  after, metrics = step(after, None, split_rows(rows, 2))
  assert metrics.finite
  # The optimizer has made no update yet: its rate is still the first one.
  assert metrics.lr == first_rate
  _, metrics = step(after, None, split_rows(rows, 2))
  assert metrics.lr < first_rate
  assert optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))


def test_golden_step():
  step, state = make_step()
  for _ in range(3):
    state, metrics = step(state, None, split_rows(make_rows(), 2))
  np.testing.assert_allclose(
    metrics.loss,
    GOLDEN_LOSS,
    rtol=1e-4,
    err_msg="may change only with the formulas or the optimiser's numbers",
  )


GOLDEN_LOSS = 9.721708


@pytest.mark.usefixtures('compiled_anew')
def test_moments_are_written_in_place():
  step, state = make_step()
  compiled = (
    jax.jit(step, donate_argnums=0)
    .lower(state, {}, split_rows(make_rows(), 1))
    .compile()
  )
  # Every array of the state is taken over by its successor, without a copy.
  shapes = {f'f32[{V},{D}]', f'f32[{D},{V}]'}
  copied = [
    line.strip()
    for line in compiled.as_text().splitlines()
    if ' copy(' in line and any(shape in line for shape in shapes)
  ]
  assert not copied
