"""The text of a target, and what of a raw row's text goes into it.

In: feedback, prompts and scores as they stand in data files. Out: the strings
that are tokenised. A target reads

  <feedback words> So the overall score is 4

and the end token follows it: no full stop, no "[RESULT]". Axes: Y score grid.
"""

from collections.abc import Sequence
import re

import numpy as np

from tract_jax import types

MARKER = 'So the overall score is'
RESULT = '[RESULT]'

# What benchmark files leave behind the last word of a formatted prompt.
_STRAY = ' \t\r\n,"\''
_NUMBER = r'\s*([-+]?\d+(?:\.\d+)?)'
# Attributes are out of a format's reach, and so are widths that fill memory.
_FORMAT = re.compile(
  r'(?!.*\d{3})[^{}]{0,20}\{0?(:[^{}]{0,20})?\}[^{}]{0,20}', re.DOTALL
)
# So large, and no larger, that the square of an error is a float32, too.
_LARGEST = 1e9


def strip_cot(feedback: str, marker: str = MARKER) -> str:
  """The CoT of an annotator's feedback, without marker words and score.

  What stands before the last marker, since some texts say it earlier, too;
  before the last "[RESULT]" where there is no marker; all of it where there is
  neither. Trailing space goes.

  Args:
    feedback: for example "Clear. So the overall score is 4. [RESULT] 4".
    marker: the fixed words between CoT and score; not empty.

  Returns:
    For the example, "Clear."
  """
  for ending in (marker, RESULT):
    head, found, _ = feedback.rpartition(ending)
    if found:
      return head.rstrip()
  return feedback.rstrip()


def stated_score(feedback: str, marker: str = MARKER) -> float | None:
  """The score that a feedback text itself names, for comparison only.

  Args:
    feedback: as for `strip_cot`.
    marker: the fixed words between CoT and score; not empty.

  Returns:
    The number behind the last marker or, without one, behind the last
    "[RESULT]"; None where there is none.
  """
  for ending in (marker, RESULT):
    _, found, tail = feedback.rpartition(ending)
    if found:
      number = re.match(_NUMBER, tail)
      return float(number[1]) if number else None
  return None


def target_text(cot: str, score_text: str, marker: str) -> str:
  """What the model is to write after a prompt.

  Args:
    cot: chain of thought without marker and score; "" where none.
    score_text: str(y).
    marker: the fixed words before the score; "" for the score alone.

  Returns:
    "<cot> <marker> <score>", without the parts that are empty.

  Example:
    >>> target_text('Clear.', '4', MARKER)
    'Clear. So the overall score is 4'
    >>> target_text('', '4', '')
    '4'
  """
  return ' '.join(part for part in (cot.rstrip(), marker, score_text) if part)


def clean_prompt(text: str) -> str:
  """A formatted prompt without stray trailing spaces, commas and quotes.

  Args:
    text: for example '###Feedback: ",'.

  Returns:
    For the example, '###Feedback:'. Nothing before the last other character
    changes.
  """
  return text.rstrip(_STRAY)


def make_score_grid(
  values: Sequence[float], score_format: str = '{:g}'
) -> types.ScoreGrid:
  """The score grid of a config.

  Args:
    values: [Y] the scores a judge may give, ascending.
    score_format: a format of Python that writes a score, giving str(y).

  Returns:
    The values and their texts.

  Raises:
    types.InputError: an empty grid, a value that is no finite number, values
      that do not ascend, or a format that fails, writes nothing or writes two
      scores alike.
  """
  problems = [
    f'score.grid: {value!r} is not a finite number of at most {_LARGEST:g}'
    for value in values
    if isinstance(value, bool)
    or not isinstance(value, int | float)
    or not -_LARGEST <= value <= _LARGEST
  ]
  if not values:
    problems.append('score.grid: is empty; name at least one score')
  if problems:
    raise types.InputError('\n'.join(problems))
  numbers = tuple(float(value) for value in values)
  for low, high in zip(numbers, numbers[1:], strict=False):
    # Predictions are of this type.
    if np.float32(low) >= np.float32(high):
      problems.append(f'score.grid: {high:g} does not ascend after {low:g}')
  if problems:
    raise types.InputError('\n'.join(problems))
  return types.ScoreGrid(numbers, _score_texts(numbers, score_format))


def _score_texts(
  numbers: tuple[float, ...], score_format: str
) -> tuple[str, ...]:
  """str(y) of every score, distinct and without spaces around."""
  if not _FORMAT.fullmatch(score_format):
    raise types.InputError(
      f'score.format: {score_format!r} does not format a number: it has to have'
      ' one field, such as {:g}, of at most 99 columns, and few words'
    )
  try:
    texts = tuple(score_format.format(number) for number in numbers)
  except (ValueError, IndexError, KeyError, AttributeError) as error:
    raise types.InputError(
      f'score.format: {score_format!r} does not format a number: {error}'
    ) from error
  seen: dict[str, float] = {}
  problems = []
  for number, text in zip(numbers, texts, strict=True):
    if not text or text != text.strip():
      problems.append(
        f'score.format: {score_format!r} writes {number!r} as {text!r}, which '
        'is empty or has spaces around it'
      )
    if text in seen:
      problems.append(
        f'score.grid: {seen[text]!r} and {number!r} both read {text!r} in '
        f'score.format {score_format!r}'
      )
    seen.setdefault(text, number)
  if problems:
    raise types.InputError('\n'.join(problems))
  return texts
