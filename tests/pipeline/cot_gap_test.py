"""The gap between annotator's and own CoTs: invalid rows are counted."""

import types as python_types

import numpy as np
import pytest

from tract_jax import types
from tract_jax.pipeline import cot_gap
from tract_jax.text import prompts

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])


def sample(score):
  """A CoT after which a score is sure; None: it came to no end."""
  probs = np.full(5, np.nan, np.float32)
  if score:
    probs = np.eye(5, dtype=np.float32)[score - 1]
  reason = 'marker' if score else 'non_finite'
  return types.CotSample('a', 0, np.zeros(0, np.int32), 0, reason, probs, -1)


def test_invalid_rows_are_the_midpoint_and_counted(tmp_path, capsys):
  examples = [types.Example(str(s), 'p', float(s)) for s in (1, 5, 4)]
  sampler = python_types.SimpleNamespace(
    setup=python_types.SimpleNamespace(grid=GRID),
    given=lambda *args, with_cot: [sample(1), sample(5), sample(3)],
    cots=lambda *args, seed, purpose: [sample(1), sample(None), sample(None)],
  )
  results = cot_gap.measure(sampler, None, examples, seed=0)
  assert results['rmse_annotator_cot'] == pytest.approx((1 / 3) ** 0.5)
  # Errors 0, 3 - 5 and 3 - 4.
  assert results['rmse_self_cot'] == pytest.approx((5 / 3) ** 0.5)
  assert results['num_invalid'] == {'annotator_cot': 0, 'self_cot': 2}
  cot_gap.write(tmp_path, {}, results, 'stage')
  assert 'with its own (2 invalid)' in capsys.readouterr().out
  gap = cot_gap.read(tmp_path, 'tract', 1, 0)
  assert (gap.num_examples, gap.gap) == (
    3,
    results['rmse_self_cot'] - results['rmse_annotator_cot'],
  )
