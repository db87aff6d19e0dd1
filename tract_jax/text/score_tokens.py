"""Which tokens the scores are, found from the tokenizer.

In: a tokenizer, the score grid and the marker. Out: one token id per score, as
it stands in a target, and what stands between the marker words and it. A
tokenizer that writes a score in several tokens, or by what stands before it, is
refused with the pieces named.

  Mistral      ... ▁score ▁is ▁ 4     ids of "4", prefix "▁"
  byte-level   ... Ġscore Ġis Ġ 4     ids of "4", prefix "Ġ"
  merged       ... ▁score ▁is ▁4      ids of "▁4", no prefix

Axes: Y score grid, l tokens.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from tract_jax import types
from tract_jax.text import prompts
from tract_jax.text import tokenizer as tokenizer_lib

# Ends of CoTs on which a tokenizer might join the marker or the score with
# what stands before: a word, a full stop, a quote, a number, a new line.
_TAILS = ('is good', 'It is complete.', 'the "end"', 'It has 3', 'Done.\n')


@dataclasses.dataclass(frozen=True)
class ScoreTokens:
  """The score tokens of a tokenizer, after the marker or after the prompt.

  Attributes:
    grid: the score grid.
    marker: the fixed words before the score; "" for the bare score.
    ids: [Y] the token of each score.
    lead_ids: the tokens from the end of a CoT up to the score: " " + marker and
      `prefix_ids`. They complete a CoT that never came to its marker. For the
      bare score, `prefix_ids`.
    prefix_ids: the tokens between the marker words and the score.
  """

  grid: types.ScoreGrid
  marker: str
  ids: tuple[int, ...]
  lead_ids: tuple[int, ...]
  prefix_ids: tuple[int, ...]

  def describe(self, tokenizer: tokenizer_lib.Tokenizer) -> str:
    """One line for logs: '1=28740 2=28750 after "So the overall score is "'."""
    pairs = zip(self.grid.texts, self.ids, strict=True)
    scores = ' '.join(f'{text}={token_id}' for text, token_id in pairs)
    lead = tokenizer.decode(self.lead_ids)
    return f'{scores} after "{lead}"' if lead else scores


@dataclasses.dataclass(frozen=True)
class Target:
  """A target's tokens; the score is the last of them.

  Attributes:
    ids: [l] int32, the whole target without the end token.
    num_before: how many of `ids` stand before the score.
    marker_start, marker_end: the tokens of the marker are among
      ids[marker_start:marker_end]; both 0 without marker.
  """

  ids: np.ndarray
  num_before: int
  marker_start: int
  marker_end: int


def encode_target(
  tokenizer: tokenizer_lib.Tokenizer, cot: str, score_text: str, marker: str
) -> Target:
  """Tokenises a target and finds the score's tokens by its characters.

  Args:
    tokenizer: the tokenizer.
    cot: chain of thought; "" where none. Its trailing space is dropped.
    score_text: str(y).
    marker: the fixed words before the score; "" for the bare score.

  Returns:
    The target; ids[num_before:] is the score, of one token or several.
  """
  text = prompts.target_text(cot, score_text, marker)
  return _locate(tokenizer, text, score_text, marker)


def find_score_tokens(
  tokenizer: tokenizer_lib.Tokenizer, grid: types.ScoreGrid, marker: str
) -> ScoreTokens:
  """The score tokens as they stand in targets.

  Args:
    tokenizer: the tokenizer.
    grid: the score grid.
    marker: the fixed words before the score; "" for the bare score, directly
      after the prompt.

  Returns:
    The score tokens, the same after whatever CoT.

  Raises:
    types.InputError: a score of several tokens, two scores of one token, or a
      token that differs with the words before; a line each.
  """
  ids: list[int] = []
  problems: list[str] = []
  prefixes: dict[tuple[int, ...], str] = {}
  leads: list[tuple[int, ...]] = []
  for text in grid.texts:
    found: dict[int, str] = {}
    for shown, target in _contexts(tokenizer, text, marker):
      *before, score_id = target.ids[: target.num_before + 1].tolist()
      num_tokens = len(target.ids) - target.num_before
      if num_tokens != 1 or score_id == tokenizer.hf.unk_token_id:
        pieces = _pieces(tokenizer, target.ids[target.num_before :])
        problems.append(
          f'score {text} is {num_tokens} tokens after {shown!r}: {pieces}; a '
          'score has to be one token of the vocabulary'
        )
        break
      found.setdefault(score_id, shown)
      prefixes.setdefault(tuple(before[target.marker_end :]), shown)
      leads.append(tuple(before[target.marker_start :]))
    ids.extend(list(found)[:1])
    problems.extend(_differ(f'score {text}', found))
  problems.extend(_differ('what stands before the score', prefixes))
  problems.extend([] if problems else _shared(tokenizer, grid, ids))
  if problems:
    raise types.InputError('\n'.join(problems))
  return ScoreTokens(grid, marker, tuple(ids), leads[0], next(iter(prefixes)))


def _contexts(
  tokenizer: tokenizer_lib.Tokenizer, score_text: str, marker: str
) -> Iterator[tuple[str, Target]]:
  """(text before the score, target) for all that a score may follow."""
  if not marker:
    yield '', encode_target(tokenizer, '', score_text, '')
    return
  for tail in _TAILS:
    text = f'{tail} {marker} {score_text}'
    shown = text[: -len(score_text)]
    yield shown, _locate(tokenizer, text, score_text, marker)


def _locate(
  tokenizer: tokenizer_lib.Tokenizer, text: str, score_text: str, marker: str
) -> Target:
  """Tokens of `text`, which ends in `score_text`, after `marker` if any."""
  ids, offsets = tokenizer.encode(text)
  starts, ends = offsets[:, 0], offsets[:, 1]
  score_start = len(text) - len(score_text)
  num_before = int(np.sum(ends <= score_start))
  # A tokenizer that puts a space before text gives that space the first
  # character's offsets. A token of space alone is no part of the score.
  while (
    num_before < len(ids) - 1
    and not tokenizer.decode(ids[num_before : num_before + 1]).strip()
  ):
    num_before += 1
  if not marker:
    return Target(ids, num_before, 0, 0)
  marker_end = score_start - 1
  # The space before the marker words is the marker's: "end. So" is "end.| So".
  marker_start = marker_end - len(marker) - 1
  return Target(
    ids,
    num_before,
    marker_start=int(np.sum(ends <= max(marker_start, 0))),
    marker_end=int(np.sum(starts[:num_before] < marker_end)),
  )


def _differ(what: str, found: dict) -> list[str]:
  """A line where something is not the same in all contexts."""
  if len(found) < 2:
    return []
  cases = ', '.join(f'{key} after {shown!r}' for key, shown in found.items())
  return [f'{what} differs with the words before: tokens {cases}']


def _shared(
  tokenizer: tokenizer_lib.Tokenizer, grid: types.ScoreGrid, ids: list[int]
) -> list[str]:
  """A line for every two scores of one token."""
  lines = []
  owner: dict[int, str] = {}
  for text, token_id in zip(grid.texts, ids, strict=True):
    if token_id in owner:
      lines.append(
        f'scores {owner[token_id]} and {text} are one token, {token_id} '
        f'{_pieces(tokenizer, [token_id])}'
      )
    owner.setdefault(token_id, text)
  return lines


def _pieces(
  tokenizer: tokenizer_lib.Tokenizer, ids: Sequence[int] | np.ndarray
) -> str:
  return ' '.join(f'"{tokenizer.decode([token_id])}"' for token_id in ids)
