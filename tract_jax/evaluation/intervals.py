"""Bootstrap intervals of figures, of their means, and of differences.

In: resamples of systems on benchmarks. Out: percentile intervals.

Rows and, where there are several, seeds are resampled, each with replacement
(crossed: one draw of seeds serves every row, one draw of rows every seed).
Noise of single predictions is then counted twice, which errs to the wide side.
Of the spread between seeds one seed says nothing, and few say little: where it
dominates, an interval from S seeds lies between the lowest and the highest, and
covers the mean in about 1 - 2^(1 - S) of cases at most (.5 for 2, .75 for 3).
Of a difference, both sides have the same resampled rows, and the same resampled
seeds where these are paired; else each side's seeds are resampled on their own
(`compared_seeds`).

  Axes: R resamples.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from tract_jax.evaluation import compared_seeds, figures, metrics, resampling

# Resamples without a correlation are left out; an interval of too few others
# would describe another population.
_MIN_USABLE = 0.9

Interval = metrics.Interval
# [benchmarks][seeds] of a system.
Samples = Sequence[Sequence[resampling.FigureDraws]]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean with its interval; `reason` says why either is None."""

  mean: float | None
  ci: Interval | None
  reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Gap:
  """A mean difference: its interval, and whether that excludes zero."""

  mean: float | None
  ci: Interval | None
  excludes_zero: bool | None
  reason: str | None


@dataclasses.dataclass(frozen=True)
class Difference:
  """Figures of system `a` minus those of `b`, on the same rows.

  Attributes:
    a, b: the systems.
    mean: of Pearson's r, over seeds and, with equal weight, benchmarks.
    ci: its interval.
    benchmarks: those that both were judged on.
    seeds, seeds_b: of `a` and of `b`, see `compared_seeds`.
    num_seeds: the larger number of them.
    num_rows: over all benchmarks.
    excludes_zero: whether the interval does; None without one.
    reason: why there is no mean or interval; else None.
    figures: the same of each other figure, by name.
  """

  a: metrics.System
  b: metrics.System
  mean: float | None
  ci: Interval | None
  benchmarks: tuple[str, ...]
  seeds: tuple[int, ...]
  seeds_b: tuple[int, ...]
  num_seeds: int
  num_rows: int
  excludes_zero: bool | None
  reason: str | None
  figures: dict[str, Gap]


@dataclasses.dataclass(frozen=True)
class Combined:
  """Figures of a system over seeds, on one benchmark or over all.

  Attributes:
    method, predictor, num_cots: the system.
    benchmark: its name, or "mean": all with scores, weighing the same.
    seeds, num_seeds: of the runs; for "mean", those on every benchmark.
    num_examples, num_invalid: predictions over all these, and how many of
      them were scored as the fallback.
    pearson, spearman, kendall, rmse, mae, accuracy, grid_mass: means; None
      where one of the figures is.
    pearson_ci, ..., accuracy_ci: bootstrap intervals over rows and seeds.
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
  spearman_ci: Interval | None
  kendall: float | None
  kendall_ci: Interval | None
  rmse: float | None
  rmse_ci: Interval | None
  mae: float | None
  mae_ci: Interval | None
  accuracy: float | None
  accuracy_ci: Interval | None
  grid_mass: float | None
  reason: str | None

  @property
  def system(self) -> metrics.System:
    """Method, predictor and number of CoTs."""
    return metrics.System(self.method, self.predictor, self.num_cots)


def metric_row(
  system: metrics.SystemPredictions,
  drawn: resampling.FigureDraws,
  bootstrap: resampling.Bootstrap,
) -> metrics.MetricRow:
  """All figures of one system on one benchmark with one seed.

  Args:
    system: what it predicted.
    drawn: its figures, with the fallback in place of invalid predictions.
    bootstrap: as given to `resampling.resample`.

  Returns:
    The row of report/metrics.json.
  """
  values: dict[str, Any] = {}
  reasons: dict[str, str | None] = {}
  for name, sample in drawn.items():
    estimate = mean_figure([[sample]], bootstrap)
    values |= {name: sample.figure.value, f'{name}_ci': estimate.ci}
    reasons[name] = sample.figure.reason
    if not sample.figure.reason:
      reasons[f'{name}_ci'] = estimate.reason
  grid_mass = figures.mean_grid_mass(system.grid_mass)
  reasons['grid_mass'] = grid_mass.reason
  return metrics.MetricRow(
    **dataclasses.asdict(system.system),
    benchmark=system.benchmark,
    seed=system.seed,
    num_examples=len(system.predictions),
    num_invalid=int((~np.isfinite(system.predictions)).sum()),
    **values,
    grid_mass=grid_mass.value,
    num_grid_mass=int(np.isfinite(system.grid_mass).sum()),
    finish_reasons=dict(sorted(system.finish_reasons.items())),
    num_invalid_cots=system.num_invalid_cots,
    reason=_joined_reasons(reasons),
  )


def mean_figure(
  samples: Sequence[Sequence[resampling.Draws]],
  bootstrap: resampling.Bootstrap,
) -> Estimate:
  """Mean of a figure over seeds and benchmarks, with its interval.

  Args:
    samples: [benchmarks][seeds]; the same seeds for each benchmark, in the
      same order, and the same rows for each seed.
    bootstrap: as given to `resampling.resample`.

  Returns:
    The mean, benchmarks weighing the same. None if one of its figures does not
    exist: a mean over the others would flatter.
  """
  reason = _unpaired_reason(samples) or _missing_reason(samples)
  if reason:
    return Estimate(None, None, reason)
  ci, reason = percentiles(_mean_draws(samples, bootstrap), bootstrap)
  return Estimate(_mean_value(samples), ci, reason)


def combine(
  system: metrics.System,
  benchmark: str,
  rows: Sequence[metrics.MetricRow],
  samples: Samples,
  bootstrap: resampling.Bootstrap,
) -> Combined:
  """All figures of a system, as means over seeds and benchmarks.

  Args:
    system: what was judged.
    benchmark: its name, or "mean".
    rows: one for each benchmark and seed, in any order.
    samples: [benchmarks][seeds], as for `mean_figure`.
    bootstrap: as given to `resampling.resample`.

  Returns:
    The means.
  """
  seeds = tuple(sorted({row.seed for row in rows}))
  reasons = {row.reason for row in rows}
  values: dict[str, Any] = {}
  for name in figures.NAMES:
    estimate = mean_figure(of_figure(samples, name), bootstrap)
    values |= {name: estimate.mean, f'{name}_ci': estimate.ci}
    reasons.add(estimate.reason)
  return Combined(
    **dataclasses.asdict(system),
    benchmark=benchmark,
    seeds=seeds,
    num_seeds=len(seeds),
    num_examples=sum(row.num_examples for row in rows),
    num_invalid=sum(row.num_invalid for row in rows),
    **values,
    grid_mass=figures.mean_or_none([row.grid_mass for row in rows]),
    reason='; '.join(sorted(filter(None, reasons))) or None,
  )


def difference(
  a: metrics.System,
  b: metrics.System,
  seeds: compared_seeds.Seeds,
  samples_a: Samples,
  samples_b: Samples,
  bootstrap: resampling.Bootstrap,
) -> Difference:
  """Differences of the mean figures of two systems, paired by row and seed.

  Every resample holds the same rows and, where they are paired, the same seeds
  for both systems, so what is hard for both cancels.

  Args:
    a, b: the systems; the difference is a's mean minus b's.
    seeds: of each.
    samples_a, samples_b: [benchmarks][its seeds], of the same benchmarks.
    bootstrap: as given to `resampling.resample`.

  Returns:
    The difference; a mean is None if one of its figures does not exist or the
    systems were judged on different rows.
  """
  gaps = {
    name: gap(
      seeds,
      of_figure(samples_a, name),
      of_figure(samples_b, name),
      bootstrap,
    )
    for name in figures.NAMES
  }
  first = of_figure(samples_a, 'pearson')
  rows = [line[0].rows for line in first if line]
  return Difference(
    a=a,
    b=b,
    benchmarks=tuple(r.benchmark for r in rows),
    seeds=tuple(seeds[0]),
    seeds_b=tuple(seeds[1]),
    num_seeds=max(map(len, seeds)),
    num_rows=sum(len(r.scores) for r in rows),
    **dataclasses.asdict(gaps.pop('pearson')),
    figures=gaps,
  )


def percentiles(
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


def of_figure(samples: Samples, name: str) -> list[list[resampling.Draws]]:
  """[benchmarks][seeds] of one figure."""
  return [[drawn[name] for drawn in line] for line in samples]


def gap(
  seeds: compared_seeds.Seeds,
  samples_a: Sequence[Sequence[resampling.Draws]],
  samples_b: Sequence[Sequence[resampling.Draws]],
  bootstrap: resampling.Bootstrap,
) -> Gap:
  """Mean of one figure of a system minus that of another.

  Args:
    seeds: of each.
    samples_a, samples_b: [benchmarks][its seeds], of the same benchmarks.
    bootstrap: as given to `resampling.resample`.

  Returns:
    The difference, as in `difference`.
  """
  mean, ci = None, None
  both = [[*x, *y] for x, y in zip(samples_a, samples_b, strict=True)]
  reasons = map(_unpaired_reason, (samples_a, samples_b, both))
  reason = next(filter(None, reasons), None) or _missing_reason(both)
  if not reason:
    mean = _mean_value(samples_a) - _mean_value(samples_b)
    # The same numbers choose the same seeds of both.
    are_paired = compared_seeds.are_paired(seeds)
    stream = 'seeds' if are_paired else 'seeds of the second'
    draws = _mean_draws(samples_a, bootstrap)
    draws = draws - _mean_draws(samples_b, bootstrap, stream)
    ci, reason = percentiles(draws, bootstrap)
  excludes_zero = None if ci is None else ci[0] > 0 or ci[1] < 0
  return Gap(mean, ci, excludes_zero, reason)


def _mean_value(samples: Sequence[Sequence[resampling.Draws]]) -> float:
  values = [[sample.figure.value for sample in line] for line in samples]
  return float(np.mean(np.array(values, np.float64)))


def _mean_draws(
  samples: Sequence[Sequence[resampling.Draws]],
  bootstrap: resampling.Bootstrap,
  stream: str = 'seeds',
) -> np.ndarray:
  """[R] means over benchmarks and resampled seeds, which a stream chooses."""
  draws = np.array([[sample.draws for sample in line] for line in samples])
  num_seeds = draws.shape[1]
  if num_seeds == 1:
    return draws[:, 0].mean(axis=0)
  size = (bootstrap.num_resamples, num_seeds)
  chosen = resampling.stream(bootstrap, stream).integers(num_seeds, size=size)
  weights = resampling.counts(chosen, num_seeds).T / num_seeds
  means = draws.mean(axis=0)
  # NaN times 0 is NaN: a seed that was not drawn says nothing.
  return np.sum(np.where(weights > 0, means * weights, 0), axis=0)


def _unpaired_reason(
  samples: Sequence[Sequence[resampling.Draws]],
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
  samples: Sequence[Sequence[resampling.Draws]],
) -> str | None:
  for line in samples:
    for sample in line:
      if sample.figure.value is None:
        return f'{sample.rows.benchmark}: {sample.figure.reason}'
  return None


def _joined_reasons(reasons: Mapping[str, str | None]) -> str | None:
  """As in "pearson, kendall: constant scores; rmse: no rows", or None."""
  names: dict[str, list[str]] = {}
  for name, reason in reasons.items():
    if reason:
      names.setdefault(reason, []).append(name)
  texts = [f'{", ".join(group)}: {reason}' for reason, group in names.items()]
  return '; '.join(texts) or None
