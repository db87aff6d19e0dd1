"""Rows of prediction files, whichever system wrote them, and of whole files.

In: a line of predictions/<method>/<benchmark>.jsonl. Out: a types.Prediction
whose every field is what it is said to be, so that figures can be made of it.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import reprlib
from typing import Any

from tract_jax import types
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import progress

# Larger numbers, squared and summed, are none any more.
_LARGEST = 1e100
# What rounding may add to a whole probability.
_ROUNDING = 1e-3
# Of two means of the same ratings.
_ROUNDING_OF_MEANS = 1e-6


def lines(text: str) -> list[str]:
  """The lines of a file, at least one; blank ones at its end are none."""
  # Not splitlines: a CoT may hold a line separator of Unicode.
  return text.rstrip().split('\n')


def read_line(line: str) -> types.Prediction:
  """Reads a row.

  Args:
    line: its JSON.

  Returns:
    The row; a distribution with NaN is None.

  Raises:
    types.InputError: it is no JSON object, or a field is missing, unknown or
      of another kind; in one line.
  """
  try:
    fields = json.loads(line)
  except RecursionError as error:
    raise types.InputError('nested too deeply') from error
  except ValueError as error:
    raise types.InputError(str(error)) from error
  if not isinstance(fields, dict):
    raise types.InputError(f'is {type(fields).__name__}, not an object')
  try:
    row = types.Prediction(**fields)
  except TypeError as error:
    raise types.InputError(' '.join(str(error).split())) from error
  if isinstance(row.distributions, list):
    row.distributions[:] = [
      None if _has_nan(probs) else probs for probs in row.distributions
    ]
  for name, (is_right, wanted) in _FIELDS.items():
    value = getattr(row, name)
    if not is_right(value):
      raise types.InputError(f'{name}: {reprlib.repr(value)} is not {wanted}')
  return row


def problems_on_grid(
  grid: types.ScoreGrid, row: types.Prediction
) -> Iterator[str]:
  """What of a row does not fit the score grid, a line each."""
  for value in (row.score, *row.decoded):
    if value is not None and not grid.values[0] <= value <= grid.values[-1]:
      yield (
        f'score {value:g} is outside the grid {grid.texts[0]}..{grid.texts[-1]}'
      )
  for probs in row.distributions:
    if probs is not None and len(probs) != len(grid.values):
      yield f'{len(probs)} scores, the grid has {len(grid.values)}'


def check_rows(config, grid, how: methods_lib.Method, path, rows) -> None:
  """Refuses predictions that were made with other settings."""
  num_cots = config.num_cots if how.with_cot else 1
  problems = []
  seeds = sorted({row.seed for row in rows})
  if missing := sorted(set(config.seeds) - set(seeds)):
    problems.append(f'{path}: has seeds {seeds}, not {missing}')
  for number, row in enumerate(rows, start=1):
    found = min(map(len, (row.distributions, row.decoded, row.finish_reasons)))
    if found < num_cots:
      problems.append(f'{path}: line {number}: {found} CoTs, not {num_cots}')
    problems += [
      f'{path}: line {number}: {problem}'
      for problem in problems_on_grid(grid, row)
    ]
  types.raise_problems(problems)


def say_other_rows(
  config, path, rows, examples: Mapping[str, types.Example]
) -> None:
  """Says how far the rows of a run's seeds differ from the benchmark's."""
  missing, more, rescored = [], [], []
  for seed in config.seeds:
    found = {row.example_id: row for row in rows if row.seed == seed}
    missing += [name for name in examples if name not in found]
    more += [name for name in found if name not in examples]
    rescored += [
      name
      for name, example in examples.items()
      if name in found
      and found[name].score is not None
      and not scores_agree(found[name].score, example.score)
    ]
  for names, what in (
    (missing, 'rows of the benchmark lack a prediction'),
    (more, 'rows with a prediction are not in the benchmark'),
    (rescored, "rows have another rater's score in the benchmark: that counts"),
  ):
    if names:
      number = len(set(names))
      progress.say(f'{path}: {number} {what}, such as {names[0]!r}')


def as_rated(
  rows: Sequence[types.Prediction], examples: Mapping[str, types.Example]
) -> list[types.Prediction]:
  """Rows with the scores that the benchmark has now, where it knows them."""
  known = {name: e.score for name, e in examples.items() if e.score is not None}
  return [
    dataclasses.replace(row, score=known.get(row.example_id, row.score))
    for row in rows
  ]


def scores_agree(a: float | None, b: float | None) -> bool:
  """Whether two scores of a row are one, or both unknown."""
  if a is None or b is None:
    return a is b
  return abs(a - b) <= _ROUNDING_OF_MEANS


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < _LARGEST


def is_number(value: Any) -> bool:
  """Whether it is a finite number of a size to reckon with, or None."""
  return value is None or (
    type(value) in (int, float) and -_LARGEST < value < _LARGEST
  )


def is_distribution(value: Any, rounding: float = _ROUNDING) -> bool:
  """Whether these are probabilities that add up to at most 1, or None."""
  if value is None:
    return True
  return (
    isinstance(value, list)
    and all(type(p) in (int, float) and 0 <= p <= 1 + rounding for p in value)
    and sum(value) <= 1 + rounding
  )


def _has_nan(value: Any) -> bool:
  return (
    isinstance(value, list)
    and all(type(p) in (int, float) for p in value)
    and any(p != p for p in value)
  )


def _is_list_of(is_right, value: Any) -> bool:
  return isinstance(value, list) and all(map(is_right, value))


_FIELDS = {
  'example_id': (_is_text, 'text'),
  'seed': (_is_count, 'a whole number of at least 0'),
  'score': (is_number, 'a finite number or null'),
  'prediction': (is_number, 'a finite number or null'),
  'distributions': (
    lambda v: _is_list_of(is_distribution, v),
    'a list of probabilities of the scores, or null, for each CoT',
  ),
  'decoded': (
    lambda v: _is_list_of(is_number, v),
    'a list of a finite number or null for each CoT',
  ),
  'cots': (lambda v: _is_list_of(_is_text, v), 'a list of texts'),
  'finish_reasons': (lambda v: _is_list_of(_is_text, v), 'a list of texts'),
  'invalid_reason': (
    lambda v: v is None or _is_text(v),
    'text or null',
  ),
  'category': (_is_text, 'text'),
  'human_score': (is_number, 'a finite number or null'),
  'pair_id': (_is_text, 'text'),
  'cot_tokens': (
    lambda v: _is_list_of(_is_count, v),
    'a list of whole numbers of at least 0',
  ),
}
