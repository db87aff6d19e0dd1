"""The gap between annotator's and own CoTs on training inputs.

A model that trusts the CoT's words more than they deserve has a small error on
its training inputs with the annotator's CoTs and a large one with its own
(TRACT, arXiv:2503.04381, section 5: .12 and .63 after stage 1, .45 and .45
after stage 2).
"""

from collections.abc import Sequence
from typing import Any

from etils import epath
import numpy as np

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.evaluation import metrics
from tract_jax.objectives import predictors
from tract_jax.pipeline import progress, sample

PURPOSE = 'cot_gap'


def measure(
  sampler: sample.Sampler,
  params: types.PyTree,
  examples: Sequence[types.Example],
  seed: int,
) -> dict[str, Any]:
  """RMSE of RAIL on training inputs with annotator's and with own CoTs.

  Args:
    sampler: of the run.
    params: the trained model.
    examples: training rows with an annotator CoT, at least one.
    seed: of the run.

  Returns:
    num_examples, rmse_annotator_cot and rmse_self_cot, and num_invalid: rows
    without a score distribution by either, which count as the grid's midpoint.
  """
  setup = sampler.setup
  given = sampler.given(params, examples, with_cot=True)
  own = sampler.cots(params, examples, 1, seed=seed, purpose=PURPOSE)
  return {
    'num_examples': len(examples),
    'rmse_annotator_cot': _rmse(setup, examples, given),
    'rmse_self_cot': _rmse(setup, examples, own),
    'num_invalid': {
      'annotator_cot': sum(not s.is_usable for s in given),
      'self_cot': sum(not s.is_usable for s in own),
    },
  }


def is_done(folder: epath.Path, fields: dict[str, Any]) -> bool:
  """Whether the gap is measured, by its manifest."""
  return manifest.matches(folder, 'cot_gap', fields)


def write(folder: epath.Path, fields, results: dict[str, Any], label) -> None:
  """Writes the figures into the manifest, and a line for the reader."""
  manifest.write_manifest(folder, 'cot_gap', fields, results=results)
  invalid = results['num_invalid']
  progress.say(
    f'{label}: RMSE on {results["num_examples"]} training inputs: '
    f'{results["rmse_annotator_cot"]:.3f} with annotator CoTs '
    f'({invalid["annotator_cot"]} invalid), {results["rmse_self_cot"]:.3f} '
    f'with its own ({invalid["self_cot"]} invalid)'
  )


def read(
  folder: epath.Path, method: str, stage: int, seed: int
) -> metrics.CotGap:
  """The figures of a finished measurement, as the report has them."""
  results = manifest.read_results(folder)
  return metrics.CotGap(
    method=method,
    stage=stage,
    seed=seed,
    num_examples=results['num_examples'],
    rmse_annotator_cot=results['rmse_annotator_cot'],
    rmse_self_cot=results['rmse_self_cot'],
  )


def _rmse(setup, examples, samples) -> float:
  """Root mean squared error of RAIL; an invalid row counts as the midpoint."""
  grid = np.array(setup.grid.values, np.float32)
  probs = np.stack([s.score_probs for s in samples])
  predicted = np.asarray(predictors.rail(probs, grid))
  middle = (grid[0] + grid[-1]) / 2
  predicted = np.where(np.isfinite(predicted), predicted, middle)
  scores = np.array([e.score for e in examples], np.float64)
  return float(np.sqrt(np.mean(np.square(predicted - scores))))
