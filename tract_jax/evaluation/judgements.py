"""Single judgements for the report's page: which are shown, and what of them.

In: predictions, as their files have them, and the benchmarks' rows. Out: what
the page's browser is fed with, as JSON has it. A page holds some 2,000
judgements and 12 million characters at most: of each method, benchmark and seed
as many, the one half those with the largest errors, the other half at random,
by the row's id, so that methods show the same rows. Of preference pairs, both
judgements are shown together, the most wrongly ordered pair first.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any
import zlib

from tract_jax import types
from tract_jax.evaluation import preference_pairs

_MAX_SHOWN = 2000
_LEAST_SHOWN = 10
_MAX_CHARS = 12_000_000
# Of one text; its middle is cut.
_MAX_TEXT = 20_000


@dataclasses.dataclass(frozen=True)
class Group:
  """Judgements of one method on one benchmark with one seed.

  Attributes:
    method, benchmark, seed: whose.
    shown: those that are shown, the largest error first.
    num_rows: how many there are.
  """

  method: str
  benchmark: str
  seed: int
  shown: tuple[types.Prediction, ...]
  num_rows: int


def error_of(prediction: types.Prediction, fallback: float) -> float | None:
  """Absolute error in points; None without a rater's score.

  Args:
    prediction: a row of a prediction file.
    fallback: scored in place of an invalid prediction.

  Returns:
    At least 0.
  """
  if prediction.score is None:
    return None
  value = fallback if prediction.prediction is None else prediction.prediction
  return abs(value - prediction.score)


def group(
  method: str,
  benchmark: str,
  seed: int,
  rows: Sequence[types.Prediction],
  *,
  fallback: float,
  num_groups: int,
) -> Group:
  """Chooses what is shown of a method on a benchmark with a seed.

  Args:
    method, benchmark, seed: whose the rows are.
    rows: all of its predictions.
    fallback: scored in place of an invalid prediction.
    num_groups: how many share the page.

  Returns:
    All rows, where they are few.
  """
  leads = _leads(rows, fallback)

  def by_error(row: types.Prediction):
    error = error_of(row, fallback)
    is_valid, lead = leads.get(row.pair_id, (row.prediction is not None, 0.0))
    return is_valid, -(error or 0.0), lead, row.pair_id, row.example_id

  def at_random_by(row: types.Prediction):
    name = row.pair_id or row.example_id
    return zlib.crc32(name.encode()), row.example_id

  worst = sorted(rows, key=by_error)
  at_random = sorted(rows, key=at_random_by)
  most = max(_LEAST_SHOWN, _MAX_SHOWN // num_groups)
  num_chars = _MAX_CHARS // num_groups
  chosen: dict[str, types.Prediction] = {}
  for row in itertools.chain(*zip(worst, at_random, strict=True)):
    if row.example_id in chosen:
      continue
    num_chars -= sum(map(len, row.cots))
    if len(chosen) == most or (num_chars < 0 and chosen):
      break
    chosen[row.example_id] = row
  shown = tuple(sorted(chosen.values(), key=by_error))
  return Group(method, benchmark, seed, shown, len(rows))


def _leads(
  rows: Sequence[types.Prediction], fallback: float
) -> dict[str, tuple[bool, float]]:
  """{pair: (whether both are valid, chosen score minus rejected one)}."""
  leads = {}
  joined = preference_pairs.join('', rows)
  for name, chosen, rejected in zip(
    joined.pairs.ids, joined.chosen, joined.rejected, strict=True
  ):
    both = [rows[i].prediction for i in (chosen, rejected)]
    first, second = (fallback if p is None else p for p in both)
    leads[name] = None not in both, first - second
  return leads


def said(groups: Sequence[Group]) -> str:
  """Which judgements the page has, in a sentence."""
  num_shown = sum(len(g.shown) for g in groups)
  num_rows = sum(g.num_rows for g in groups)
  if num_shown == num_rows:
    return f'All {num_rows:,} judgements are here.'
  return (
    f'{num_shown:,} of {num_rows:,} judgements are here: of each method, '
    'benchmark and seed one half those that are invalid or have the largest '
    'errors, the other half at random.'
  )


def content(
  groups: Sequence[Group],
  benchmarks: Mapping[str, Sequence[types.Example]],
  grid: types.ScoreGrid,
  fallback: float,
) -> dict[str, Any]:
  """All that the page's browser is fed with.

  Args:
    groups: what is shown.
    benchmarks: {name: its rows}, for prompts, responses and raters' scores.
    grid: the scores.
    fallback: scored in place of an invalid prediction.

  Returns:
    {"grid": texts, "values": scores, "fallback": ..., "rows": [the judged rows
    by number], "judgements": [of each its row's number and what was said]}.
  """
  wanted = {(g.benchmark, p.example_id) for g in groups for p in g.shown}
  examples = {
    (name, example.example_id): example
    for name, rows in benchmarks.items()
    for example in rows
    if (name, example.example_id) in wanted
  }
  numbers: dict[tuple[str, str], int] = {}
  rows: list[dict[str, Any]] = []
  judgements: list[dict[str, Any]] = []
  for g in groups:
    for prediction in g.shown:
      key = g.benchmark, prediction.example_id
      if key not in numbers:
        numbers[key] = len(rows)
        rows.append(_row(*key, prediction, examples.get(key)))
      error = error_of(prediction, fallback)
      judgements.append(
        {
          'row': numbers[key],
          'method': g.method,
          'seed': g.seed,
          'prediction': _rounded(prediction.prediction),
          'error': _rounded(error),
          'invalid': prediction.invalid_reason
          or ('no prediction' if prediction.prediction is None else None),
          'distributions': [
            d and [round(p, 4) for p in d] for d in prediction.distributions
          ],
          'decoded': prediction.decoded,
          'cots': [_shortened(text) for text in prediction.cots],
          'finish_reasons': prediction.finish_reasons,
        }
      )
  return {
    'grid': list(grid.texts),
    'values': list(grid.values),
    'fallback': fallback,
    'rows': rows,
    'judgements': judgements,
  }


def _row(
  benchmark: str,
  example_id: str,
  prediction: types.Prediction,
  example: types.Example | None,
) -> dict[str, Any]:
  """A judged row; without the benchmark's file its texts are unknown."""
  ratings: Iterable[float] = example.ratings if example else ()
  score = prediction.score
  prompt = _pieces(example) if example else []
  response = example.response if example else ''
  return {
    'benchmark': benchmark,
    'id': example_id,
    'score': _rounded(score),
    'ratings': list(ratings) or ([] if score is None else [score]),
    'human_score': _rounded(prediction.human_score),
    'category': prediction.category,
    'pair': prediction.pair_id,
    'source': example.response_source if example else '',
    'prompt': prompt,
    # Else it stands in the prompt.
    'response': _shortened(response) if len(prompt) == 1 else '',
  }


def _pieces(example: types.Example) -> list[str]:
  """The prompt, parted where the response stands in it, if it does."""
  start = example.prompt.find(example.response) if example.response else -1
  if start < 0:
    return [_shortened(example.prompt)]
  end = start + len(example.response)
  pieces = (example.prompt[:start], example.response, example.prompt[end:])
  return [_shortened(piece) for piece in pieces]


def _shortened(text: str) -> str:
  """Text whose middle is cut where it is too long to be shown."""
  left_out = len(text) - _MAX_TEXT
  if left_out <= 0:
    return text
  half = _MAX_TEXT // 2
  return f'{text[:half]}\n[... {left_out:,} characters ...]\n{text[-half:]}'


def _rounded(value: float | None) -> float | None:
  """Four decimals, in which no digit that is seen is lost."""
  if value is None or not math.isfinite(value):
    return None
  return round(value, 4)
