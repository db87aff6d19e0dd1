"""Made-up systems, and reports of them."""

import numpy as np

from tract_jax.evaluation import metrics, resampling
from tract_jax.evaluation import report as report_lib

BOOTSTRAP = resampling.Bootstrap(num_resamples=100)
NOISE = {'tract': 0.5, 'raft': 1.0, 'ce': 2.0, 'zero_shot': None}


def system(method, benchmark, seed, predictor='rail', num_cots=1, n=40):
  """Noisy predictions of a made-up benchmark; constant for zero_shot."""
  scores = np.random.default_rng(len(benchmark)).integers(1, 6, n).astype(float)
  rng = np.random.default_rng([seed, num_cots, *method.encode()])
  predictions = np.full(n, 3.0)
  if (noise := NOISE.get(method, 1.0)) is not None:
    predictions = scores + noise * rng.normal(size=n)
  return metrics.SystemPredictions(
    method=method,
    predictor=predictor,
    num_cots=num_cots,
    benchmark=benchmark,
    seed=seed,
    example_ids=tuple(f'row{i}' for i in range(n)),
    scores=scores,
    predictions=predictions,
    grid_mass=np.full(n, 0.75),
    finish_reasons={'marker': n},
  )


def systems(
  methods=('tract', 'raft', 'zero_shot'),
  benchmarks=('flask', 'mt_bench'),
  seeds=(0, 1),
):
  """Every method on every benchmark with every seed."""
  return [system(m, b, s) for m in methods for b in benchmarks for s in seeds]


def report(systems_=None, **changes):
  """The report of some systems, or of all."""
  arguments = {
    'config': {'name': 'demo', 'seeds': [0, 1]},
    'fallback': 3.0,
    'bootstrap': BOOTSTRAP,
  }
  return report_lib.make_report(
    systems() if systems_ is None else systems_, **(arguments | changes)
  )
