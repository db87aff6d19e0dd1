"""Where a judge fails: its figures on parts of a benchmark.

In: a system's predictions, and for each facet (category, response source,
rubric, rater's score, CoT length, finish reasons) what each row is. Out: a
`Part` for each value of each facet, and facts on the CoTs' texts. Seeds are
pooled: a row counts once for each. No interval is given: parts are small, and
many are looked at.

Axes: n predictions of a system, seeds together.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import re
from typing import Any

import numpy as np

from tract_jax.evaluation import figures, metrics, tables

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
    reason: why there is no correlation; else None.
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


@dataclasses.dataclass(frozen=True)
class CotTexts:
  """Facts on the texts of a method's CoTs on a benchmark, seeds together.

  Attributes:
    method, benchmark: whose.
    num_cots: how many there are.
    mean_words: split at spaces.
    share_with_digits: part of them with a digit in it; the score stands after
      a CoT.
  """

  method: str
  benchmark: str
  num_cots: int
  mean_words: float
  share_with_digits: float


def break_down(
  systems: Sequence[metrics.SystemPredictions],
  facets: Mapping[str, Sequence[Sequence[str]]],
  fallback: float,
) -> list[Part]:
  """Figures on the parts of one benchmark.

  Args:
    systems: one for each seed.
    facets: {one of FACETS: [seeds][n] values}; "" where a row's is unknown.
    fallback: scored in place of an invalid prediction.

  Returns:
    For each facet with two values or more, in the order of FACETS, its values
    in order; none where the benchmark has no scores.
  """
  if not systems or not len(systems[0].rated):
    return []
  scores = np.concatenate([s.scores for s in systems])
  given = np.concatenate([s.predictions for s in systems])
  filled, _ = metrics.fill_invalid(given, fallback)
  found = []
  for facet in FACETS:
    values = np.array([*itertools.chain(*facets.get(facet, ()))], object)
    for value, chosen in parts(values, _MAX_VALUES):
      r = figures.pearson(scores[chosen], filled[chosen])
      found.append(
        Part(
          **dataclasses.asdict(systems[0].system),
          benchmark=systems[0].benchmark,
          facet=facet,
          value=value,
          num_rows=int(chosen.sum()),
          num_invalid=int((~np.isfinite(given[chosen])).sum()),
          pearson=r.value,
          rmse=figures.rmse(scores[chosen], filled[chosen]).value,
          bias=float(np.mean(filled[chosen] - scores[chosen])),
          reason=r.reason,
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


def cot_texts(
  method: str, benchmark: str, texts: Sequence[str]
) -> CotTexts | None:
  """Facts on CoTs; None without any."""
  if not texts:
    return None
  return CotTexts(
    method=method,
    benchmark=benchmark,
    num_cots=len(texts),
    mean_words=sum(len(text.split()) for text in texts) / len(texts),
    share_with_digits=sum(bool(re.search('[0-9]', t)) for t in texts)
    / len(texts),
  )


def cells(parts: Sequence[Part]) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of the table of one facet."""
  header = ['method', 'benchmark', 'value', 'rows', 'invalid']
  lines = [
    [
      *(p.method, p.benchmark, p.value, p.num_rows, p.num_invalid),
      *map(tables.number, (p.pearson, p.rmse, p.bias)),
    ]
    for p in parts
  ]
  return [*header, 'r', 'RMSE', 'bias'], lines


def cot_cells(
  found: Sequence[CotTexts],
) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of the table of CoT texts."""
  lines = [
    [
      *(c.method, c.benchmark, c.num_cots, f'{c.mean_words:.1f}'),
      tables.number(c.share_with_digits),
    ]
    for c in found
  ]
  return ['method', 'benchmark', 'CoTs', 'words', 'with digits'], lines
