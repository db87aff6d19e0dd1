"""The gap between annotator's and own CoTs on training inputs.

A model that trusts the CoT's words more than they deserve has a small error on
its training inputs with the annotator's CoTs and a large one with its own
(TRACT, arXiv:2503.04381, section 5: .12 and .63 after stage 1, .45 and .45
after stage 2). Beside the errors stands how likely the model finds the words of
either kind, as perplexity.
"""

from collections.abc import Sequence
import math
from typing import Any

from etils import epath
import numpy as np

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.evaluation import metrics
from tract_jax.objectives import predictors
from tract_jax.pipeline import progress, sample

FOLDER = PURPOSE = 'cot_gap'
KINDS = ('annotator_cot', 'self_cot')
# exp of more is no float.
_MOST_NATS = 700.0


def measure(
  sampler: sample.Sampler,
  params: types.PyTree,
  examples: Sequence[types.Example],
  seed: int,
) -> dict[str, Any]:
  """RMSE of RAIL, and perplexity, of annotator's and of own CoTs.

  Args:
    sampler: of the run.
    params: the trained model.
    examples: training rows with an annotator CoT, at least one.
    seed: of the run.

  Returns:
    num_examples, rmse_annotator_cot and rmse_self_cot, and num_invalid: rows
    without a score distribution by either, which count as the grid's midpoint;
    perplexity_annotator_cot and perplexity_self_cot of the other rows' CoTs,
    None where there are none or it is not finite.
  """
  setup = sampler.setup
  given = sampler.given(params, examples, with_cot=True)
  own = sampler.cots(params, examples, 1, seed=seed, purpose=PURPOSE)
  # An own CoT that was given up has no score to stand before.
  kept = [
    (e, s.tokens) for e, s in zip(examples, own, strict=True) if s.is_usable
  ]
  rated = [e for e, s in zip(examples, given, strict=True) if s.is_usable]
  of_own = [e for e, _ in kept], [tokens for _, tokens in kept]
  return {
    'num_examples': len(examples),
    'rmse_annotator_cot': _rmse(setup, examples, given),
    'rmse_self_cot': _rmse(setup, examples, own),
    'num_invalid': {
      'annotator_cot': sum(not s.is_usable for s in given),
      'self_cot': sum(not s.is_usable for s in own),
    },
    'perplexity_annotator_cot': _perplexity(
      sampler.cross_entropy(params, rated)
    ),
    'perplexity_self_cot': _perplexity(sampler.cross_entropy(params, *of_own)),
  }


def is_done(
  folder: epath.Path, fields: dict[str, Any], num_examples: int
) -> bool:
  """Whether this gap is measured, on so many rows; else it is, anew."""
  return (
    manifest.is_current(folder, 'cot_gap', fields)
    and manifest.read_results(folder)['num_examples'] == num_examples
  )


def write(folder: epath.Path, fields, results: dict[str, Any], label) -> None:
  """Writes the figures into the manifest, and a line for the reader."""
  manifest.write_manifest(folder, 'cot_gap', fields, results=results)
  invalid = results['num_invalid']
  perplexities = [
    'none'
    if results[f'perplexity_{kind}'] is None
    else f'{results[f"perplexity_{kind}"]:.3f}'
    for kind in KINDS
  ]
  progress.say(
    f'{label}: RMSE on {results["num_examples"]} training inputs: '
    f'{results["rmse_annotator_cot"]:.3f} with annotator CoTs '
    f'({invalid["annotator_cot"]} invalid), {results["rmse_self_cot"]:.3f} '
    f'with its own ({invalid["self_cot"]} invalid); perplexity of these CoTs '
    f'{" and ".join(perplexities)}'
  )


def read(
  folder: epath.Path, method: str, stage: int, seed: int
) -> metrics.CotGap:
  """The figures of a finished measurement, as the report has them."""
  results = manifest.read_results(folder)
  names = [f'perplexity_{kind}' for kind in KINDS]
  # Folders of earlier versions have none.
  perplexities = {name: results.get(name) for name in names}
  lost = [name for name, value in perplexities.items() if value is None]
  reason = 'no usable CoT, or not finite' if names[0] in results else ''
  return metrics.CotGap(
    method=method,
    stage=stage,
    seed=seed,
    num_examples=results['num_examples'],
    rmse_annotator_cot=results['rmse_annotator_cot'],
    rmse_self_cot=results['rmse_self_cot'],
    **perplexities,
    reason=f'{", ".join(lost)}: {reason or "not measured"}' if lost else None,
  )


def _perplexity(cross_entropy: float | None) -> float | None:
  """Of a mean in nats per token; None where exp of it is no number."""
  if cross_entropy is None or cross_entropy > _MOST_NATS:
    return None
  return math.exp(cross_entropy)


def _rmse(setup, examples, samples) -> float:
  """Root mean squared error of RAIL; an invalid row counts as the midpoint."""
  grid = np.array(setup.grid.values, np.float32)
  probs = np.stack([s.score_probs for s in samples])
  predicted = np.asarray(predictors.rail(probs, grid))
  predicted = np.where(np.isfinite(predicted), predicted, setup.grid.midpoint)
  scores = np.array([e.score for e in examples], np.float64)
  return float(np.sqrt(np.mean(np.square(predicted - scores))))
