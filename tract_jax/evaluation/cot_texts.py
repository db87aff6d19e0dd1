"""What the CoTs of a method are like: words, digits, tokens.

In: prediction rows. Out: a `CotTexts` for each method and benchmark, seeds
together. Means have bootstrap intervals over the benchmark's rows: CoTs of one
row, and of several seeds, share their prompt, so a row stands for all of its
CoTs.

Axes: n CoTs of a method on a benchmark.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from tract_jax import types
from tract_jax.evaluation import intervals, resampling, tables


@dataclasses.dataclass(frozen=True)
class CotTexts:
  """Facts on a method's CoTs on a benchmark, seeds together.

  Attributes:
    method, benchmark: whose.
    num_cots: how many there are.
    mean_words: split at spaces.
    share_with_digits: part of them with a digit in it; the score stands after
      a CoT.
    mean_tokens, median_tokens, p90_tokens: tokens that the model wrote of a
      CoT: mean, and quantiles of 50 and 90 %.
    mean_tokens_ci: bootstrap interval over rows.
    reason: why figures above are None; else None.
  """

  method: str
  benchmark: str
  num_cots: int
  mean_words: float
  share_with_digits: float
  mean_tokens: float | None = None
  mean_tokens_ci: intervals.Interval | None = None
  median_tokens: float | None = None
  p90_tokens: float | None = None
  reason: str | None = None


def facts(
  method: str,
  benchmark: str,
  rows: Sequence[types.Prediction],
  num_cots: int,
  bootstrap: resampling.Bootstrap,
) -> CotTexts | None:
  """Facts on the CoTs of a prediction file.

  Args:
    method, benchmark: whose file it is.
    rows: of all seeds.
    num_cots: of each row's CoTs, how many are looked at.
    bootstrap: how intervals are made.

  Returns:
    The facts; None without any CoT.
  """
  texts = [text for row in rows for text in row.cots[:num_cots]]
  if not texts:
    return None
  return CotTexts(
    method=method,
    benchmark=benchmark,
    num_cots=len(texts),
    mean_words=sum(len(text.split()) for text in texts) / len(texts),
    share_with_digits=sum(bool(re.search('[0-9]', t)) for t in texts)
    / len(texts),
    **_token_figures(benchmark, rows, num_cots, bootstrap),
  )


def mean_over_rows(
  values: Sequence[float],
  example_ids: Sequence[str],
  benchmark: str,
  bootstrap: resampling.Bootstrap,
) -> intervals.Estimate:
  """Mean of values of CoTs, with its bootstrap interval over rows.

  A resample of rows holds all values of each row that it holds; rows are drawn
  as for the figures of systems on the same benchmark.

  Args:
    values: [n] finite, at least one.
    example_ids: [n], the row of each.
    benchmark: names the draws.
    bootstrap: how many resamples, and their seed.

  Returns:
    The mean of all values and its percentile interval.
  """
  place = {name: i for i, name in enumerate(sorted(set(example_ids)))}
  row = np.array([place[name] for name in example_ids])
  sums, sizes = np.bincount(row, values), np.bincount(row)
  sum_draws, size_draws = resampling.means(
    np.stack([sums, sizes]), bootstrap, benchmark
  )
  ci, reason = intervals.percentiles(sum_draws / size_draws, bootstrap)
  return intervals.Estimate(float(np.mean(values)), ci, reason)


def cells(found: Sequence[CotTexts]) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of their table."""
  lines = [
    [
      *(c.method, c.benchmark, c.num_cots, f'{c.mean_words:.1f}'),
      tables.number(c.share_with_digits),
      *(_short(c.mean_tokens, c.mean_tokens_ci), _short(c.median_tokens)),
      _short(c.p90_tokens),
    ]
    for c in found
  ]
  header = ['method', 'benchmark', 'CoTs', 'words', 'with digits']
  return [*header, 'tokens', 'median', '90 %'], lines


def _token_figures(benchmark, rows, num_cots, bootstrap) -> dict[str, Any]:
  """The figures of tokens; why there are none, where a CoT's are unknown."""
  tokens = [number for row in rows for number in row.cot_tokens[:num_cots]]
  ids = [row.example_id for row in rows for _ in row.cots[:num_cots]]
  if len(tokens) != len(ids):
    lost = f'{len(tokens)} of {len(ids)} CoTs have a number of tokens'
    return {'reason': f'mean_tokens, median_tokens, p90_tokens: {lost}'}
  mean = mean_over_rows(tokens, ids, benchmark, bootstrap)
  median, most = np.quantile(tokens, [0.5, 0.9])
  return {
    'mean_tokens': mean.mean,
    'mean_tokens_ci': mean.ci,
    'median_tokens': float(median),
    'p90_tokens': float(most),
  }


def _short(value: float | None, ci: intervals.Interval | None = None) -> str:
  """One decimal: a tenth of a token is fine enough."""
  if value is None:
    return tables.NONE
  return f'{value:.1f}' + (f' ({ci[0]:.1f}, {ci[1]:.1f})' if ci else '')
