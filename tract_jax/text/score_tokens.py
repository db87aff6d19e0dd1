"""Which tokens the scores are, found from the tokenizer.

In: a tokenizer, the score grid and the marker. Out: the tokens of every score
as it stands in a target, and what stands between the marker words and it.

  Mistral      ... ▁score ▁is ▁ 4     tokens "4", prefix "▁"
  byte-level   ... Ġscore Ġis Ġ 4     tokens "4", prefix "Ġ"
  merged       ... ▁score ▁is ▁4      tokens "▁4", no prefix
  Mistral      ... ▁score ▁is ▁ 1 0   tokens "1" "0", prefix "▁"

The prefix is what all scores begin with. Where a minus takes the space before
it, there is none, and the space is the first token of the other scores:

  byte-level   ... Ġscore Ġis Ġ- 4    tokens "Ġ-" "4"
               ... Ġscore Ġis Ġ 4     tokens "Ġ" "4"

Where every score is one token, one softmax gives the distribution over the
grid. Where not, p(str(y) | context) is the product over y's tokens and the end
token after them, since "1" is the beginning of "10"; `types.TokenTree` says
what has to be read for it. Only the tokens that the tokenizer itself gives a
score count: other ways to spell "10" are off the grid.

Axes: Y score grid, l tokens.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from tract_jax import types
from tract_jax.text import prompts, token_tree
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
    sequences: [Y] the tokens of each score.
    lead_ids: the tokens from the end of a CoT up to the score: " " + marker and
      `prefix_ids`. They complete a CoT that never came to its marker. For the
      bare score, `prefix_ids`.
    prefix_ids: the tokens between the marker words and the score.
    tree: `sequences`, each with the end token; None where each is one token.
  """

  grid: types.ScoreGrid
  marker: str
  sequences: tuple[tuple[int, ...], ...]
  lead_ids: tuple[int, ...]
  prefix_ids: tuple[int, ...]
  tree: types.TokenTree | None

  @property
  def ids(self) -> tuple[int, ...]:
    """[Y] the one token of each score; () where a score has several."""
    return () if self.tree else tuple(ids[0] for ids in self.sequences)

  def describe(self, tokenizer: tokenizer_lib.Tokenizer) -> str:
    """One line for logs: '1=28740 2=28750 after "So the overall score is "'.

    Several tokens are joined by "+", as in '10=28740+28734'.
    """
    pairs = zip(self.grid.texts, self.sequences, strict=True)
    scores = ' '.join(
      f'{text}={"+".join(map(str, ids))}' for text, ids in pairs
    )
    lead = tokenizer.decode(self.lead_ids)
    end = ', each with the end token' if self.tree else ''
    return (f'{scores} after "{lead}"' if lead else scores) + end


@dataclasses.dataclass(frozen=True)
class Target:
  """A target's tokens; the score is the last of them.

  Attributes:
    ids: [l] int32, the whole target without the end token.
    num_before: how many of `ids` stand before the score.
    marker_start, marker_end: the tokens of the marker are among
      ids[marker_start:marker_end]; both 0 without marker.
    is_apart: whether no token holds the end of the marker and the score.
  """

  ids: np.ndarray
  num_before: int
  marker_start: int
  marker_end: int
  is_apart: bool = True


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
    types.InputError: a score that the vocabulary cannot write, two scores of
      the same tokens, tokens that differ with the words before, or a score
      that changes the tokens of the words before; a line each.
  """
  spellings = [_spelling(tokenizer, text, marker) for text in grid.texts]
  problems = [line for spelling in spellings for line in spelling.problems]
  if not problems:
    problems = _changed_words(spellings)
  prefix_ids = _common_start([spelling.prefix_ids for spelling in spellings])
  sequences = tuple(
    (*spelling.prefix_ids, *spelling.ids)[len(prefix_ids) :]
    for spelling in spellings
  )
  problems = problems or _shared(tokenizer, grid, sequences)
  if problems:
    raise types.InputError('\n'.join(problems))
  tree = None
  if any(len(ids) > 1 for ids in sequences):
    tree = token_tree.make_tree([(*i, tokenizer.eos_id) for i in sequences])
  return ScoreTokens(
    grid=grid,
    marker=marker,
    sequences=sequences,
    lead_ids=(*spellings[0].lead_ids, *prefix_ids),
    prefix_ids=prefix_ids,
    tree=tree,
  )


@dataclasses.dataclass(frozen=True)
class _Spelling:
  """How one score is written.

  Attributes:
    text: str(y).
    prefix_ids: between the marker words and the score.
    ids: the score.
    words: {text before the score: its tokens, without `prefix_ids`}.
    lead_ids: those of them that are the marker words.
    problems: a line each; where there is one, the rest is of no use.
  """

  text: str
  prefix_ids: tuple[int, ...]
  ids: tuple[int, ...]
  words: dict[str, tuple[int, ...]]
  lead_ids: tuple[int, ...]
  problems: list[str]


def _spelling(
  tokenizer: tokenizer_lib.Tokenizer, score_text: str, marker: str
) -> _Spelling:
  """The tokens of a score, which are the same in all contexts."""
  found: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
  words: dict[str, tuple[int, ...]] = {}
  leads: list[tuple[int, ...]] = []
  problems = []
  joined = []
  for shown, target in _contexts(tokenizer, score_text, marker):
    ids = tuple(target.ids[target.num_before :].tolist())
    before = target.ids[: target.num_before].tolist()
    if tokenizer.hf.unk_token_id in ids:
      problems.append(
        f'score {score_text} after {shown!r} is {_pieces(tokenizer, ids)}: the '
        'vocabulary cannot write it'
      )
      break
    found.setdefault((tuple(before[target.marker_end :]), ids), shown)
    words[shown] = tuple(before[: target.marker_end])
    leads.append(tuple(before[target.marker_start : target.marker_end]))
    joined += [] if target.is_apart else [_pieces(tokenizer, ids[:1])]
  if len(found) > 1:
    cases = ', '.join(
      f'{[*prefix, *ids]} after {shown!r}'
      for (prefix, ids), shown in found.items()
    )
    problems.append(
      f'score {score_text} differs with the words before: tokens {cases}'
    )
  elif joined:
    problems.append(
      f'score {score_text} is joined to the words before, in {joined[0]}'
    )
  prefix_ids, ids = next(iter(found), ((), ()))
  lead_ids = next(iter(leads), ())
  return _Spelling(score_text, prefix_ids, ids, words, lead_ids, problems)


def _changed_words(spellings: list[_Spelling]) -> list[str]:
  """A line for every score that is joined to the words before it."""
  lines = []
  first = spellings[0]
  for spelling in spellings[1:]:
    pairs = zip(first.words.items(), spelling.words.values(), strict=True)
    for (shown, wanted), words in pairs:
      if words != wanted:
        lines.append(
          f'score {spelling.text} changes the words before it: '
          f'{shown.strip()!r} is tokens {list(words)} before it, and '
          f'{list(wanted)} before {first.text}'
        )
        break
  return lines


def _common_start(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """The longest start that all sequences have."""
  start = []
  for tokens in zip(*sequences, strict=False):
    if len(set(tokens)) > 1:
      break
    start.append(tokens[0])
  return tuple(start)


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
    is_apart=bool((ends[:num_before] >= marker_end).any()),
  )


def _shared(
  tokenizer: tokenizer_lib.Tokenizer,
  grid: types.ScoreGrid,
  sequences: tuple[tuple[int, ...], ...],
) -> list[str]:
  """A line for every two scores of the same tokens."""
  lines = []
  owner: dict[tuple[int, ...], str] = {}
  for text, ids in zip(grid.texts, sequences, strict=True):
    if ids in owner:
      lines.append(
        f'scores {owner[ids]} and {text} are the same tokens, {list(ids)} '
        f'{_pieces(tokenizer, ids)}'
      )
    owner.setdefault(ids, text)
  return lines


def _pieces(
  tokenizer: tokenizer_lib.Tokenizer, ids: Sequence[int] | np.ndarray
) -> str:
  return ' '.join(f'"{tokenizer.decode([token_id])}"' for token_id in ids)
