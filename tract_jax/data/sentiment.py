"""Short texts that many people rated, as rows of a numeric judge.

In: the files of Hutto and Gilbert's VADER data ("VADER: A Parsimonious
Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014), as
bytes. Out: rows in the plain form of data/records: a prompt with its rubric,
the ratings as a list, and a rationale. The score is the mean of 15 to 99
people's ratings, whole numbers from -4 to 4: no LLM has judged anything here.

  <source>_GroundTruth.txt      id, mean, text           tab-separated, CRLF
  <source>_anonDataRatings.txt  id, mean, sd, [ratings]
  vader_lexicon.txt             token, mean, sd, [10 ratings]

The rationale stands in for an annotator's CoT. It is made from the lexicon,
whose tokens were rated apart from the texts, by other people: it knows the
text, and not the text's score.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import math
import string
from typing import Any

from tract_jax import types
from tract_jax.data import splits

# The files' names, by what the rows' categories are called.
SOURCES = {
  'tweets': 'tweets',
  'product_reviews': 'amazonReviewSnippets',
  'movie_reviews': 'movieReviewSnippets',
  'editorials': 'nytEditorialSnippets',
}
LOWEST, HIGHEST = -4, 4
TEST_FRACTION = 0.2

PROMPT = """\
###Task Description:
Say which words of the text carry feeling and what they add up to. Then write a
score, a whole number from -4 to 4, as the rubric says.

###The text to rate:
{text}

###Score Rubric:
[How negative or positive is the text?]
Score -4, -3, -2, -1: extremely, very, clearly, slightly negative.
Score 0: neutral, or neither.
Score 1, 2, 3, 4: slightly, clearly, very, extremely positive.

###Feedback:"""

# What a negation before it leaves of a word's valence (VADER, section 3).
_NEGATED = -0.74
_NEGATION_REACH = 3
_NEGATIONS = frozenset(
  'not no never nor neither without hardly cannot nothing nobody none'
  ' nowhere dont didnt doesnt isnt wasnt wont cant'.split()
)
_DEGREES = ('', 'slightly', 'clearly', 'very', 'extremely')
_MAX_WORDS = 3
_AROUND = string.punctuation + '‘’“”…–'
# Two files give a text's mean; they round it differently.
_MEANS_AGREE = 1e-3


@dataclasses.dataclass(frozen=True)
class RatedText:
  """A text and what people gave it.

  Attributes:
    text_id: its source and its id there: "tweets-17".
    source: a key of SOURCES.
    text: as it stands in the file.
    ratings: whole numbers from -4 to 4.
  """

  text_id: str
  source: str
  text: str
  ratings: tuple[int, ...]


def read_texts(
  source: str, ground_truth: bytes, ratings: bytes
) -> tuple[list[RatedText], list[str]]:
  """Joins a source's two files.

  Args:
    source: a key of SOURCES.
    ground_truth: the file of means and texts.
    ratings: the file of single ratings.

  Returns:
    The texts, in the file's order; and the ids of those left out because the
    mean of their ratings is not the mean that stands with the text, so that
    one of the two is of something else.

  Raises:
    types.InputError: bytes that are not UTF-8, a broken line, a rating that is
      no whole number in the range, an id that stands twice or in one file
      alone; a line each.
  """
  names = [
    f'{SOURCES[source]}_{kind}.txt'
    for kind in ('GroundTruth', 'anonDataRatings')
  ]
  problems: list[str] = []
  texts = _by_id(names[0], ground_truth, 3, problems)
  rated = _by_id(names[1], ratings, 4, problems)
  for name, mine, other in zip(
    names, (texts, rated), (rated, texts), strict=True
  ):
    problems += [
      f'{name}: line {mine[i][0]}: id {i} has no line in the other file'
      for i in mine
      if i not in other
    ]
  kept, left_out = [], []
  for text_id, (line, (mean, text)) in texts.items():
    if text_id not in rated:
      continue
    values, problem = _ratings(rated[text_id][1][-1])
    if problem:
      problems.append(f'{names[1]}: line {rated[text_id][0]}: {problem}')
      continue
    try:
      stated = float(mean)
    except ValueError:
      problems.append(f'{names[0]}: line {line}: mean {mean!r} is no number')
      continue
    if not text.strip():
      problems.append(f'{names[0]}: line {line}: the text is empty')
    elif abs(math.fsum(values) / len(values) - stated) <= _MEANS_AGREE:
      kept.append(RatedText(f'{source}-{text_id}', source, text, values))
    else:
      left_out.append(f'{source}-{text_id}')
  if problems:
    raise types.InputError('\n'.join(problems))
  return kept, left_out


def read_lexicon(content: bytes) -> dict[str, float]:
  """Reads the rated lexicon.

  Args:
    content: of vader_lexicon.txt.

  Returns:
    {token in lower case: mean rating}; the later of two equal tokens counts,
    as in VADER itself.

  Raises:
    types.InputError: bytes that are not UTF-8 or a broken line; a line each.
  """
  problems: list[str] = []
  lexicon = {}
  for line, (token, mean, *_) in _lines(
    'vader_lexicon.txt', content, 4, problems
  ):
    try:
      lexicon[token.lower()] = float(mean)
    except ValueError:
      problems.append(
        f'vader_lexicon.txt: line {line}: mean {mean!r} is no number'
      )
  if problems:
    raise types.InputError('\n'.join(problems))
  return lexicon


def rationale(text: str, lexicon: Mapping[str, float]) -> str:
  """What the text's words say, without knowing how it was rated.

  The rated words in the text's order, three at most (the strongest), each with
  its valence in words; a negation among the three words before turns a word
  round. Then the mean over all of them, in words.

  Args:
    text: to be rated.
    lexicon: {token in lower case: valence in [-4, 4]}.

  Returns:
    For example '"good" after "not" is slightly negative, "lucky" is clearly
    positive. On the whole: neutral.'
  """
  found = _rated_words(text, lexicon)
  if not found:
    return 'No word here has a rated feeling. On the whole: neutral.'
  strongest = sorted(found, key=lambda word: -abs(word.valence))[:_MAX_WORDS]
  parts = [
    f'"{word.token}"'
    + (f' after "{word.negation}"' if word.negation else '')
    + f' is {in_words(word.valence)}'
    for word in found
    if word in strongest
  ][:_MAX_WORDS]
  mean = math.fsum(word.valence for word in found) / len(found)
  more = len(found) - len(parts)
  tail = f', and {more} more' if more else ''
  return f'{", ".join(parts)}{tail}. On the whole: {in_words(mean)}.'


def in_words(valence: float) -> str:
  """A valence in the rubric's words.

  Args:
    valence: in [-4, 4]; a half counts as the stronger degree.

  Returns:
    "neutral", "slightly negative", ... "extremely positive".
  """
  degree = min(math.floor(abs(valence) + 0.5), HIGHEST)
  if not degree:
    return 'neutral'
  return f'{_DEGREES[degree]} {"positive" if valence > 0 else "negative"}'


def make_rows(
  texts: Sequence[RatedText], lexicon: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Rows to train on and rows to test on.

  The side and the place of a row depend on a hash of its text alone: so equal
  texts are on one side, and the first n rows are a sample of all sources.

  Args:
    texts: of all sources.
    lexicon: as for `rationale`.

  Returns:
    (train, test), the rows of each in the hash's order: example_id, category,
    prompt, score (the list of ratings) and cot.
  """
  train: list[dict[str, Any]] = []
  test: list[dict[str, Any]] = []
  places = {t.text_id: splits.hash_uniform(t.text.strip()) for t in texts}
  for text in sorted(texts, key=lambda t: (places[t.text_id], t.text_id)):
    row = {
      'example_id': text.text_id,
      'category': text.source,
      'prompt': PROMPT.format(text=text.text.strip()),
      'score': list(text.ratings),
      'cot': rationale(text.text, lexicon),
    }
    (test if places[text.text_id] < TEST_FRACTION else train).append(row)
  return train, test


@dataclasses.dataclass(frozen=True)
class _RatedWord:
  """A word of a text that is in the lexicon; `negation` may be ""."""

  token: str
  valence: float
  negation: str


def _rated_words(text: str, lexicon: Mapping[str, float]) -> list[_RatedWord]:
  words = text.lower().replace('’', "'").split()
  bare = [word.strip(_AROUND) for word in words]
  found = []
  for i, word in enumerate(words):
    # An emoticon is all punctuation, so words are looked up as they are first.
    token = word if word in lexicon else bare[i]
    if token not in lexicon or _negates(bare[i]):
      continue
    before = bare[max(i - _NEGATION_REACH, 0) : i]
    negation = next((w for w in reversed(before) if _negates(w)), '')
    factor = _NEGATED if negation else 1.0
    found.append(_RatedWord(token, factor * lexicon[token], negation))
  return found


def _negates(word: str) -> bool:
  return word in _NEGATIONS or word.endswith("n't")


def _ratings(text: str) -> tuple[tuple[int, ...], str]:
  """The ratings of "[1, 2, -1]", and what is wrong with them, or ""."""
  try:
    values = json.loads(text)
  except (ValueError, RecursionError):
    return (), f'ratings {text[:40]!r} are no list of numbers'
  if not isinstance(values, list) or not values:
    return (), f'ratings {text[:40]!r} are no list of numbers'
  for value in values:
    if type(value) is not int or not LOWEST <= value <= HIGHEST:
      return (), f'rating {value!r} is no whole number from -4 to 4'
  return tuple(values), ''


def _by_id(
  name: str, content: bytes, num_columns: int, problems: list[str]
) -> dict[str, tuple[int, list[str]]]:
  """{id: (line, other columns)}; ids that stand twice go to the problems."""
  found: dict[str, tuple[int, list[str]]] = {}
  for line, (text_id, *rest) in _lines(name, content, num_columns, problems):
    if text_id in found:
      problems.append(
        f'{name}: line {line}: id {text_id} stands in line'
        f' {found[text_id][0]} already'
      )
    found.setdefault(text_id, (line, rest))
  return found


def _lines(
  name: str, content: bytes, num_columns: int, problems: list[str]
) -> Iterator[tuple[int, list[str]]]:
  """(line, columns) of a tab-separated file; bad lines go to the problems."""
  for line, raw in enumerate(content.split(b'\n'), 1):
    try:
      # The byte order mark, where there is one, is not part of the first id.
      text = raw.removesuffix(b'\r').decode(
        'utf-8-sig' if line == 1 else 'utf-8'
      )
    except UnicodeDecodeError as error:
      problems.append(
        f'{name}: line {line}: byte 0x{raw[error.start]:02x} is not UTF-8'
      )
      continue
    columns = text.split('\t')
    if len(columns) == num_columns:
      yield line, columns
    elif text:
      problems.append(
        f'{name}: line {line}: {len(columns)} columns, {num_columns} expected'
      )
