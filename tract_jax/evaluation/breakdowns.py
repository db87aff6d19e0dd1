"""Where a judge fails: its figures on parts of a benchmark.

In: a system's predictions, and for each facet (category, response source,
rubric, rater's score, CoT length, finish reasons) what each row is. Out: a
`Part` for each value of each facet. Seeds are pooled: a row counts once for
each. Intervals do not tell chance from more where so many parts are looked at:
of twenty, one leaves out the truth.

Axes: n predictions of a system, seeds together.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from tract_jax.evaluation import figures, jackknife, metrics, tables

FACETS = (
  'category',
  'response_source',
  'rubric',
  'score',
  'cot_length',
  'finish_reason',
)
OTHERS = 'all others'
# Values of a facet; those of the fewest rows go together.
_MAX_VALUES = 20
_LENGTHS = ('shortest third', 'middle third', 'longest third')


@dataclasses.dataclass(frozen=True)
class Part:
  """Figures of a system on the rows of one kind.

  Attributes:
    method, predictor, num_cots, benchmark: whose.
    facet, value: one of FACETS, and what the rows have in common.
    num_rows, num_invalid: predictions, over all seeds; invalid ones are scored
      as the fallback.
    pearson: None with a reason; within one score there is none.
    rmse, bias: error in points; mean of prediction minus score.
    reason: why there is no correlation, or no interval; else None.
    pearson_ci, rmse_ci, bias_ci: intervals over rows, see `jackknife`; None of
      few rows.
  """

  method: str
  predictor: str
  num_cots: int
  benchmark: str
  facet: str
  value: str
  num_rows: int
  num_invalid: int
  pearson: float | None
  rmse: float | None
  bias: float | None
  reason: str | None
  pearson_ci: metrics.Interval | None = None
  rmse_ci: metrics.Interval | None = None
  bias_ci: metrics.Interval | None = None


def break_down(
  systems: Sequence[metrics.SystemPredictions],
  facets: Mapping[str, Sequence[Sequence[str]]],
  fallback: float,
  level: float,
) -> list[Part]:
  """Figures on the parts of one benchmark.

  Args:
    systems: one for each seed.
    facets: {one of FACETS: [seeds][n] values}; "" where a row's is unknown.
    fallback: scored in place of an invalid prediction.
    level: probability that an interval is meant to cover.

  Returns:
    For each facet with two values or more, in the order of FACETS, its values
    in order; none where the benchmark has no scores.
  """
  if not systems or not len(systems[0].rated):
    return []
  scores = np.concatenate([s.scores for s in systems])
  given = np.concatenate([s.predictions for s in systems])
  filled, _ = metrics.fill_invalid(given, fallback)
  ids = [name for s in systems for name in s.example_ids]
  numbers = {name: i for i, name in enumerate(dict.fromkeys(ids))}
  rows = np.array([numbers[name] for name in ids])
  found = []
  for facet in FACETS:
    values = np.array([*itertools.chain(*facets.get(facet, ()))], object)
    for value, chosen in parts(values, _MAX_VALUES):
      x, y = scores[chosen], filled[chosen]
      r = figures.pearson(x, y)
      known = r.value is not None
      cis = jackknife.intervals(x, y, rows[chosen], level, known)
      found.append(
        Part(
          **dataclasses.asdict(systems[0].system),
          benchmark=systems[0].benchmark,
          facet=facet,
          value=value,
          num_rows=int(chosen.sum()),
          num_invalid=int((~np.isfinite(given[chosen])).sum()),
          pearson=r.value,
          rmse=figures.rmse(x, y).value,
          bias=float(np.mean(y - x)),
          reason=_reason(r.reason, bool(cis)),
          pearson_ci=cis.get('pearson'),
          rmse_ci=cis.get('rmse'),
          bias_ci=cis.get('bias'),
        )
      )
  return found


def parts(
  values: np.ndarray, most: int, least: int = 2
) -> list[tuple[str, np.ndarray]]:
  """Which rows have each value; the rarest values together, last.

  Args:
    values: [n] texts as objects; rows with "" are in no part.
    most: values that stand apart.
    least: of fewer values there are no parts.

  Returns:
    (value, [n] bool) of each, in order.
  """
  known, counts = np.unique(values[values != ''], return_counts=True)
  if len(known) < least:
    return []
  by_count = sorted(zip(-counts, known, strict=True))
  kept = sorted(value for _, value in by_count[:most])
  found = [(str(value), values == value) for value in kept]
  if by_count[most:]:
    rest = [value for _, value in by_count[most:]]
    found.append((OTHERS, np.isin(values.astype(str), rest)))
  return found


def thirds(lengths: Sequence[int]) -> list[str]:
  """Which third of the lengths each is in, by their quantiles.

  Args:
    lengths: [n], for example characters of CoTs.

  Returns:
    [n] names; "" for each where all are equal.
  """
  if not lengths or min(lengths) == max(lengths):
    return [''] * len(lengths)
  ends = np.quantile(lengths, [1 / 3, 2 / 3])
  return [_LENGTHS[i] for i in np.searchsorted(ends, lengths)]


def cells(parts: Sequence[Part]) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of the table of one facet."""
  header = ['method', 'benchmark', 'value', 'rows', 'invalid']
  lines = [
    [
      *(p.method, p.benchmark, p.value, p.num_rows, p.num_invalid),
      tables.number(p.pearson, p.pearson_ci),
      *(tables.number(p.rmse, p.rmse_ci), tables.number(p.bias, p.bias_ci)),
    ]
    for p in parts
  ]
  return [*header, 'r', 'RMSE', 'bias'], lines


def _reason(of_r: str | None, has_intervals: bool) -> str | None:
  """Why there is no correlation, and why no figure has an interval."""
  names = f'{"" if of_r else "pearson_ci, "}rmse_ci, bias_ci'
  few = f'{names}: fewer than {jackknife.MIN_ROWS} rows'
  reasons = [of_r, None if has_intervals else few]
  return '; '.join(filter(None, reasons)) or None
