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
has Pearson's r = sqrt(v) with the rater and the one-sample judge has r = v;
`ideal_pearson` gives both. For the default noise they are .882 and .778; top-p
sampling cuts the rarest adjectives, which lifts the latter to about .80.

The tokenizer is made for the world and is lossless on any text: a byte-level
alphabet, plus one token for each word of the world and for each long passage
that all prompts share. Prompts have 14 tokens, targets 27.
"""

from collections.abc import Sequence
import hashlib
import itertools
import types as python_types

import numpy as np
import tokenizers
import transformers

from tract_jax import types

PROPERTIES = python_types.MappingProxyType(
  {
    'Size': ('tiny', 'small', 'medium', 'large', 'huge', 'giant'),
    'Shape': ('round', 'square', 'oval', 'flat', 'pointed', 'curved'),
    'Colour': ('red', 'blue', 'green', 'black', 'white', 'brown'),
    'Material': ('wooden', 'glass', 'metal', 'paper', 'stone', 'cloth'),
  }
)
THINGS = ('box', 'lamp', 'kite', 'bowl', 'mask', 'clock', 'toy', 'plate')
VERDICTS = python_types.MappingProxyType(
  {
    1: ('dreadful', 'hopeless', 'useless'),
    2: ('weak', 'poor', 'flawed'),
    3: ('fair', 'middling', 'passable'),
    4: ('good', 'decent', 'solid'),
    5: ('excellent', 'superb', 'perfect'),
  }
)
SCORES = tuple(VERDICTS)
# Probability of the rater's deviation e = -1, 0, 1. Large, rare ones would
# be lost to top-p sampling, and make the squared error's gradient noisy.
NOISE = (0.3, 0.4, 0.3)

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
deserves a 5, and a rubric.
1. Write feedback that judges the response by the rubric alone.
2. Then give a score, a whole number from 1 to 5.
3. The output reads: "(feedback) [RESULT] (score)".

###The instruction to evaluate:
"""
_RESPONSE = '\n\n###Response to evaluate:\n'
_REFERENCE = '\n\n###Reference Answer (Score 5):\n'
_RUBRIC = '\n\n###Score Rubrics:\n[{}]\n{}\n\n###Feedback:'.format(
  CRITERIA,
  '\n'.join(
    f'Score {score}: {text}'
    for score, text in zip(SCORES, SCORE_DESCRIPTIONS, strict=True)
  ),
)

# The splits share the world but no prompt: a prompt's hash says whose it is.
_SPLIT_TENTHS = python_types.MappingProxyType(
  {'train': range(8), 'validation': range(8, 9), 'test': range(9, 10)}
)


def make_rows(
  num_rows: int,
  seed: int,
  split: str,
  *,
  noise: Sequence[float] = NOISE,
) -> list[dict[str, str | int]]:
  """Draws rows of the world, with the columns of Feedback Collection.

  The same arguments give the same rows. No prompt of one split is ever in
  another split, whatever the seeds. A prompt may occur twice within a split,
  judged twice.

  Args:
    num_rows: how many rows.
    seed: of this draw.
    split: 'train', 'validation' or 'test'.
    noise: probabilities of the rater's deviation from the quality, as
      `ideal_pearson` takes them.

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
  probs = _checked_noise(noise)
  # The split's own stream: equal seeds do not give two splits equal noise.
  rng = np.random.default_rng([seed, list(_SPLIT_TENTHS).index(split)])
  return [
    _make_row(rng, f'{split}-{seed}-{i}', _SPLIT_TENTHS[split], probs)
    for i in range(num_rows)
  ]


def _make_row(
  rng: np.random.Generator,
  example_id: str,
  tenths: range,
  noise: np.ndarray,
) -> dict[str, str | int]:
  """One row whose prompt falls into the split with these tenths of hashes."""
  num_matches = int(rng.integers(len(PROPERTIES) + 1))
  while True:
    thing, reference, response = _draw_descriptions(rng, num_matches)
    instruction = f'Describe the {thing}.'
    prompt = (
      f'{_TASK}{instruction}{_RESPONSE}{_description(response)}'
      f'{_REFERENCE}{_description(reference)}{_RUBRIC}'
    )
    if _tenth(prompt) in tenths:
      break
  quality = 1 + num_matches
  deviation = int(rng.choice(len(noise), p=noise)) - len(noise) // 2
  score = min(max(quality + deviation, SCORES[0]), SCORES[-1])
  adjective = VERDICTS[score][rng.integers(len(VERDICTS[score]))]
  feedback = (
    f'{_checks(response, reference)} All in all a {adjective} answer.'
    f' So the overall score is {score}.'
  )
  descriptions = {
    f'orig_score{number}_description': text
    for number, text in zip(SCORES, SCORE_DESCRIPTIONS, strict=True)
  }
  return {
    'example_id': example_id,
    'instruction': prompt,
    'output': f'{feedback} [RESULT] {score}',
    'orig_instruction': instruction,
    'orig_response': _description(response),
    'orig_reference_answer': _description(reference),
    'orig_criteria': CRITERIA,
    **descriptions,
    'orig_feedback': feedback,
    'orig_score': str(score),
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


def _checked_noise(noise: Sequence[float]) -> np.ndarray:
  """Noise as an array, or an InputError that says what is wrong with it."""
  probs = np.asarray(noise, np.float64)
  if (
    probs.ndim != 1
    or probs.size % 2 == 0
    or not np.all(probs >= 0)
    or abs(probs.sum() - 1) > 1e-6
  ):
    raise types.InputError(
      f'synthetic noise {tuple(noise)}: must be an odd number of'
      ' probabilities (of -k..k) that sum to 1'
    )
  return probs


def expected_scores(noise: Sequence[float] = NOISE) -> np.ndarray:
  """E[score | quality], what the ideal judge answers.

  Args:
    noise: probabilities of the rater's deviations -k..k.

  Returns:
    [5] float64, for quality 1..5.
  """
  return _score_given_quality(noise) @ np.asarray(SCORES, np.float64)


def ideal_pearson(noise: Sequence[float] = NOISE) -> tuple[float, float]:
  """Pearson's r with the rater of the ideal and of the one-sample judge.

  With q the quality, y the score, and v = Var(E[y | q]) / Var(y):
    the ideal judge, E[y | q]:            r = sqrt(v), the world's ceiling;
    the one-sample judge, y' ~ p(y | q):  r = v.

  Args:
    noise: probabilities of the rater's deviations -k..k.

  Returns:
    (sqrt(v), v).
  """
  values = np.asarray(SCORES, np.float64)
  conditional = _score_given_quality(noise)
  means = conditional @ values
  marginal = conditional.mean(axis=0)
  total_variance = marginal @ values**2 - (marginal @ values) ** 2
  share = float(means.var() / total_variance)
  return share**0.5, share


def _score_given_quality(noise: Sequence[float]) -> np.ndarray:
  """[quality, score] p(score | quality): the noise, its tails clipped."""
  probs = _checked_noise(noise)
  table = np.zeros((len(SCORES), len(SCORES)))
  for quality, index in itertools.product(
    range(len(SCORES)), range(len(probs))
  ):
    score = quality + index - len(probs) // 2
    table[quality, min(max(score, 0), len(SCORES) - 1)] += probs[index]
  return table


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
  """The world's tokenizer: 256 bytes, the world's words and passages.

  Any text is encoded without loss: what is no word of the world is spelt in
  bytes. Words carry the space before them; digits never do, so that "4" has
  one id alone and in "So the overall score is 4".

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
      for piece in _pieces()
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


def _pieces() -> list[str]:
  """The world's own tokens: passages first, then phrases and words."""
  first, *others = PROPERTIES
  values = itertools.chain.from_iterable(PROPERTIES.values())
  adjectives = itertools.chain.from_iterable(VERDICTS.values())
  return [
    f'{_TASK}Describe the',
    f'.{_RESPONSE}It is a',
    f' one.{_REFERENCE}It is a',
    f' one.{_RUBRIC}',
    first,
    *(f' {name}' for name in others),
    ', wanted',
    ': right.',
    ': wrong.',
    ' All in all a',
    ' answer.',
    ' So the overall score is',
    'So the overall score is',
    *(f' {word}' for word in (*THINGS, *values, *adjectives)),
  ]
