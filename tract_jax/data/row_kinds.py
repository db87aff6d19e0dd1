"""From a row's columns to the parts of its judgements, whatever it is called.

In: a row, as it stands in a file. Out: one `Judgement` of it, or two of a
preference row. The kinds are known by their columns:

  Feedback Collection  instruction (the formatted prompt), output "<feedback>
                       [RESULT] <score>", and orig_* where present
  benchmark            instruction (the formatted prompt), gpt4_score (a number
                       or a list), gpt4_feedback, human_score
  plain                prompt (formatted), or instruction (or prompt) and
                       response with reference_answer and rubric; score (a
                       number or a list); cot or feedback: a text for all
                       ratings, or a list with one for each
  preference           prompt or instruction, chosen, rejected, subset

A formatted prompt stands as it is, unless a template is given.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from tract_jax import types
from tract_jax.text import prompt_template, prompts

# Names that `RowFormat.fields` may give to a file's columns.
FIELDS = (
  *('example_id', 'category', 'prompt', 'instruction', 'response'),
  *('reference_answer', 'rubric', 'score', 'human_score', 'cot'),
  *('chosen', 'rejected'),
)
_NEEDED = (
  '"instruction" with "output" or "gpt4_score", "prompt" with "score", '
  '"instruction" with "response" and "score", or "chosen" with "rejected"'
)
_RATINGS = {'gpt4_score', 'output', 'orig_score', 'score'}
# A prompt, and which of its characters may be cut.
_Prompt = tuple[str, tuple[int, int] | None]
_PAIR = {'chosen', 'rejected'}
_DESCRIPTION = re.compile(r'(?:orig_)?score(-?\d+(?:\.\d+)?)_description')


@dataclasses.dataclass(frozen=True)
class RowFormat:
  """How rows are read.

  Attributes:
    template: of prompts, see text/prompt_template; "" for our own, and for
      formatted prompts as they are.
    use_reference: whether reference answers stand in prompts.
    fields: {a name of FIELDS: the file's column}.
  """

  template: str = ''
  use_reference: bool = True
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Judgement:
  """A row's parts, whatever its columns were called.

  Attributes:
    prompt: the formatted prompt.
    scores: ratings as they stand in the row.
    feedbacks: the text written for each rating, or one for all of them; []
      where none.
    side: "chosen" or "rejected" of a preference row; else "".
    judged: characters of the prompt that may be cut, where a template says so.
    response: what is judged of a preference row; else "".
  """

  prompt: str
  scores: list
  feedbacks: list
  side: str = ''
  judged: tuple[int, int] | None = None
  response: str = ''

  @property
  def shares_feedback(self) -> bool:
    """Whether one feedback belongs to several ratings together."""
    return len(self.feedbacks) == 1 < len(self.scores)


class RowError(Exception):
  """Why a row is refused; it becomes a line of an InputError."""


def check_columns(
  rows: Sequence[Any], fields: Mapping[str, str], name: str
) -> None:
  """Refuses fields that no row has a column for.

  Args:
    rows: of a file.
    fields: {a name of FIELDS: the file's column}.
    name: of the file.

  Raises:
    types.InputError: a line for each such column.
  """
  lines = []
  for field, column in fields.items():
    if not any(isinstance(r, Mapping) and column in r for r in rows):
      columns = rows[0] if rows and isinstance(rows[0], Mapping) else ()
      lines.append(
        f'{name}: config.data.fields: {field}={column}: no row has a column '
        f'{column!r}; its columns are {_names(columns)}'
      )
  if lines:
    raise types.InputError('\n'.join(lines))


def renamed(row: Any, fields: Mapping[str, str]) -> Any:
  """A row with the fields' values under our names; a missing one is absent."""
  if not fields or not isinstance(row, Mapping):
    return row
  rest = {key: value for key, value in row.items() if key not in fields}
  return rest | {ours: row[c] for ours, c in fields.items() if c in row}


def judgements(
  row: Any, row_format: RowFormat, grid: types.ScoreGrid, role: str
) -> list[Judgement]:
  """What a row has to be judged.

  Args:
    row: as of `renamed`.
    row_format: how rows are read.
    grid: the scores, for templates.
    role: "train", "eval" or "judge"; rows of the last need no score.

  Returns:
    One, or two of a preference row.

  Raises:
    RowError: the row is of no kind, or a part of it cannot be used.
  """
  if not isinstance(row, Mapping):
    raise RowError(f'is {type(row).__name__}, not an object with columns')
  for ours, column in row_format.fields.items():
    if ours not in row:
      raise RowError(
        f'has no column {column!r}, which config.data.fields takes as {ours}'
      )
  # Parquet gives each row the columns of all others, too: null says nothing.
  nulls = {column for column, value in row.items() if value is None}
  is_pair = _PAIR <= row.keys() and not _PAIR <= nulls
  row = {column: row[column] for column in row if column not in nulls}
  if is_pair:
    if role == 'train':
      raise RowError(
        'is a preference row (chosen, rejected): it has no score to train on; '
        'use it as a benchmark'
      )
    return [
      Judgement(prompt, [], [], side, judged, _pair_response(row, side))
      for side in ('chosen', 'rejected')
      for prompt, judged in [_pair_prompt(row, side, row_format, grid)]
    ]
  if role != 'judge' and _RATINGS & nulls and not _RATINGS & row.keys():
    raise RowError('it has no rating')
  has_prompt = 'prompt' in row or 'orig_response' in row
  if 'response' in nulls and not has_prompt and not _is_published(row):
    raise RowError('its response is empty')
  scores, feedbacks = _ratings(row, row_format.fields, role)
  prompt, judged = _prompt(row, row_format, grid)
  return [Judgement(prompt, scores, feedbacks, judged=judged)]


def text(value: Any, what: str) -> str:
  """`value` as text that can be tokenised and written; "" for None.

  Raises:
    RowError: it is no text, or holds half a surrogate pair.
  """
  if value is None:
    return ''
  if not isinstance(value, str):
    raise RowError(f'{what} is {type(value).__name__}, not text')
  try:
    value.encode('utf-8')
  except UnicodeEncodeError as error:
    raise RowError(
      f'{what} has half a surrogate pair at character {error.start}'
    ) from error
  return value


def as_list(value: Any) -> list:
  """A list as it is, one value as a list of it, None as an empty one."""
  if value is None:
    return []
  return list(value) if isinstance(value, list | tuple) else [value]


def _ratings(
  row: Mapping[str, Any], fields: Mapping[str, str], role: str
) -> tuple[list, list]:
  """A row's ratings and feedbacks, found by its columns."""
  shared = None
  is_formatted = _is_published(row) or 'score' not in row
  if 'gpt4_score' in row and 'instruction' in row and is_formatted:
    scores = as_list(row['gpt4_score'])
    feedbacks = as_list(row.get('gpt4_feedback'))
  elif 'output' in row and 'instruction' in row and is_formatted:
    scores, feedbacks = _rated_output(row, role)
  elif 'orig_score' in row and 'orig_response' in row:
    scores, feedbacks = [row['orig_score']], as_list(row.get('orig_feedback'))
  elif 'score' in row:
    scores = as_list(row['score'])
    shared = row.get('cot', row.get('feedback'))
    feedbacks = as_list(shared)
  elif role == 'judge':
    return [], []
  else:
    raise _unknown_kind(row, role)
  # Fields win over the columns that a kind is known by.
  if 'score' in fields:
    scores = as_list(row.get('score'))
  if 'cot' in fields:
    shared = row.get('cot')
    feedbacks = as_list(shared)
  # A text that is in no list belongs to all ratings of a plain row.
  allowed = (0, 1 if isinstance(shared, str) else len(scores))
  # Other people's ratings need not be as many as the annotator's feedbacks.
  are_of_one = 'score' not in fields or 'cot' in fields
  if scores and are_of_one and len(feedbacks) not in allowed:
    raise RowError(f'{len(scores)} ratings but {len(feedbacks)} feedbacks')
  return scores, feedbacks


def _rated_output(row: Mapping[str, Any], role: str) -> tuple[list, list]:
  output, score = text(row['output'], 'output'), row.get('orig_score')
  if score is None:
    _, found, score = output.rpartition(prompts.RESULT)
    if not found and role == 'judge':
      return [], []
    if not found:
      raise RowError('has no orig_score, and no [RESULT] in its output')
  return [score], [output]


def _prompt(
  row: Mapping[str, Any], row_format: RowFormat, grid: types.ScoreGrid
) -> _Prompt:
  """The formatted prompt that a row has, or one made of its parts."""
  fields = row_format.fields
  has_response = 'response' in fields or (
    'response' in row and not _is_published(row)
  )
  # Beside a response alone, "prompt" is what was asked.
  is_asked = fields.get('instruction') == 'prompt' or (
    has_response and 'instruction' not in row
  )
  if 'prompt' in row and not is_asked and not row_format.template:
    prompt = text(row['prompt'], 'prompt')
  elif 'instruction' in row and not has_response and not row_format.template:
    prompt = prompts.clean_prompt(text(row['instruction'], 'instruction'))
  else:
    return _rendered(_parts(row), row_format, grid)
  if not row_format.use_reference:
    prompt = prompt_template.without_reference(prompt)
  return prompt, None


def _is_published(row: Mapping[str, Any]) -> bool:
  """Whether "instruction" is a formatted prompt: it holds what is judged."""
  if 'instruction' not in row or not {'gpt4_score', 'output'} & row.keys():
    return False
  prompt = str(row['instruction'])
  return 'response' not in row or prompt_template.response_of(prompt) != ''


def _parts(row: Mapping[str, Any]) -> prompt_template.Parts:
  """Parts in the columns of Feedback Collection, or in plain ones."""
  prefix = 'orig_' if 'orig_response' in row and 'response' not in row else ''
  if f'{prefix}response' not in row:
    if 'prompt' in row or 'instruction' in row:
      raise RowError(
        'has only a formatted prompt, no "response" or "orig_response" for '
        'config.data.template'
      )
    raise _unknown_kind(row, 'judge')
  response = text(row[f'{prefix}response'], f'{prefix}response')
  if not response.strip():
    raise RowError(f'its {prefix}response is empty')
  column = f'{prefix}instruction'
  return prompt_template.Parts(
    instruction=text(row.get(column, row.get('prompt')), column),
    response=response,
    reference_answer=_reference(row, prefix),
    rubric=_rubric(row),
  )


def _reference(row: Mapping[str, Any], prefix: str = '') -> str:
  column = f'{prefix}reference_answer'
  return text(row.get(column), column)


def _rubric(row: Mapping[str, Any]) -> str:
  """A text, or an object or columns with criteria and a text per score."""
  rubric = row.get('rubric')
  if isinstance(rubric, str):
    return text(rubric, 'rubric')
  if rubric is not None and not isinstance(rubric, Mapping):
    raise RowError(f'rubric is {type(rubric).__name__}, not text or an object')
  columns = rubric or row
  criteria = columns.get('criteria', columns.get('orig_criteria'))
  if criteria is None:
    if rubric is not None:
      raise RowError(f'rubric has no "criteria", only {_names(rubric)}')
    return ''
  described = {
    float(match[1]): f'Score {match[1]}: {text(value, column)}'
    for column, value in columns.items()
    # Parquet has a column for every score, null where a rubric has no text.
    if value is not None and (match := _DESCRIPTION.fullmatch(str(column)))
  }
  lines = [described[score] for score in sorted(described)]
  return '\n'.join([f'[{text(criteria, "criteria")}]', *lines])


def _pair_prompt(
  row: Mapping[str, Any], side: str, row_format: RowFormat, grid
) -> _Prompt:
  """The prompt in which one response of a preference row is judged."""
  judged = row.get(side)
  response = _pair_response(row, side)
  if not text(response, side).strip():
    raise RowError(f'its {side} response is empty')
  column = 'prompt' if 'prompt' in row else 'instruction'
  asked = row.get(column)
  if asked is None and not isinstance(judged, str):
    column, asked = side, judged
  if isinstance(asked, list | tuple):
    asked = '\n\n'.join(_turns(asked, 'user', column))
  parts = prompt_template.Parts(
    text(asked, column), response, _reference(row), _rubric(row)
  )
  return _rendered(parts, row_format, grid)


def _pair_response(row: Mapping[str, Any], side: str) -> str:
  """A preference row's text on one side, or the last one's of a chat."""
  judged = row.get(side)
  if isinstance(judged, str):
    return judged
  return (_turns(judged, 'assistant', side) or [''])[-1]


def _turns(messages: Any, role: str, what: str) -> list[str]:
  """The texts of a role in a list of chat messages."""
  if not isinstance(messages, list | tuple) or not all(
    isinstance(m, Mapping) and {'role', 'content'} <= m.keys() for m in messages
  ):
    raise RowError(f'{what} is no text and no list of role and content')
  return [text(m['content'], what) for m in messages if m['role'] == role]


def _rendered(
  parts: prompt_template.Parts, row_format: RowFormat, grid: types.ScoreGrid
) -> _Prompt:
  if not row_format.use_reference:
    parts = dataclasses.replace(parts, reference_answer='')
  template = row_format.template or prompt_template.DEFAULT
  if '{instruction}' in template and not parts.instruction.strip():
    raise RowError('its instruction is missing or empty')
  prompt = prompt_template.render(template, parts, grid)
  if not row_format.template:  # Ours has headings.
    return prompt, None
  return prompt, prompt_template.judged_span(template, parts, grid)


def _unknown_kind(row: Mapping[str, Any], role: str) -> RowError:
  needed = _NEEDED
  if role == 'judge':
    needed = '"prompt" or "instruction"'
  return RowError(f'its columns are {_names(row)}; needed are {needed}')


def _names(columns: Any) -> str:
  """Columns in one line, whatever they are called."""
  names = (column if _is_plain(column) else repr(column) for column in columns)
  return ', '.join(names) or 'none'


def _is_plain(column: Any) -> bool:
  return isinstance(column, str) and column.isprintable()
