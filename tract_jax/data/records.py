"""Data files as examples: JSON lists, JSONL and parquet, checked row by row.

In: a file and the score grid. Out: types.Example records and a report of what
was averaged, converted or does not agree. data/row_kinds says which columns a
row may have. A row that is only to be judged needs no rating.

A bad row is never skipped: all problems of a file are raised at once, a line
each. Axis: Y score grid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import math
import numbers
import reprlib
import statistics
from typing import Any

from tract_jax import types
from tract_jax.data import row_files, row_kinds
from tract_jax.text import prompt_template, prompts

ROLES = ('train', 'eval', 'judge')
_ID_COLUMNS = ('example_id', 'id', 'uuid')


@dataclasses.dataclass(frozen=True)
class ReadReport:
  """What reading a file came upon, besides its examples.

  Attributes:
    name: of the file.
    num_rows: rows read.
    num_averaged: rows whose score is the mean of several ratings.
    num_first_rating: rows of which the first of several ratings was taken.
    num_text_scores: rows with a score written as text, such as "4".
    num_score_differs: rows whose feedback names another score than the
      rater's, which is the one that is used.
    num_without_cot: rows without feedback.
    num_without_score: rows without rating.
    num_pairs: preference rows, each of them two examples now.
  """

  name: str
  num_rows: int
  num_averaged: int
  num_first_rating: int
  num_text_scores: int
  num_score_differs: int
  num_without_cot: int
  num_without_score: int = 0
  num_pairs: int = 0


_AS_PUBLISHED = row_kinds.RowFormat()


def read_examples(
  path: str,
  grid: types.ScoreGrid,
  *,
  role: str,
  marker: str = prompts.MARKER,
  max_examples: int | None = None,
  row_format: row_kinds.RowFormat = _AS_PUBLISHED,
  name: str = '',
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
    row_format: the template, the reference answer and the columns' names.
    name: of the file, for messages; "" for its path.

  Returns:
    The examples in the file's order, and the report.

  Raises:
    types.InputError: a file that cannot be read, or bad rows: a line each, 20
      at most, as "judge.json: row 3 (id 83): score 7 is outside the grid 1..5".
  """
  rows, places = row_files.read_rows(path, max_examples)
  return examples_from_rows(
    rows,
    grid,
    role=role,
    marker=marker,
    name=name or path,
    places=places,
    row_format=row_format,
  )


def examples_from_rows(
  rows: Sequence[Mapping[str, Any]],
  grid: types.ScoreGrid,
  *,
  role: str,
  marker: str = prompts.MARKER,
  name: str,
  places: Sequence[str] | None = None,
  row_format: row_kinds.RowFormat = _AS_PUBLISHED,
) -> tuple[list[types.Example], ReadReport]:
  """Checks rows and turns them into examples.

  Args:
    rows: with the columns of one of data/row_kinds.
    grid: scores have to lie within it.
    role: "train", "eval" or "judge", as for `read_examples`.
    marker: the fixed words between CoT and score.
    name: of the source, for messages.
    places: of each row, for messages; None: "row 1", "row 2" ...
    row_format: the template, the reference answer and the columns' names.

  Returns:
    The examples in order, and the report. A preference row gives two, the
    chosen response first.

  Raises:
    types.InputError: no rows, or bad ones.
  """
  if role not in ROLES:
    raise ValueError(f'role {role!r} is none of {", ".join(ROLES)}')
  if not rows:
    raise types.InputError(f'{name}: is empty; at least one row is needed')
  places = places or [f'row {i}' for i in range(1, len(rows) + 1)]
  row_kinds.check_columns(rows, row_format.fields, name)
  rows = [row_kinds.renamed(row, row_format.fields) for row in rows]
  ids, problems = _example_ids(rows)
  examples: dict[str, types.Example] = {}
  seen = Counter[str]()
  for i, row in enumerate(rows):
    try:
      if i in problems:
        raise row_kinds.RowError(problems[i])
      judged = row_kinds.judgements(row, row_format, grid, role)
      for judgement in judged:
        example, notes = _example(judgement, row, ids[i], grid, role, marker)
        if example.example_id in examples:
          raise row_kinds.RowError(f'another row is {example.example_id!r}')
        examples[example.example_id] = example
        seen.update(notes)
      seen['num_pairs'] += len(judged) > 1
    except row_kinds.RowError as error:
      shown = ids[i] if ids[i].isprintable() else repr(ids[i])
      problems[i] = f'{name}: {places[i]} (id {shown}): {error}'
  lines = [problems[i] for i in sorted(problems)]
  types.raise_problems(lines, 'more rows', f'{name}: ')
  report = ReadReport(name, len(rows), **{key: seen[key] for key in _NOTES})
  return list(examples.values()), report


def _example_ids(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[str], dict[int, str]]:
  """An id for each row, and the problems of explicit ids by row."""
  row_numbers = [str(i) for i in range(1, len(rows) + 1)]
  if not all(isinstance(row, Mapping) for row in rows):
    return row_numbers, {}
  if any(_own_id(row) for row in rows):
    return _explicit_ids(rows, row_numbers)
  pairs = [(row.get('idx'), row.get('response_source')) for row in rows]
  joined = [f'{idx}-{source}' for idx, source in pairs]
  if any(None in pair for pair in pairs) or len(set(joined)) < len(joined):
    return row_numbers, {}
  return joined, {}


def _own_id(row: Mapping[str, Any]) -> tuple[str, Any] | None:
  """(column, id) of the first column that has one; None where none has."""
  found = ((name, row.get(name)) for name in _ID_COLUMNS)
  return next((each for each in found if each[1] is not None), None)


def _explicit_ids(
  rows: Sequence[Mapping[str, Any]], row_numbers: list[str]
) -> tuple[list[str], dict[int, str]]:
  ids, problems = list(row_numbers), {}
  first: dict[str, int] = {}
  for i, row in enumerate(rows):
    column, value = _own_id(row) or ('id', None)
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
  'num_pairs',
)


def _example(
  judgement: row_kinds.Judgement,
  row: Mapping[str, Any],
  row_id: str,
  grid: types.ScoreGrid,
  role: str,
  marker: str,
) -> tuple[types.Example, list[str]]:
  """One judgement of a row, and which of _NOTES apply to it."""
  prompt, side = judgement.prompt, judgement.side
  if not prompt.strip():
    raise row_kinds.RowError('its prompt is empty')
  ratings = tuple(_score(value, grid) for value in judgement.scores)
  feedbacks = judgement.feedbacks if ratings else []
  if not ratings and role != 'judge' and not side:
    raise row_kinds.RowError('it has no rating')
  shared = judgement.shares_feedback
  feedback = row_kinds.text((feedbacks or [''])[0], 'feedback')
  notes = [] if ratings else ['num_without_score']
  used = ratings[:1] if role == 'train' and not shared else ratings
  if len(ratings) > 1:
    notes.append('num_averaged' if len(used) > 1 else 'num_first_rating')
  if any(isinstance(value, str) for value in judgement.scores):
    notes.append('num_text_scores')
  score = _mean(used)
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
  pair_id = row_kinds.text(row_id, 'id')
  ending = f'-{side}' if side else ''
  example = types.Example(
    example_id=pair_id + ending,
    prompt=prompt,
    score=score,
    cot=cot,
    cot_source='annotator' if cot else 'none',
    ratings=ratings,
    category=_category(row, is_pair=bool(side)),
    sampling_id=_sampling_id(row, prompt, ending) if role == 'judge' else '',
    human_score=_human_score(row),
    pair_id=pair_id if side else '',
    judged=judgement.judged,
    response='' if role == 'train' else _response(judgement, row),
    response_source=_shown(row.get('response_source')),
  )
  return example, notes


def _category(row: Mapping[str, Any], *, is_pair: bool) -> str:
  category = row.get('category')
  if category is None and is_pair:
    category = row.get('subset')
  return row_kinds.text(category, 'category')


def _human_score(row: Mapping[str, Any]) -> float | None:
  """The mean of those that are there."""
  values = row_kinds.as_list(row.get('human_score'))
  return _mean([_number(v, 'human_score') for v in values if v is not None])


def _response(judgement: row_kinds.Judgement, row: Mapping[str, Any]) -> str:
  """What is judged: by a column, or by the prompt's headings."""
  known = [judgement.response, row.get('response'), row.get('orig_response')]
  return next(
    (text for value in known if (text := _shown(value).strip())),
    prompt_template.response_of(judgement.prompt),
  )


def _shown(value: Any) -> str:
  """`value`, if it is text that can be written; else ""."""
  try:
    return row_kinds.text(value, '')
  except row_kinds.RowError:
    return ''


def _mean(values: Sequence[float]) -> float | None:
  return statistics.mean(values) if values else None


def _sampling_id(row: Mapping[str, Any], prompt: str, ending: str) -> str:
  """The row's own id, or a digest of its prompt: no row's number."""
  if own := _own_id(row):
    return f'{own[1]}{ending}'
  idx, source = row.get('idx'), row.get('response_source')
  if idx is not None and source is not None:
    return f'{idx}-{source}{ending}'
  return hashlib.sha256(prompt.encode()).hexdigest()


def _score(value: Any, grid: types.ScoreGrid) -> float:
  """A rating as a number within the grid."""
  number = _number(value, 'score')
  if not grid.values[0] <= number <= grid.values[-1]:
    raise row_kinds.RowError(
      f'score {number:g} is outside the grid {grid.texts[0]}..{grid.texts[-1]}'
    )
  return number


def _number(value: Any, what: str) -> float:
  """A finite number, which may be written as text."""
  is_text = isinstance(value, str)
  is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  # Python reads "1_0" as 10.
  if not is_number and not is_text or is_text and '_' in value:
    raise row_kinds.RowError(f'{what} {reprlib.repr(value)} is no number')
  try:
    number = float(value)
  except ValueError as error:
    raise row_kinds.RowError(
      f'{what} {reprlib.repr(value)} is no number'
    ) from error
  except OverflowError as error:
    raise row_kinds.RowError(f'{what} is no number of a usual size') from error
  if not math.isfinite(number):
    raise row_kinds.RowError(f'{what} {reprlib.repr(value)} is not finite')
  return number
