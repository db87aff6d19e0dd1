"""The template of a judge's prompt, and the parts of a row that fill it.

In: instruction, response, reference answer and rubric. Out: the prompt. A
template is text with fields in braces, each replaced once by the part as it
stands: no format of Python is evaluated, and what a judged text holds in
braces stays text.

  {instruction} {response} {reference_answer} {rubric}   the row's
  {best} {scores}                                        the score grid's
"""

from collections.abc import Iterator, Mapping
import dataclasses
import re

from tract_jax import types

FIELDS = (
  'instruction',
  'response',
  'reference_answer',
  'rubric',
  'best',
  'scores',
)
# Headings as in Feedback Collection, whose wording the benchmarks share.
DEFAULT = """\
###Task Description:
Given are an instruction (it may hold an input), a response to evaluate, \
a reference answer that gets a score of {best}, and a score rubric.
1. Assess the response by the score rubric alone, and say in detail why.
2. Then give the response one of the scores {scores}.
3. Write the feedback and the score, and nothing else.

###The instruction to evaluate:
{instruction}

###Response to evaluate:
{response}

###Reference Answer (Score {best}):
{reference_answer}

###Score Rubrics:
{rubric}

###Feedback:"""
_FIELD = re.compile(r'\{([A-Za-z_][^{}\s"]*)\}')
_JUDGED = ('instruction', 'response', 'reference_answer')
_INSTRUCTION = '\n###The instruction to evaluate:'
_RESPONSE = '\n###Response to evaluate:'
_REFERENCE = '\n###Reference Answer'
_RUBRIC = '\n###Score Rubrics:'
_WORDS = re.compile(r', a reference answer that gets a score of [^,\n]+,')


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a prompt is made of.

  Attributes:
    instruction: what was asked.
    response: what is judged.
    reference_answer: one that gets the best score; "" where none.
    rubric: what is judged by; "" for helpfulness in general.
  """

  instruction: str
  response: str
  reference_answer: str = ''
  rubric: str = ''


def problems(template: str) -> Iterator[str]:
  """What is wrong with a template's fields, a line each."""
  names = [match[1] for match in _FIELD.finditer(template)]
  for name in dict.fromkeys(names):
    if name not in FIELDS:
      fields = ', '.join(f'{{{field}}}' for field in FIELDS)
      yield f'{{{name}}} is no field; there are {fields}'
  if 'response' not in names:
    yield 'has no field {response}'
  elif '{response}' not in without_reference(template):
    yield (
      'has {response} between "###Reference Answer" and "###Score Rubrics:", '
      'where it is left out with the reference answer; put it before or after'
    )


def render(template: str, parts: Parts, grid: types.ScoreGrid) -> str:
  """The prompt of a row.

  Args:
    template: without `problems`. Where there is no reference answer, its
      section is left out as `without_reference` does.
    parts: of the row.
    grid: the scores.

  Returns:
    The text; parts stand in it as they are.
  """
  return ''.join(text for _, text in _pieces(template, parts, grid))


def judged_span(
  template: str, parts: Parts, grid: types.ScoreGrid
) -> tuple[int, int]:
  """Which part of a prompt may be cut where it is too long.

  Args:
    template, parts, grid: as for `render`.

  Returns:
    The characters (from, to) from the first to the last of instruction,
    response and reference answer that have neither the rubric nor the scores
    between them; of several such parts the longest.
  """
  spans: list[tuple[int, int]] = []
  end, is_open = 0, False
  for name, text in _pieces(template, parts, grid):
    begin, end = end, end + len(text)
    if name in _JUDGED:
      spans.append((spans.pop()[0] if is_open else begin, end))
    is_open = name in _JUDGED or (is_open and name not in ('rubric', 'scores'))
  return max(spans, key=lambda span: span[1] - span[0])


def _pieces(
  template: str, parts: Parts, grid: types.ScoreGrid
) -> Iterator[tuple[str, str]]:
  """(name of the field, or "", and its text) from the prompt's start on."""
  if not parts.reference_answer:
    template = without_reference(template)
  values: Mapping[str, str] = {
    **dataclasses.asdict(parts),
    'rubric': parts.rubric or helpfulness(grid),
    'best': grid.texts[-1],
    'scores': ', '.join(grid.texts),
  }
  end = 0
  for match in _FIELD.finditer(template):
    yield '', template[end : match.start()]
    yield match[1], values[match[1]]
    end = match.end()
  yield '', template[end:]


def without_reference(prompt: str) -> str:
  """A prompt or template without its reference answer.

  The section from the heading "###Reference Answer" to "###Score Rubrics:"
  goes, and ", a reference answer that gets a score of 5," in the task's
  description. Of headings that stand several times, in a judged response for
  one, the last are meant. A prompt without such a section stays as it is.

  Args:
    prompt: with the headings of Feedback Collection.

  Returns:
    The rest of the text.
  """
  end = prompt.rfind(_RUBRIC)
  start = prompt.rfind(_REFERENCE, 0, max(end, 0))
  if start < 0:
    return prompt
  task_end = max(prompt.find(_INSTRUCTION), 0)
  task = _WORDS.sub('', prompt[:task_end], count=1)
  return task + prompt[task_end:start] + prompt[end:]


def response_of(prompt: str) -> str:
  """The judged response in a formatted prompt.

  Args:
    prompt: with the headings of Feedback Collection.

  Returns:
    What stands from the first heading of the response to the last one of what
    follows it, without space around; "" where there is no such section.
  """
  _, found, rest = prompt.partition(_RESPONSE)
  for heading in (_REFERENCE, _RUBRIC):
    response, is_closed, _ = rest.rpartition(heading)
    if is_closed:
      return response.strip()
  return ''


def rubric_of(prompt: str) -> str:
  """What a formatted prompt is judged by, in its rubric's first line.

  Args:
    prompt: with the headings of Feedback Collection.

  Returns:
    The line, without brackets around; "" where there is no rubric.
  """
  return rubric_text(prompt).partition('\n')[0].strip('[] ')


def rubric_text(prompt: str) -> str:
  """The whole rubric of a formatted prompt: criteria and scores' descriptions.

  Args:
    prompt: with the headings of Feedback Collection.

  Returns:
    What stands behind the rubric's heading, up to the next one; "" where there
    is no rubric.
  """
  _, found, rest = prompt.rpartition(_RUBRIC)
  return rest.partition('\n###')[0].strip() if found else ''


def helpfulness(grid: types.ScoreGrid) -> str:
  """The rubric of rows that have none."""
  lines = [
    '[Is the response helpful: does it do what the instruction asks, correctly,'
    ' completely, clearly and without harm?]'
  ]
  if len(grid.texts) > 1:
    lines += [
      f'Score {grid.texts[0]}: It fails to help, misleads or does harm.',
      f'Score {grid.texts[-1]}: It helps as well as a response can.',
    ]
  return '\n'.join(lines)
