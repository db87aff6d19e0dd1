"""A small judging world: the embedded demo's data and tokenizer, no download.

The judge reads a description of a thing (the response) and the true one (the
reference answer). Both name four properties, and a rater scores the response:

  matches ~ uniform on 0..4           properties that the response gets right
  quality = 1 + matches               what careful reading can find out
  score   = clip(quality + e, 1, 5)   e is the rater's noise, `NOISE`

The annotator's CoT was written knowing the score, as in Feedback Collection:

  Size tiny, wanted tiny: right. Shape round, wanted round: right. Colour red,
  wanted blue: wrong. Material stone, wanted glass: wrong. All in all a decent
  answer. So the overall score is 4. [RESULT] 4

The checks are exact; the adjective is one of a few that belong to the score,
so it gives the rater's noise away. This is what TRACT (arXiv:2503.04381,
section 4) turns on:

  - A model trained on these CoTs reads the score off the adjective and ignores
    the checks: given an annotator's CoT it is certain and right.
  - On its own CoT the adjective is a fresh draw from p(score | quality). It is
    as certain as before, and its expected score is one noisy sample.
  - Self-CoTs carry adjectives that know nothing of the row's own rater. A model
    trained on them must fall back on the checks, and its expected score becomes
    E[score | quality], the best that any judge can do.

With v the share of the score's variance that quality explains, the ideal judge
has Pearson's r = sqrt(v) with the rater and the one-sample judge has r = v. For
the default noise they are .882 and .778; top-p sampling cuts the rarest
adjectives, which lifts the latter to about .80. `synthetic_rater` has both, and
says how the five levels of quality and the noise lie on another score grid.

The tokenizer is made for the world and is lossless on any text: a byte-level
alphabet, plus one token for each word of the world and for each long passage
that all prompts share. A number has a token for each character. Prompts have 14
tokens, targets of one digit 27.
"""

from collections.abc import Sequence
import hashlib
import itertools
import types as python_types

import numpy as np
import tokenizers
import transformers

from tract_jax import types
from tract_jax.data import synthetic_rater

PROPERTIES = python_types.MappingProxyType(
  {
    'Size': ('tiny', 'small', 'medium', 'large', 'huge', 'giant'),
    'Shape': ('round', 'square', 'oval', 'flat', 'pointed', 'curved'),
    'Colour': ('red', 'blue', 'green', 'black', 'white', 'brown'),
    'Material': ('wooden', 'glass', 'metal', 'paper', 'stone', 'cloth'),
  }
)
THINGS = ('box', 'lamp', 'kite', 'bowl', 'mask', 'clock', 'toy', 'plate')
# From worst to best; each score has its own share of them.
ADJECTIVES = (
  *('dreadful', 'hopeless', 'useless'),
  *('weak', 'poor', 'flawed'),
  *('fair', 'middling', 'passable'),
  *('good', 'decent', 'solid'),
  *('excellent', 'superb', 'perfect'),
)

CRITERIA = (
  'Does the response give every property of the thing as the reference does?'
)
SCORE_DESCRIPTIONS = (
  'No property is right.',
  'One property is right.',
  'Two properties are right.',
  'Three properties are right.',
  'All four properties are right.',
)

_TASK = """###Task Description:
You are given an instruction, a response to judge, a reference answer that \
deserves a {best}, and a rubric.
1. Write feedback that judges the response by the rubric alone.
2. Then give a score, {choice}.
3. The output reads: "(feedback) [RESULT] (score)".

###The instruction to evaluate:
Describe the"""
_RESPONSE = '.\n\n###Response to evaluate:\nIt is a'
_REFERENCE = ' one.\n\n###Reference Answer (Score {best}):\nIt is a'
_RUBRIC = ' one.\n\n###Score Rubrics:\n[{criteria}]\n{rows}\n\n###Feedback:'

# The splits share the world but no prompt: a prompt's hash says whose it is.
_SPLIT_TENTHS = python_types.MappingProxyType(
  {'train': range(8), 'pretrain': range(8, 9), 'test': range(9, 10)}
)


def make_rows(
  num_rows: int,
  seed: int,
  split: str,
  *,
  grid: types.ScoreGrid = synthetic_rater.GRID,
  noise: Sequence[float] = synthetic_rater.NOISE,
) -> list[dict[str, str | int]]:
  """Draws rows of the world, with the columns of Feedback Collection.

  The same arguments give the same rows. No prompt of one split is ever in
  another split, whatever the seeds. A prompt may occur twice within a split,
  judged twice.

  Args:
    num_rows: how many rows.
    seed: of this draw.
    split: 'train', 'pretrain' or 'test'.
    grid: the scores that the rater gives.
    noise: probabilities of the rater's deviation from the quality, as
      `synthetic_rater.ideal_pearson` takes them.

  Returns:
    Rows with Feedback Collection's columns (all of them text), `example_id`
    (unique in the split and seed), and `quality` 1..5, which no judge sees.

  Raises:
    InputError: unknown split, or noise that is no distribution.

  Example:
    rows = synthetic.make_rows(4096, seed=0, split='train')
  """
  if split not in _SPLIT_TENTHS:
    raise types.InputError(
      f'synthetic split {split!r}: must be one of {", ".join(_SPLIT_TENTHS)}'
    )
  probs = synthetic_rater.deviations(noise, grid)
  # The split's own stream: equal seeds do not give two splits equal noise.
  rng = np.random.default_rng([seed, list(_SPLIT_TENTHS).index(split)])
  return [
    _make_row(rng, f'{split}-{seed}-{i}', _SPLIT_TENTHS[split], grid, probs)
    for i in range(num_rows)
  ]


def _make_row(
  rng: np.random.Generator,
  example_id: str,
  tenths: range,
  grid: types.ScoreGrid,
  noise: np.ndarray,
) -> dict[str, str | int]:
  """One row whose prompt falls into the split with these tenths of hashes."""
  num_matches = int(rng.integers(len(PROPERTIES) + 1))
  while True:
    thing, reference, response = _draw_descriptions(rng, num_matches)
    task, before_response, before_reference, rubric = _passages(grid)
    prompt = (
      f'{task} {thing}{before_response} {" ".join(response)}'
      f'{before_reference} {" ".join(reference)}{rubric}'
    )
    if _tenth(prompt) in tenths:
      break
  quality = 1 + num_matches
  deviation = int(rng.choice(len(noise), p=noise)) - len(noise) // 2
  index = synthetic_rater.level_index(quality, grid) + deviation
  index = min(max(index, 0), len(grid.values) - 1)
  score = grid.texts[index]
  choices = adjectives(index, len(grid.values))
  adjective = choices[rng.integers(len(choices))]
  feedback = (
    f'{_checks(response, reference)} All in all a {adjective} answer.'
    f' So the overall score is {score}.'
  )
  descriptions = {
    f'orig_score{number}_description': text
    for number, text in enumerate(SCORE_DESCRIPTIONS, start=1)
  }
  return {
    'example_id': example_id,
    'instruction': prompt,
    'output': f'{feedback} [RESULT] {score}',
    'orig_instruction': f'Describe the {thing}.',
    'orig_response': _description(response),
    'orig_reference_answer': _description(reference),
    'orig_criteria': CRITERIA,
    **descriptions,
    'orig_feedback': feedback,
    'orig_score': f'{grid.values[index]:g}',
    'quality': quality,
  }


def _draw_descriptions(
  rng: np.random.Generator, num_matches: int
) -> tuple[str, list[str], list[str]]:
  """A thing, its true properties, and a response with so many of them right."""
  right = rng.permutation(len(PROPERTIES)) < num_matches
  reference, response = [], []
  for is_right, values in zip(right, PROPERTIES.values(), strict=True):
    wanted = int(rng.integers(len(values)))
    shift = 0 if is_right else int(rng.integers(1, len(values)))
    reference.append(values[wanted])
    response.append(values[(wanted + shift) % len(values)])
  return THINGS[rng.integers(len(THINGS))], reference, response


def _description(values: Sequence[str]) -> str:
  return f'It is a {" ".join(values)} one.'


def _checks(response: Sequence[str], reference: Sequence[str]) -> str:
  return ' '.join(
    f'{name} {given}, wanted {wanted}:'
    f' {"right" if given == wanted else "wrong"}.'
    for name, given, wanted in zip(PROPERTIES, response, reference, strict=True)
  )


def _tenth(prompt: str) -> int:
  return hashlib.sha256(prompt.encode()).digest()[0] % 10


def adjectives(index: int, grid_size: int) -> tuple[str, ...]:
  """The adjectives that belong to a score, and to no other.

  (Where there are more scores than adjectives, neighbours share one.)

  Args:
    index: of the score.
    grid_size: Y.

  Returns:
    At least one; three for each score of a grid of five.
  """
  first = index * len(ADJECTIVES) // grid_size
  last = max((index + 1) * len(ADJECTIVES) // grid_size, first + 1)
  return ADJECTIVES[first:last]


def _passages(grid: types.ScoreGrid) -> tuple[str, str, str, str]:
  """What all prompts share: the task, the two headings and the rubric."""
  first, last = grid.texts[0], grid.texts[-1]
  is_counting = (
    all(text == f'{grid.values[0] + i:g}' for i, text in enumerate(grid.texts))
    and grid.values[0].is_integer()
  )
  choice = (
    f'a whole number from {first} to {last}'
    if is_counting
    else f'one of {", ".join(grid.texts)}'
  )
  levels = enumerate(SCORE_DESCRIPTIONS, start=1)
  rows = '\n'.join(
    f'Score {grid.texts[synthetic_rater.level_index(level, grid)]}: {text}'
    for level, text in levels
  )
  return (
    _TASK.format(best=last, choice=choice),
    _RESPONSE,
    _REFERENCE.format(best=last),
    _RUBRIC.format(criteria=CRITERIA, rows=rows),
  )


def make_tokenizer(
  grid: types.ScoreGrid = synthetic_rater.GRID,
) -> transformers.PreTrainedTokenizerFast:
  """The world's tokenizer: 256 bytes, the world's words and passages.

  Any text is encoded without loss: what is no word of the world is spelt in
  bytes. Words carry the space before them; digits never do, so that "4" has
  one id alone and in "So the overall score is 4".

  Args:
    grid: of the prompts that it is to know.

  Returns:
    A tokenizer with <s>, </s>, <pad>, <unk> and a chat template that is the
    start token followed by the messages' content.
  """
  specials = ('<pad>', '<s>', '</s>', '<unk>')
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {
    token: index for index, token in enumerate((*specials, *alphabet))
  }
  # Without merges, byte-level BPE is the byte alphabet; what the world says
  # is matched before it, whole.
  model = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token='<unk>')
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  model.add_special_tokens(list(specials))
  model.add_tokens(
    [
      tokenizers.AddedToken(piece, normalized=False, special=False)
      for piece in _pieces(grid)
    ]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model,
    pad_token='<pad>',
    bos_token='<s>',
    eos_token='</s>',
    unk_token='<unk>',
    clean_up_tokenization_spaces=False,
    chat_template=(
      '{{ bos_token }}'
      "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ),
  )


def _pieces(grid: types.ScoreGrid) -> list[str]:
  """The world's own tokens: passages first, then phrases and words."""
  first, *others = PROPERTIES
  values = itertools.chain.from_iterable(PROPERTIES.values())
  return [
    *_passages(grid),
    first,
    *(f' {name}' for name in others),
    ', wanted',
    ': right.',
    ': wrong.',
    ' All in all a',
    ' answer.',
    ' So the overall score is',
    'So the overall score is',
    *(f' {word}' for word in (*THINGS, *values, *ADJECTIVES)),
  ]
