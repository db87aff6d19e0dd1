"""The loss of training and its gradient are the same with the splash kernel."""

import functools

import jax
import numpy as np
import pytest

from tests.pipeline import packed_rows_test as rows
from tract_jax.models import placement, splash_attention, transformer


@pytest.mark.parametrize(
  ('model', 'remat', 'scores'),
  [('full', 'none', 'one token'), ('window', 'inputs', 'several tokens')],
)
def test_loss_and_gradient_equal_those_of_plain_attention(model, remat, scores):
  examples = [rows.make_example(i, scores) for i in range(rows.NUM_EXAMPLES)]
  a, b, c, d = examples
  batch = rows.make_batch([[c, a, d], [], [b]])
  expected = rows.make_gradients(model, scores, 'squared_error')(batch)
  fns = transformer.make_model(
    rows.MODELS[model],
    remat=remat,
    placement=placement.Placement(
      functools.partial(splash_attention.causal_attention, interpret=True)
    ),
  )
  _, params = rows.make_model(model)
  run = rows.gradients_of(fns, params, scores, 'squared_error')
  assert 'pallas_call' in str(jax.make_jaxpr(run)(batch))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
    run(batch),
    expected,
  )
