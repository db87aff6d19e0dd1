"""Data files as examples: JSON lists, JSONL and parquet, checked row by row.

In: a file and the score grid. Out: types.Example records and a report of what
was averaged, converted or does not agree. Three kinds of rows are known by
their columns:

  Feedback Collection  instruction, output "<feedback> [RESULT] <score>", and
                       orig_feedback, orig_score where present
  benchmark            instruction, gpt4_score (a number or a list) and
                       gpt4_feedback (a text or a list)
  plain                prompt or instruction, score (a number or a list), and
                       cot where present: a text for all ratings together, or
                       a list with one for each

A row that is only to be judged needs no rating: prompt or instruction will do.
A bad row is never skipped: all problems of a file are raised at once, a line
each. Axis: Y score grid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import math
import numbers
from typing import Any

from tract_jax import types
from tract_jax.data import row_files
from tract_jax.text import prompts

ROLES = ('train', 'eval', 'judge')
_NEEDED = (
  '"instruction" with "output" or "gpt4_score", or "prompt" with "score"'
)
_ID_COLUMNS = ('example_id', 'id', 'uuid')
_MAX_LINES = 20


@dataclasses.dataclass(frozen=True)
class ReadReport:
  """What reading a file came upon, besides its examples.

  Attributes:
    name: of the file.
    num_rows: rows read, all of them examples now.
    num_averaged: rows whose score is the mean of several ratings.
    num_first_rating: rows of which the first of several ratings was taken.
    num_text_scores: rows with a score written as text, such as "4".
    num_score_differs: rows whose feedback names another score than the
      rater's, which is the one that is used.
    num_without_cot: rows without feedback.
    num_without_score: rows without rating.
  """

  name: str
  num_rows: int
  num_averaged: int
  num_first_rating: int
  num_text_scores: int
  num_score_differs: int
  num_without_cot: int
  num_without_score: int = 0


@dataclasses.dataclass(frozen=True)
class _Judgement:
  """A row's parts, whatever its columns were called.

  Attributes:
    prompt: the formatted prompt.
    scores: ratings as they stand in the row.
    feedbacks: the text written for each rating; [] where none.
    shared: the one feedback belongs to all ratings together.
  """

  prompt: Any
  scores: list
  feedbacks: list
  shared: bool = False


class _RowError(Exception):
  """Why a row is refused; it becomes a line of an InputError."""


def read_examples(
  path: str,
  grid: types.ScoreGrid,
  *,
  role: str,
  marker: str = prompts.MARKER,
  max_examples: int | None = None,
) -> tuple[list[types.Example], ReadReport]:
  """Reads a data file.

  Args:
    path: a JSON list, JSONL or parquet file; its content tells which.
    grid: scores have to lie within it.
    role: "train" takes the first of several ratings, with the feedback that was
      written for it, or their mean where one CoT belongs to all of them;
      "eval" takes their mean; "judge" does, too, or none.
    marker: the fixed words between CoT and score.
    max_examples: only the first so many rows; None: all.

  Returns:
    The examples in the file's order, and the report.

  Raises:
    types.InputError: a file that cannot be read, or bad rows: a line each, 20
      at most, as "judge.json: row 3 (id 83): score 7 is outside the grid 1..5".
  """
  rows, places = row_files.read_rows(path, max_examples)
  return examples_from_rows(
    rows, grid, role=role, marker=marker, name=path, places=places
  )


def examples_from_rows(
  rows: Sequence[Mapping[str, Any]],
  grid: types.ScoreGrid,
  *,
  role: str,
  marker: str = prompts.MARKER,
  name: str,
  places: Sequence[str] | None = None,
) -> tuple[list[types.Example], ReadReport]:
  """Checks rows and turns them into examples.

  Args:
    rows: with the columns of one of the kinds above.
    grid: scores have to lie within it.
    role: "train", "eval" or "judge", as for `read_examples`.
    marker: the fixed words between CoT and score.
    name: of the source, for messages.
    places: of each row, for messages; None: "row 1", "row 2" ...

  Returns:
    The examples in order, and the report.

  Raises:
    types.InputError: no rows, or bad ones.
  """
  if role not in ROLES:
    raise ValueError(f'role {role!r} is none of {", ".join(ROLES)}')
  if not rows:
    raise types.InputError(f'{name}: is empty; at least one row is needed')
  places = places or [f'row {i}' for i in range(1, len(rows) + 1)]
  ids, problems = _example_ids(rows)
  examples, seen = [], Counter[str]()
  for i, row in enumerate(rows):
    try:
      if i in problems:
        raise _RowError(problems[i])
      example, notes = _example(row, ids[i], grid, role, marker)
      examples.append(example)
      seen.update(notes)
    except _RowError as error:
      problems[i] = f'{name}: {places[i]} (id {ids[i]}): {error}'
  if problems:
    lines = [problems[i] for i in sorted(problems)]
    if len(lines) > _MAX_LINES:
      lines[_MAX_LINES:] = [f'{name}: and {len(lines) - _MAX_LINES} more rows']
    raise types.InputError('\n'.join(lines))
  counts = {key: seen[key] for key in _NOTES}
  return examples, ReadReport(name, len(examples), **counts)


def _example_ids(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[str], dict[int, str]]:
  """An id for each row, and the problems of explicit ids by row."""
  row_numbers = [str(i) for i in range(1, len(rows) + 1)]
  if not all(isinstance(row, Mapping) for row in rows):
    return row_numbers, {}
  for column in _ID_COLUMNS:
    if any(column in row for row in rows):
      return _explicit_ids(rows, column, row_numbers)
  pairs = [(row.get('idx'), row.get('response_source')) for row in rows]
  joined = [f'{idx}-{source}' for idx, source in pairs]
  if any(None in pair for pair in pairs) or len(set(joined)) < len(joined):
    return row_numbers, {}
  return joined, {}


def _explicit_ids(
  rows: Sequence[Mapping[str, Any]], column: str, row_numbers: list[str]
) -> tuple[list[str], dict[int, str]]:
  ids, problems = list(row_numbers), {}
  first: dict[str, int] = {}
  for i, row in enumerate(rows):
    value = row.get(column)
    if (
      isinstance(value, bool)
      or not isinstance(value, numbers.Integral | str)
      or value == ''
    ):
      problems[i] = f'{column} {value!r} is no text and no whole number'
      continue
    ids[i] = str(value)
    if ids[i] in first:
      problems[i] = (
        f'{column} stands in row {row_numbers[first[ids[i]]]} already'
      )
    first.setdefault(ids[i], i)
  return ids, problems


_NOTES = (
  'num_averaged',
  'num_first_rating',
  'num_text_scores',
  'num_score_differs',
  'num_without_cot',
  'num_without_score',
)


def _example(
  row: Any, example_id: str, grid: types.ScoreGrid, role: str, marker: str
) -> tuple[types.Example, list[str]]:
  """One row as an example, and which of _NOTES apply to it."""
  judgement = _judgement(row, role)
  prompt = _text(judgement.prompt, 'prompt')
  if not prompt:
    raise _RowError('its prompt is empty')
  ratings = tuple(_score(value, grid) for value in judgement.scores)
  feedbacks = judgement.feedbacks
  if role == 'judge' and not ratings:
    feedbacks = []
  elif not ratings:
    raise _RowError('it has no rating')
  shared = judgement.shared and len(ratings) > 1
  if len(feedbacks) not in (0, 1 if shared else len(ratings)):
    raise _RowError(f'{len(ratings)} ratings but {len(feedbacks)} feedbacks')
  feedback = _text((feedbacks or [''])[0], 'feedback')
  notes = [] if ratings else ['num_without_score']
  used = ratings[:1] if role == 'train' and not shared else ratings
  if len(ratings) > 1:
    notes.append('num_averaged' if len(used) > 1 else 'num_first_rating')
  if any(isinstance(value, str) for value in judgement.scores):
    notes.append('num_text_scores')
  score = math.fsum(used) / len(used) if used else None
  # A feedback belongs to the first rating, whatever score the role takes, or to
  # all of them, when it names their mean as nearly as the grid can.
  rated = ratings[:1]
  if shared and score is not None:
    rated = (grid.values[grid.nearest(score)],)
  if prompts.stated_score(feedback, marker) not in (None, *rated):
    notes.append('num_score_differs')
  cot = prompts.strip_cot(feedback, marker)
  if not cot:
    notes.append('num_without_cot')
  example = types.Example(
    example_id=_text(example_id, 'id'),
    prompt=prompt,
    score=score,
    cot=cot,
    cot_source='annotator' if cot else 'none',
    ratings=ratings,
    category=_text(row.get('category', ''), 'category'),
    sampling_id=_sampling_id(row, prompt) if role == 'judge' else '',
  )
  return example, notes


def _sampling_id(row: Mapping[str, Any], prompt: str) -> str:
  """The row's own id, or a digest of its prompt: no row's number."""
  for column in _ID_COLUMNS:
    if column in row:
      return str(row[column])
  idx, source = row.get('idx'), row.get('response_source')
  if idx is not None and source is not None:
    return f'{idx}-{source}'
  return hashlib.sha256(prompt.encode()).hexdigest()


def _judgement(row: Any, role: str) -> _Judgement:
  """A row's parts, found by its columns."""
  if not isinstance(row, Mapping):
    raise _RowError(f'is {type(row).__name__}, not an object with columns')
  if 'gpt4_score' in row and 'instruction' in row:
    return _Judgement(
      prompt=_clean(row['instruction']),
      scores=_as_list(row['gpt4_score']),
      feedbacks=_as_list(row.get('gpt4_feedback')),
    )
  if 'output' in row and 'instruction' in row:
    output = _text(row['output'], 'output')
    score = row.get('orig_score')
    if score is None:
      _, found, score = output.rpartition(prompts.RESULT)
      if not found and role == 'judge':
        return _Judgement(_clean(row['instruction']), [], [])
      if not found:
        raise _RowError('has no orig_score, and no [RESULT] in its output')
    return _Judgement(_clean(row['instruction']), [score], [output])
  prompt = row.get('prompt', row.get('instruction'))
  if prompt is not None and 'score' in row:
    cot = row.get('cot')
    return _Judgement(
      prompt, _as_list(row['score']), _as_list(cot), isinstance(cot, str)
    )
  if prompt is not None and role == 'judge':
    return _Judgement(prompt if 'prompt' in row else _clean(prompt), [], [])
  needed = '"prompt" or "instruction"' if role == 'judge' else _NEEDED
  raise _RowError(
    f'its columns are {", ".join(map(str, row)) or "none"}; needed are {needed}'
  )


def _clean(prompt: Any) -> Any:
  return prompts.clean_prompt(prompt) if isinstance(prompt, str) else prompt


def _as_list(value: Any) -> list:
  if value is None:
    return []
  return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any, what: str) -> str:
  """`value` as text that can be tokenised and written."""
  if value is None:
    return ''
  if not isinstance(value, str):
    raise _RowError(f'{what} is {type(value).__name__}, not text')
  try:
    value.encode('utf-8')
  except UnicodeEncodeError as error:
    raise _RowError(
      f'{what} has half a surrogate pair at character {error.start}'
    ) from error
  return value


def _score(value: Any, grid: types.ScoreGrid) -> float:
  """A rating as a number within the grid."""
  if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
    raise _RowError(f'score {value!r} is no number')
  try:
    number = float(value)
  except (ValueError, OverflowError) as error:
    raise _RowError(f'score {value!r} is no number') from error
  if not math.isfinite(number):
    raise _RowError(f'score {value!r} is not finite')
  if not grid.values[0] <= number <= grid.values[-1]:
    raise _RowError(
      f'score {number:g} is outside the grid {grid.texts[0]}..{grid.texts[-1]}'
    )
  return number
