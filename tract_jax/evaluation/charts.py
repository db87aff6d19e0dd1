"""Which plots the report's page has.

In: a report, and what the methods' own predictors said. Out: figures as HTML,
by section. A plot without data is not there.
"""

from collections.abc import Iterable, Sequence
import itertools

import numpy as np

from tract_jax.evaluation import (
  calibration,
  cot_curve,
  lambda_curve,
  metrics,
  pair_tables,
  plots,
)
from tract_jax.evaluation import report as report_lib

# More would be a page of plots.
_MAX_SCATTERS = 24
_MAX_FORESTS = 12


def forest(report: report_lib.Report) -> list[str]:
  """The differences of mean Pearson's r, with their intervals."""
  bars = [
    plots.Bar(f'{d.a} minus {d.b}', d.mean, *d.ci)
    for d in report.differences
    if d.mean is not None and d.ci is not None
  ]
  if not bars:
    return []
  return [plots.forest('Differences', "difference of mean Pearson's r", bars)]


def pairs(report: report_lib.Report) -> list[str]:
  """Accuracy on preference pairs: a plot for each method and benchmark.

  Returns:
    At most 12, and how many more there would be.
  """
  found = report.preferences
  bars: dict[tuple[str, str], list[plots.Bar]] = {}
  for row in found.combined:
    if row.system in found.own and row.accuracy_ci and row.accuracy is not None:
      label = row.subset or pair_tables.TITLES[row.kind]
      bar = plots.Bar(label, row.accuracy, *row.accuracy_ci)
      bars.setdefault((row.benchmark, row.method), []).append(bar)
  return _first(
    [
      plots.forest(f'{method} on {benchmark}', 'accuracy', own, nothing=0.5)
      for (benchmark, method), own in sorted(bars.items())
    ],
    _MAX_FORESTS,
  )


def scatters(
  predicted: Sequence[metrics.SystemPredictions], fallback: float
) -> list[str]:
  """Score against prediction, a plot for each method and benchmark.

  Args:
    predicted: of each method by its own predictor, with every seed.
    fallback: what invalid predictions are scored as.

  Returns:
    At most 24, and how many more there would be.
  """
  key = _method_and_benchmark
  rated = sorted((s for s in predicted if len(s.rated)), key=key)
  values = [v for s in rated for v in (s.scores.min(), s.scores.max())]
  found = []
  for (benchmark, method), systems in itertools.groupby(rated, key):
    seeds = list(systems)
    x = np.concatenate([s.scores for s in seeds])
    y = np.concatenate(
      [metrics.fill_invalid(s.predictions, fallback)[0] for s in seeds]
    )
    ends = (min(values), max(values))
    diagonal = plots.Series('', 0, [(v, v) for v in ends], is_guide=True)
    found.append(
      plots.chart(
        f'{method} on {benchmark}',
        plots.axis("rater's score", ends),
        plots.axis('prediction', [*ends, y.min(), y.max()]),
        [diagonal, plots.density('', x, y)],
      )
    )
  return _first(found, _MAX_SCATTERS)


def calibrations(
  found: Sequence[calibration.Calibration],
) -> list[str]:
  """Reliability curves, a plot for each benchmark; of the most CoTs."""
  colours = _colours(c.method for c in found)
  charts = []
  for benchmark in sorted({c.benchmark for c in found}):
    of_benchmark = [c for c in found if c.benchmark == benchmark and c.curve]
    series = []
    for method in colours:
      own = [c for c in of_benchmark if c.method == method]
      most = max((c.num_cots for c in own), default=0)
      own = [c for c in own if c.num_cots == most]
      if own:
        series.append(_curve(method, colours[method], own))
    if series:
      values = [v for s in series for point in s.points for v in point]
      ends = min(values), max(values)
      diagonal = plots.Series('', 0, [(v, v) for v in ends], is_guide=True)
      charts.append(
        plots.chart(
          f'Calibration on {benchmark}',
          plots.axis('expected score', ends),
          plots.axis("mean of the rater's", ends),
          [diagonal, *series],
        )
      )
  return charts


def lambdas(points: Sequence[lambda_curve.LambdaPoint]) -> list[str]:
  """Validation RMSE of each candidate lambda: a line for each stage and seed.

  Candidates stand at even distances, in their order.
  """
  known = [p for p in points if p.score_rmse is not None]
  values = sorted({p.lambda_value for p in known})
  if len(values) < 2:
    return []
  names = [f'{p.method} stage {p.stage}, seed {p.seed}' for p in known]
  colours = _colours(names)
  series = [
    plots.Series(
      name,
      colours[name],
      own := [
        (float(values.index(p.lambda_value)), p.score_rmse or 0.0)
        for p, of in zip(known, names, strict=True)
        if of == name
      ],
      titles=[f'lambda {values[int(x)]:g}: {y:.3f}' for x, y in own],
      joined=True,
    )
    for name in colours
  ]
  marks = [(float(i), f'{value:g}') for i, value in enumerate(values)]
  return [
    plots.chart(
      'Choice of lambda',
      plots.axis('lambda', range(len(values)), marks),
      plots.axis('validation RMSE', [y for s in series for _, y in s.points]),
      series,
    )
  ]


def cot_curves(points: Sequence[cot_curve.CotCurvePoint]) -> list[str]:
  """Pearson's r against the number of CoTs, a plot for each benchmark."""
  known = [p for p in points if p.pearson is not None]
  colours = _colours(f'{p.method}/{p.predictor}' for p in known)
  charts = []
  for benchmark in sorted({p.benchmark for p in known}):
    series = []
    for name, colour in colours.items():
      by_number: dict[int, list[float]] = {}
      for p in known:
        if (p.benchmark, f'{p.method}/{p.predictor}') == (benchmark, name):
          by_number.setdefault(p.num_cots, []).append(p.pearson or 0.0)
      means = [(float(n), float(np.mean(r))) for n, r in by_number.items()]
      titles = [f'{n:g} CoTs: {r:.3f}' for n, r in means]
      series.append(
        plots.Series(name, colour, means, titles=titles, joined=True)
      )
    numbers = sorted({x for s in series for x, _ in s.points})
    marks = [(n, f'{n:g}') for n in numbers]
    charts.append(
      plots.chart(
        f'Number of CoTs on {benchmark}',
        plots.axis('CoTs per row', numbers, marks),
        plots.axis("Pearson's r", [y for s in series for _, y in s.points]),
        series,
      )
    )
  return charts


def _first(found: list[str], most: int) -> list[str]:
  """The first plots, and how many more there are."""
  if (left_out := len(found) - most) > 0:
    found[most:] = [f'<p>{left_out} more plots are left out.</p>']
  return found


def _curve(method, colour, seeds) -> plots.Series:
  """The mean over the seeds of each bin that all have."""
  bins = list(zip(*(c.curve for c in seeds), strict=False))
  points = [
    (
      float(np.mean([b.mean_prediction for b in same])),
      float(np.mean([b.mean_score for b in same])),
    )
    for same in bins
  ]
  titles = [f'{sum(b.num_rows for b in same)} rows' for same in bins]
  return plots.Series(method, colour, points, titles=titles, joined=True)


def _colours(names: Iterable[str]) -> dict[str, int]:
  """A number for each name, in their order."""
  return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _method_and_benchmark(s: metrics.SystemPredictions) -> tuple[str, str]:
  return s.benchmark, s.method
