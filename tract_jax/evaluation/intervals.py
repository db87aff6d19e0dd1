"""Bootstrap intervals of Pearson's r, of its mean, and of differences.

In: resamples of systems on benchmarks. Out: percentile intervals.

Rows and, where there are several, seeds are resampled, each with replacement
(crossed: one draw of seeds serves every row, one draw of rows every seed).
Noise of single predictions is then counted twice, which errs to the wide side.
Of the spread between seeds one seed says nothing, and few say little: where it
dominates, an interval from S seeds lies between the lowest and the highest, and
covers the mean in about 1 - 2^(1 - S) of cases at most (.5 for 2, .75 for 3).

  Axes: R resamples.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from tract_jax.evaluation import metrics, resampling

# Resamples without a correlation are left out; an interval of too few others
# would describe another population.
_MIN_USABLE = 0.9

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean with its interval; `reason` says why either is None."""

  mean: float | None
  ci: Interval | None
  reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
  """Mean Pearson's r of system `a` minus that of `b`, on the same rows.

  Attributes:
    a, b: the systems.
    mean: over seeds and, with equal weight, benchmarks.
    ci: its interval.
    benchmarks: those that both were judged on.
    seeds: those that both have on each of them.
    num_seeds, num_rows: how many of them; rows over all benchmarks.
    excludes_zero: whether the interval does; None without one.
    reason: why there is no mean or interval; else None.
  """

  a: metrics.System
  b: metrics.System
  mean: float | None
  ci: Interval | None
  benchmarks: tuple[str, ...]
  seeds: tuple[int, ...]
  num_seeds: int
  num_rows: int
  excludes_zero: bool | None
  reason: str | None


@dataclasses.dataclass(frozen=True)
class Combined:
  """Figures of a system over seeds, on one benchmark or over all.

  Attributes:
    method, predictor, num_cots: the system.
    benchmark: its name, or "mean": all with scores, weighing the same.
    seeds, num_seeds: of the runs; for "mean", those on every benchmark.
    num_examples, num_invalid: predictions over all these, and how many of
      them were scored as the fallback.
    pearson, spearman, kendall, rmse, mae, grid_mass: means; None where one of
      the figures is.
    pearson_ci: bootstrap interval over rows and seeds.
    reason: why figures above are None; else None.
  """

  method: str
  predictor: str
  num_cots: int
  benchmark: str
  seeds: tuple[int, ...]
  num_seeds: int
  num_examples: int
  num_invalid: int
  pearson: float | None
  pearson_ci: Interval | None
  spearman: float | None
  kendall: float | None
  rmse: float | None
  mae: float | None
  grid_mass: float | None
  reason: str | None

  @property
  def system(self) -> metrics.System:
    """Method, predictor and number of CoTs."""
    return metrics.System(self.method, self.predictor, self.num_cots)


def mean_pearson(
  samples: Sequence[Sequence[resampling.PearsonDraws]],
  bootstrap: resampling.Bootstrap,
) -> Estimate:
  """Mean Pearson's r over seeds and benchmarks, with its interval.

  Args:
    samples: [benchmarks][seeds]; the same seeds for each benchmark, in the
      same order, and the same rows for each seed.
    bootstrap: as given to `resampling.pearson_draws`.

  Returns:
    The mean, benchmarks weighing the same. None if one of its correlations
    does not exist: a mean over the others would flatter.
  """
  reason = _unpaired_reason(samples) or _missing_reason(samples)
  if reason:
    return Estimate(None, None, reason)
  draws = np.array([[sample.draws for sample in line] for line in samples])
  ci, reason = _interval(_mean_draws(draws, bootstrap), bootstrap)
  return Estimate(_mean_r(samples), ci, reason)


def combine(
  system: metrics.System,
  benchmark: str,
  rows: Sequence[metrics.MetricRow],
  samples: Sequence[Sequence[resampling.PearsonDraws]],
  bootstrap: resampling.Bootstrap,
) -> Combined:
  """All figures of a system, as means over seeds and benchmarks.

  Args:
    system: what was judged.
    benchmark: its name, or "mean".
    rows: one for each benchmark and seed, in any order.
    samples: [benchmarks][seeds], as for `mean_pearson`.
    bootstrap: as given to `resampling.pearson_draws`.

  Returns:
    The means.
  """
  estimate = mean_pearson(samples, bootstrap)
  seeds = tuple(sorted({row.seed for row in rows}))
  reasons = {estimate.reason, *(row.reason for row in rows)}
  return Combined(
    **dataclasses.asdict(system),
    benchmark=benchmark,
    seeds=seeds,
    num_seeds=len(seeds),
    num_examples=sum(row.num_examples for row in rows),
    num_invalid=sum(row.num_invalid for row in rows),
    pearson=estimate.mean,
    pearson_ci=estimate.ci,
    spearman=metrics.mean_or_none([row.spearman for row in rows]),
    kendall=metrics.mean_or_none([row.kendall for row in rows]),
    rmse=metrics.mean_or_none([row.rmse for row in rows]),
    mae=metrics.mean_or_none([row.mae for row in rows]),
    grid_mass=metrics.mean_or_none([row.grid_mass for row in rows]),
    reason='; '.join(sorted(filter(None, reasons))) or None,
  )


def pearson_difference(
  a: metrics.System,
  b: metrics.System,
  seeds: Sequence[int],
  samples_a: Sequence[Sequence[resampling.PearsonDraws]],
  samples_b: Sequence[Sequence[resampling.PearsonDraws]],
  bootstrap: resampling.Bootstrap,
) -> Difference:
  """Difference of the mean Pearson's r of two systems, paired by row and seed.

  Every resample holds the same rows and the same seeds for both systems, so
  what is hard for both cancels.

  Args:
    a, b: the systems; the difference is a's mean minus b's.
    seeds: [seeds], the runs' seeds.
    samples_a, samples_b: [benchmarks][seeds], aligned with each other.
    bootstrap: as given to `resampling.pearson_draws`.

  Returns:
    The difference; its mean is None if one of the correlations does not exist
    or the systems were judged on different rows.
  """
  mean, ci = None, None
  both = [[*x, *y] for x, y in zip(samples_a, samples_b, strict=True)]
  reason = _unpaired_reason(both) or _missing_reason(both)
  if not reason:
    draws = []
    for x, y in zip(samples_a, samples_b, strict=True):
      pairs = list(zip(x, y, strict=True))
      draws.append([p.draws - q.draws for p, q in pairs])
    mean = _mean_r(samples_a) - _mean_r(samples_b)
    ci, reason = _interval(_mean_draws(np.array(draws), bootstrap), bootstrap)
  rows = [line[0].rows for line in both if line]
  return Difference(
    a=a,
    b=b,
    mean=mean,
    ci=ci,
    benchmarks=tuple(r.benchmark for r in rows),
    seeds=tuple(seeds),
    num_seeds=len(seeds),
    num_rows=sum(len(r.scores) for r in rows),
    excludes_zero=None if ci is None else ci[0] > 0 or ci[1] < 0,
    reason=reason,
  )


def _mean_r(samples: Sequence[Sequence[resampling.PearsonDraws]]) -> float:
  values = [[sample.r.value for sample in line] for line in samples]
  return float(np.mean(np.array(values, np.float64)))


def _mean_draws(
  draws: np.ndarray, bootstrap: resampling.Bootstrap
) -> np.ndarray:
  """[R] means of draws [benchmarks, seeds, R] over resampled seeds."""
  num_seeds = draws.shape[1]
  if num_seeds == 1:
    return draws[:, 0].mean(axis=0)
  size = (bootstrap.num_resamples, num_seeds)
  chosen = resampling.stream(bootstrap, 'seeds').integers(num_seeds, size=size)
  weights = resampling.counts(chosen, num_seeds).T / num_seeds
  return np.sum(draws.mean(axis=0) * weights, axis=0)


def _interval(
  draws: np.ndarray, bootstrap: resampling.Bootstrap
) -> tuple[Interval | None, str | None]:
  """Percentile interval of draws [R], or why there is none."""
  usable = draws[np.isfinite(draws)]
  if len(usable) < _MIN_USABLE * len(draws):
    num_lost = len(draws) - len(usable)
    return None, f'{num_lost} of {len(draws)} resamples are constant'
  tail = (1 - bootstrap.level) / 2
  low, high = np.quantile(usable, [tail, 1 - tail])
  return (float(low), float(high)), None


def _unpaired_reason(
  samples: Sequence[Sequence[resampling.PearsonDraws]],
) -> str | None:
  if not samples:
    return 'no benchmark in common'
  if not all(samples):
    return 'no seed with predictions on every benchmark'
  for line in samples:
    if any(sample.rows != line[0].rows for sample in line):
      return f'rows of {line[0].rows.benchmark} differ'
  return None


def _missing_reason(
  samples: Sequence[Sequence[resampling.PearsonDraws]],
) -> str | None:
  for line in samples:
    for sample in line:
      if sample.r.value is None:
        return f'{sample.rows.benchmark}: {sample.r.reason}'
  return None
