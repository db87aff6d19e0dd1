"""Cuts the middle out of prompts that are too long; nowhere else is text cut.

It is done once, where data is read, so that every stage, the sampler and the
prediction see the very same prompt. What may be cut is the judged text:

  ###Task Description: ...                      kept
  ###The instruction to evaluate:               kept
  Write a poem [...] until the morning.         cut in its middle
  ###Score Rubrics: ...                         kept, and all after it

The rubric's heading is the last of its words at a line's start, since judged
text may hold them, too. A text without the first heading keeps its first and
its last quarter, and the rubric anyway. A prompt of the user's template is cut
where it has the judged parts (`prompt_template.judged_span`).

In: text, a tokenizer, the room in tokens. Out: text.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import re

import numpy as np
import regex

from tract_jax import types
from tract_jax.text import score_tokens as score_tokens_lib
from tract_jax.text import tokenizer as tokenizer_lib

ELISION = ' [...] '
_JUDGED = re.compile(r'^###The instruction to evaluate:', re.MULTILINE)
_RUBRIC = re.compile(r'^###Score Rubrics', re.MULTILINE)
# How far a cut goes to meet a space, in characters.
_NEAR = 40


@dataclasses.dataclass(frozen=True)
class Room:
  """What a target needs beside its prompt.

  Attributes:
    max_length: tokens of prompt, CoT and score together; the end token is no
      input.
    score_tokens: of targets with CoT where any method of the run has one, else
      bare ones (marker "").
    max_new_tokens: of a sampled CoT; 0 without CoT.
  """

  max_length: int
  score_tokens: score_tokens_lib.ScoreTokens
  max_new_tokens: int

  @property
  def for_prompt(self) -> int:
    """Tokens that a prompt may have before a sampled CoT, or a bare score."""
    longest = max(map(len, self.score_tokens.sequences))
    lead = len(self.score_tokens.lead_ids)
    return self.max_length - self.max_new_tokens - lead - longest


def fitting_prompt(
  example: types.Example,
  tokenizer: tokenizer_lib.Tokenizer,
  room: Room,
  *,
  with_own_cot: bool,
) -> str | None:
  """An example's prompt, cut where it has to be.

  Args:
    example: the judgement.
    tokenizer: the tokenizer.
    room: what there is.
    with_own_cot: whether the example's own CoT has to fit, too.

  Returns:
    The prompt as it is where it fits, a cut one, or None where no cut makes it
    fit: the target leaves no room, or there is nothing left to cut.

  Raises:
    types.InputError: a text that cannot be tokens.
  """
  num_tokens = room.for_prompt
  marker = room.score_tokens.marker
  if with_own_cot and marker and example.score is not None:
    index = room.score_tokens.grid.nearest(example.score)
    target = score_tokens_lib.encode_target(
      tokenizer, example.cot, room.score_tokens.grid.texts[index], marker
    )
    num_tokens = min(num_tokens, room.max_length - len(target.ids))
  return truncated(example.prompt, tokenizer, num_tokens, example.judged)


def truncated(
  prompt: str,
  tokenizer: tokenizer_lib.Tokenizer,
  num_tokens: int,
  span: tuple[int, int] | None = None,
) -> str | None:
  """A prompt of at most so many tokens.

  Args:
    prompt: the whole formatted prompt x.
    tokenizer: whose chat template stands round the prompt.
    num_tokens: the most that `Tokenizer.prompt_ids` may give.
    span: the characters (from, to) that may be cut; None: as of `cuttable`.

  Returns:
    The prompt itself where it fits; or with ELISION in place of a block; or
    None where all that may be cut is not enough.
  """
  excess = len(tokenizer.prompt_ids(prompt)) - num_tokens
  if excess <= 0:
    return prompt
  low, high = span or cuttable(prompt)
  _, offsets = tokenizer.encode(prompt)
  inside = offsets[(offsets[:, 0] >= low) & (offsets[:, 1] <= high)]
  # What is written in the block's place needs tokens, too.
  excess += len(tokenizer.encode(ELISION)[0])
  for tries in itertools.count():
    begin, end = low, high
    if excess < len(inside):
      begin, end = _block(prompt, inside, excess, (low, high))
    text = prompt[:begin].rstrip(' ') + ELISION + prompt[end:].lstrip(' ')
    more = len(tokenizer.prompt_ids(text)) - num_tokens
    if more <= 0 and begin < end:
      return text
    if (begin, end) == (low, high):
      return None
    # Few tokens in ever more characters: the steps grow, so that it ends.
    excess += max(more, 1) << tries
  raise AssertionError


def cuttable(prompt: str) -> tuple[int, int]:
  """The characters (from, to) that may be cut, without space at the ends."""
  low, high = len(prompt) // 4, len(prompt) - len(prompt) // 4
  judged = _JUDGED.search(prompt)
  if judged:
    low = judged.end()
  rubrics = list(_RUBRIC.finditer(prompt))
  if rubrics:
    high = rubrics[-1].start()
    if not judged:
      high = min(high, len(prompt) - len(prompt) // 4)
  inner = prompt[low:high]
  low += len(inner) - len(inner.lstrip())
  return low, max(low, low + len(inner.strip()))


def _block(
  prompt: str, inside: np.ndarray, num_tokens: int, span: tuple[int, int]
) -> tuple[int, int]:
  """A block of at least `num_tokens` in the middle, from space to space."""
  first = (len(inside) - num_tokens) // 2
  begin = int(inside[first, 0])
  end = int(inside[first + num_tokens - 1, 1])
  low, high = span
  before = prompt[max(low, begin - _NEAR) : begin]
  spaces = [m.end() for m in re.finditer(r'\s', before)]
  if spaces:
    begin -= len(before) - spaces[-1]
  else:
    begin = _whole_characters(prompt, begin, low)[0]
  after = re.search(r'\s', prompt[end : min(high, end + _NEAR)])
  if after:
    end += after.start()
  else:
    end = min(_whole_characters(prompt, end, low)[1], high)
  return begin, end


def _whole_characters(text: str, at: int, low: int) -> tuple[int, int]:
  """The bounds round `at` of what a reader takes for one character."""
  # An emoji with its modifiers is several code points.
  for match in regex.finditer(r'\X', text, pos=max(low, at - _NEAR)):
    if match.end() == at:
      break
    if match.end() > at:
      return match.start(), match.end()
  return at, at


def fit_chunk(
  context: tuple[tokenizer_lib.Tokenizer, Room, bool],
  examples: Sequence[types.Example],
) -> list[str | None | types.InputError]:
  """`fitting_prompt` of each example, for a process of the pool.

  Args:
    context: tokenizer, room, and whether the examples' own CoTs have to fit.
    examples: some rows.

  Returns:
    What `fitting_prompt` returns, or the error that it raises.
  """
  tokenizer, room, with_own_cot = context
  found: list[str | None | types.InputError] = []
  for example in examples:
    try:
      found.append(
        fitting_prompt(example, tokenizer, room, with_own_cot=with_own_cot)
      )
    except types.InputError as error:
      found.append(error)
  return found
