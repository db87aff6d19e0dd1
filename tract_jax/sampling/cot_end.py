"""Where a chain of thought ends: finding the marker in sampled tokens.

The model may spell the marker with any tokens, and a token may reach past the
marker's end, so it is looked for in text:

    tokens   ... | So | the | over|all | score | is.| ...
    text     ... So the overall score is.
                 [------ marker ------]
    num_kept     .......................^ whole tokens inside CoT and marker
    missing                             " is", to be written anew

Pure Python and numpy; texts come from the caller's `decode_text`.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from tract_jax import types

DecodeText = Callable[[Sequence[int]], str]
EncodeText = Callable[[str], Sequence[int]]

# What a tokenizer shows for bytes that are not yet a whole character.
_BROKEN = '\ufffd'


@dataclasses.dataclass(frozen=True)
class CotFormat:
  """What a CoT ends with, as text and as tokens.

  Attributes:
    marker: the words that end a CoT, without space around them; "" where
      there is no CoT, and nothing can be sampled.
    lead_ids: tokens that complete a CoT without marker, up to the score: the
      marker words with the space before them, then `prefix_ids`.
    prefix_ids: tokens between the marker and the score; () where the score is
      the token right after it.
    score_ids: [Y] the score tokens; () where a score has several.
    eos_id: the end token.
    pad_id: stands in padded places; never read.
    score_tree: the scores where one has several tokens, each with its end
      token; None where each is one token.
  """

  marker: str
  lead_ids: tuple[int, ...]
  prefix_ids: tuple[int, ...]
  score_ids: tuple[int, ...]
  eos_id: int
  pad_id: int
  score_tree: types.TokenTree | None = None

  def __post_init__(self):
    if self.marker != self.marker.strip():
      raise types.InputError(
        f'score.marker={self.marker!r}: has space around it'
      )
    num_words = len(self.lead_ids) - len(self.prefix_ids)
    if num_words < 0 or self.lead_ids[num_words:] != self.prefix_ids:
      raise ValueError(
        f'lead_ids={self.lead_ids}: does not end with'
        f' prefix_ids={self.prefix_ids}'
      )
    if self.marker and not num_words:
      raise ValueError(f'lead_ids={self.lead_ids}: without marker words')
    if bool(self.score_ids) == bool(self.score_tree):
      raise ValueError('scores: give either score_ids or score_tree')

  def check_tokens(self, num_valid_tokens: int, vocab_size: int) -> None:
    """Refuses tokens that the model or its tokenizer does not have.

    Args:
      num_valid_tokens: tokens that the tokenizer knows.
      vocab_size: V.

    Raises:
      ValueError: the first such token, or a tokenizer with more than V.
    """
    if num_valid_tokens > vocab_size:
      raise ValueError(
        f"num_valid_tokens={num_valid_tokens}: more than the model's"
        f' {vocab_size}'
      )
    scores = (token for ids in self.score_sequences for token in ids)
    for token in (*scores, *self.lead_ids, self.eos_id):
      if not 0 <= token < num_valid_tokens:
        raise ValueError(
          f'token {token}: not among the {num_valid_tokens} that the tokenizer'
          ' knows'
        )

  @property
  def score_sequences(self) -> tuple[tuple[int, ...], ...]:
    """[Y] the tokens of each score, without an end token."""
    if self.score_tree:
      return tuple(ids[:-1] for ids in self.score_tree.sequences)
    return tuple((token,) for token in self.score_ids)

  @property
  def longest_score(self) -> int:
    """Tokens of the longest score, without an end token."""
    return max(map(len, self.score_sequences))


@dataclasses.dataclass(frozen=True)
class CotEnd:
  """The end of a CoT within a row's tokens.

  Attributes:
    num_kept: whole tokens inside the CoT and the marker.
    missing: the marker's text behind them; "" where a token ends with it.
    text: of CoT and marker, to the marker's end.
  """

  num_kept: int
  missing: str
  text: str


@dataclasses.dataclass(frozen=True)
class Ending:
  """What is written after a row's own tokens, up to the score.

  Attributes:
    num_kept: the row's tokens that stay.
    forced_ids: tokens after them; the score is the next token.
  """

  num_kept: int
  forced_ids: tuple[int, ...]

  @property
  def score_index(self) -> int:
    return self.num_kept + len(self.forced_ids)


def find_cot_end(
  tokens: Sequence[int], marker: str, decode_text: DecodeText
) -> CotEnd | None:
  """The marker's first occurrence in a row's text.

  Args:
    tokens: [l] the generated tokens.
    marker: the words that end a CoT.
    decode_text: text of any token list.

  Returns:
    Where it ends, or None if it does not stand in the text.
  """
  if marker not in decode_text(tokens):
    return None
  # Bisection for the shortest prefix with the marker; the first `low` tokens
  # do not hold it. The likeliest place, the last token, is tried first.
  low, middle, num_kept = 0, len(tokens) - 1, len(tokens)
  while num_kept - low > 1:
    if marker in decode_text(tokens[:middle]):
      num_kept = middle
    else:
      low = middle
    middle = (low + num_kept) // 2
  text = decode_text(tokens[:num_kept])
  text = text[: text.index(marker) + len(marker)]
  while num_kept:
    kept = decode_text(tokens[:num_kept])
    # A character of several tokens shows as something else until its last one,
    # so this also steps back to the end of a whole character.
    if text.startswith(kept):
      return CotEnd(num_kept, text[len(kept) :], text)
    num_kept -= 1
  return CotEnd(0, text, text)


def ending_after_marker(
  tokens: Sequence[int],
  end: CotEnd,
  is_over: bool,
  cot_format: CotFormat,
  encode_text: EncodeText,
  decode_text: DecodeText,
) -> Ending | None:
  """How a row goes on to its score after the marker.

  Tokens that the model wrote itself stay as long as they agree.

  Args:
    tokens: [l] the generated tokens, without end token.
    end: where the marker ends in them.
    is_over: whether the row stopped and no more tokens will come.
    cot_format: gives the marker, and the tokens up to the score.
    encode_text: tokens of a text in the middle of a line.
    decode_text: text of any token list.

  Returns:
    The ending, or None while tokens agree with a prefix not yet complete.
  """
  if end.missing:
    return _respelled(tokens, end, cot_format, encode_text, decode_text)
  prefix_ids = cot_format.prefix_ids
  tail = tokens[end.num_kept : end.num_kept + len(prefix_ids)]
  num_agreeing = 0
  for sampled, wanted in zip(tail, prefix_ids, strict=False):
    if sampled != wanted:
      break
    num_agreeing += 1
  is_open = num_agreeing == len(tail) < len(prefix_ids)
  if is_open and not is_over:
    return None
  return Ending(end.num_kept + num_agreeing, prefix_ids[num_agreeing:])


def ending_without_marker(
  tokens: Sequence[int], cot_format: CotFormat, decode_text: DecodeText
) -> Ending:
  """Completes a CoT that stopped without marker with the fixed words.

  Args:
    tokens: [l] the generated tokens, without end token.
    cot_format: gives the fixed words as tokens.
    decode_text: text of any token list.

  Returns:
    The ending; tokens without text at the CoT's end are dropped, because the
    fixed words bring their own space.
  """
  num_kept = len(tokens)
  while num_kept and not decode_text(tokens[num_kept - 1 : num_kept]).strip():
    num_kept -= 1
  return Ending(num_kept, cot_format.lead_ids)


def _respelled(
  tokens: Sequence[int],
  end: CotEnd,
  cot_format: CotFormat,
  encode_text: EncodeText,
  decode_text: DecodeText,
) -> Ending:
  """Writes the rest of a marker whose last token reached past its end."""
  marker_start = len(end.text) - len(cot_format.marker)
  num_kept = end.num_kept
  while True:
    kept = decode_text(tokens[:num_kept])
    if end.text.startswith(kept):
      rest = tuple(int(i) for i in encode_text(end.text[len(kept) :]))
      # A tokenizer may put a space before a text, or need more tokens than
      # the row has room for: then one more token is written anew.
      forced_ids = rest + cot_format.prefix_ids
      fits = len(forced_ids) <= len(cot_format.lead_ids)
      if fits and decode_text([*tokens[:num_kept], *rest]) == end.text:
        return Ending(num_kept, forced_ids)
      if len(kept) <= marker_start:
        return ending_without_marker(tokens[:num_kept], cot_format, decode_text)
    num_kept -= 1


class MarkerFilter:
  """Finds cheaply which rows are worth decoding.

  It joins the texts of single tokens without white space, each decoded once,
  so it is a guess: text of several tokens may differ from the joined ones. A
  row that it misses is found when the row stops and its whole text is read.
  """

  def __init__(self, marker: str, decode_text: DecodeText):
    """Makes a filter with nothing decoded yet.

    Args:
      marker: the words that end a CoT.
      decode_text: text of any token list.
    """
    self._marker = _squeezed(marker)
    self._decode_text = decode_text
    self._texts: dict[int, str] = {}
    self._may_end = np.full((0,), -1, np.int8)

  def may_end(self, tokens: np.ndarray) -> np.ndarray:
    """Whether each token could complete the marker, by its text alone.

    Args:
      tokens: int array of any shape.

    Returns:
      bool, same shape.
    """
    if not tokens.size:
      return np.zeros(tokens.shape, bool)
    missing = int(tokens.max()) + 1 - self._may_end.size
    if missing > 0:
      self._may_end = np.pad(self._may_end, (0, missing), constant_values=-1)
    known = self._may_end[tokens]
    if (known < 0).any():
      for token in np.unique(tokens[known < 0]):
        self._may_end[token] = self._completes(self._text(int(token)))
      known = self._may_end[tokens]
    return known > 0

  def may_hold(self, tokens: Sequence[int]) -> bool:
    """Whether the last token could complete the marker after those before it.

    Args:
      tokens: [l], not empty.

    Returns:
      False if the joined texts of the last tokens do not hold the marker.
    """
    tail = self._text(tokens[-1])
    wanted = len(self._marker) + len(tail)
    for token in reversed(tokens[:-1]):
      if len(tail) >= wanted or _BROKEN in tail:
        break
      tail = self._text(token) + tail
    return _BROKEN in tail or self._marker in tail

  def _text(self, token: int) -> str:
    text = self._texts.get(token)
    if text is None:
      text = self._texts[token] = _squeezed(self._decode_text([token]))
    return text

  def _completes(self, text: str) -> bool:
    suffixes = (self._marker[i:] for i in range(len(self._marker)))
    return (
      _BROKEN in text
      or self._marker in text
      or any(text.startswith(suffix) for suffix in suffixes)
    )


def _squeezed(text: str) -> str:
  return ''.join(text.split())
