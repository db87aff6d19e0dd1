"""What the CoTs of a method are like: length, digits, the rubric's words.

In: prediction rows. Out: a `CotTexts` for each method and benchmark, seeds
together. Means have bootstrap intervals over the benchmark's rows: CoTs of one
row, and of several seeds, share their prompt, so a row stands for all of its
CoTs.

Axes: n CoTs of a method on a benchmark.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from tract_jax import types
from tract_jax.evaluation import intervals, overlap, resampling, tables


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
    bleu, rouge_l: mean overlap of a CoT with its row's rubric; see `overlap`.
    bleu_ci, rouge_l_ci: bootstrap intervals over rows.
    num_overlap: CoTs that these are means of, drawn among those with words.
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
  bleu: float | None = None
  bleu_ci: intervals.Interval | None = None
  rouge_l: float | None = None
  rouge_l_ci: intervals.Interval | None = None
  num_overlap: int = 0
  reason: str | None = None


def facts(
  method: str,
  benchmark: str,
  rows: Sequence[types.Prediction],
  num_cots: int,
  bootstrap: resampling.Bootstrap,
  rubrics: Mapping[str, str],
  most_overlaps: int,
) -> CotTexts | None:
  """Facts on the CoTs of a prediction file.

  Args:
    method, benchmark: whose file it is.
    rows: of all seeds.
    num_cots: of each row's CoTs, how many are looked at.
    bootstrap: how intervals are made.
    rubrics: {id of a row: its rubric}, of the rows that have one.
    most_overlaps: the most CoTs that are held against their rubrics; 0: none.

  Returns:
    The facts; None without any CoT.
  """
  texts = [text for row in rows for text in row.cots[:num_cots]]
  if not texts:
    return None
  found = [
    _token_figures(benchmark, rows, num_cots, bootstrap),
    _overlap_figures(
      *(benchmark, rows, num_cots, bootstrap, rubrics, most_overlaps)
    ),
  ]
  reasons = [part.pop('reason') for part in found if 'reason' in part]
  return CotTexts(
    method=method,
    benchmark=benchmark,
    num_cots=len(texts),
    mean_words=sum(len(text.split()) for text in texts) / len(texts),
    share_with_digits=sum(bool(re.search('[0-9]', t)) for t in texts)
    / len(texts),
    **found[0],
    **found[1],
    reason='; '.join(reasons) or None,
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
    np.stack([sums, sizes]), bootstrap, f'rows of {benchmark}'
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
      *(
        tables.number(c.bleu, c.bleu_ci),
        tables.number(c.rouge_l, c.rouge_l_ci),
      ),
    ]
    for c in found
  ]
  header = ['method', 'benchmark', 'CoTs', 'words', 'with digits']
  header += ['tokens', 'median', '90 %', 'rubric BLEU', 'rubric ROUGE-L']
  return header, lines


def _token_figures(benchmark, rows, num_cots, bootstrap) -> dict[str, Any]:
  """The figures of tokens; why there are none, where a CoT's are unknown."""
  lost = sum(
    len(row.cot_tokens[:num_cots]) != len(row.cots[:num_cots]) for row in rows
  )
  if lost:
    why = f'not told by {lost} of {len(rows)} rows'
    return {'reason': f'mean_tokens, median_tokens, p90_tokens: {why}'}
  tokens = [number for row in rows for number in row.cot_tokens[:num_cots]]
  ids = [row.example_id for row in rows for _ in row.cots[:num_cots]]
  mean = mean_over_rows(tokens, ids, benchmark, bootstrap)
  median, most = np.quantile(tokens, [0.5, 0.9])
  return {
    'mean_tokens': mean.mean,
    'mean_tokens_ci': mean.ci,
    'median_tokens': float(median),
    'p90_tokens': float(most),
  }


def _overlap_figures(
  benchmark, rows, num_cots, bootstrap, rubrics, most
) -> dict[str, Any]:
  """Overlap of drawn CoTs with their rubrics, or why there is none."""
  texts = [
    (row.example_id, text)
    for row in sorted(rows, key=lambda row: (row.example_id, row.seed))
    for text in row.cots[:num_cots]
    if text.strip() and rubrics.get(row.example_id)
  ]
  measures = overlap.measures()
  if not (most and measures and texts):
    why = 'no CoT of a row whose rubric is known'
    if not measures:
      why = "needs pip install 'tract_jax[analyses]'"
    if not most:
      why = 'config.evaluation.overlap_cots is 0'
    return {'reason': f'bleu, rouge_l: {why}'}
  # By the benchmark's name: the same rows of every method.
  rng = resampling.stream(bootstrap, f'overlap on {benchmark}')
  size = min(most, len(texts))
  chosen = sorted(rng.choice(len(texts), size, replace=False).tolist())
  ids = [texts[i][0] for i in chosen]
  found: dict[str, Any] = {'num_overlap': size}
  for name, measure in measures.items():
    values = [measure(texts[i][1], rubrics[texts[i][0]]) for i in chosen]
    mean = mean_over_rows(values, ids, benchmark, bootstrap)
    found |= {name: mean.mean, f'{name}_ci': mean.ci}
  return found


def _short(value: float | None, ci: intervals.Interval | None = None) -> str:
  """One decimal: a tenth of a token is fine enough."""
  if value is None:
    return tables.NONE
  return f'{value:.1f}' + (f' ({ci[0]:.1f}, {ci[1]:.1f})' if ci else '')
