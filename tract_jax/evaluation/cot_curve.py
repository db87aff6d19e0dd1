"""How agreement grows with the number of CoTs per row.

In: what a system says from the first n CoTs, for each n: one sampling run of C
CoTs serves all. Out: a `CotCurvePoint` for each.
"""

import dataclasses

from tract_jax.evaluation import figures, metrics


@dataclasses.dataclass(frozen=True)
class CotCurvePoint:
  """Figures of a system that averages n CoTs.

  Attributes:
    method, predictor, benchmark, seed: whose.
    num_cots: n.
    pearson, rmse: as in the rows of metrics.json.
    reason: why there is no correlation; else None.
  """

  method: str
  predictor: str
  benchmark: str
  seed: int
  num_cots: int
  pearson: float | None
  rmse: float | None
  reason: str | None


def point(system: metrics.SystemPredictions, fallback: float) -> CotCurvePoint:
  """The point of one system.

  Args:
    system: what it predicts from its CoTs.
    fallback: scored in place of an invalid prediction.

  Returns:
    Its figures.
  """
  filled, _ = metrics.fill_invalid(system.predictions, fallback)
  r = figures.pearson(system.rated, filled)
  return CotCurvePoint(
    method=system.method,
    predictor=system.predictor,
    benchmark=system.benchmark,
    seed=system.seed,
    num_cots=system.num_cots,
    pearson=r.value,
    rmse=figures.rmse(system.rated, filled).value,
    reason=r.reason,
  )


def sort_key(point: CotCurvePoint) -> tuple[str, str, str, int, int]:
  """What puts them in order: the system, the benchmark, the seed, n."""
  p = point
  return p.method, p.predictor, p.benchmark, p.seed, p.num_cots
