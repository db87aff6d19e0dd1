import functools

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.data import encoding, truncation
from tract_jax.text import prompts, score_tokens

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
HEAD = '###Task Description:\nJudge it.\n\n###The instruction to evaluate:\n'
TAIL = '\n\n###Score Rubrics:\n[Is it good?]\nScore 1: no\n\n###Feedback:'
WORDS = ' '.join(f'word{i}' for i in range(400))

TOKENIZERS = {
  'bytes': small_tokenizers.byte_level,
  'pieces': small_tokenizers.sentence_piece,
  'characters': functools.partial(small_tokenizers.characters, []),
}


@functools.cache
def scores(name, marker=prompts.MARKER):
  return score_tokens.find_score_tokens(TOKENIZERS[name](), GRID, marker)


def num_tokens(prompt, name='bytes'):
  return len(TOKENIZERS[name]().prompt_ids(prompt))


def cut(prompt, limit, name='bytes'):
  return truncation.truncated(prompt, TOKENIZERS[name](), limit)


def test_prompt_that_fits_is_left_as_it_is():
  prompt = HEAD + WORDS + TAIL
  exact = num_tokens(prompt)
  assert cut(prompt, exact) is prompt
  assert cut(prompt, exact - 1) != prompt


@pytest.mark.parametrize('name', TOKENIZERS)
def test_middle_of_the_judged_text_is_cut(name):
  prompt = HEAD + WORDS + TAIL
  limit = num_tokens(prompt, name) // 2
  found = cut(prompt, limit, name)
  assert limit - 30 < num_tokens(found, name) <= limit
  first, last = found.split(truncation.ELISION)
  assert first.startswith(HEAD + 'word0 word1 ')
  assert last.endswith(' word398 word399' + TAIL)
  # From word to word, and as much before as behind.
  words = WORDS.split(' ')
  kept = [first.removeprefix(HEAD).split(' '), last.split('\n')[0].split(' ')]
  assert kept[0] == words[: len(kept[0])]
  assert kept[1] == words[-len(kept[1]) :]
  assert 0.8 < len(kept[0]) / len(kept[1]) < 1.25


def test_all_that_may_be_cut_goes_and_no_more():
  prompt = HEAD + WORDS + TAIL
  least = HEAD + truncation.ELISION + TAIL
  assert cut(prompt, num_tokens(least)) == least
  assert cut(prompt, num_tokens(least) - 1) is None
  # Nothing between the headings.
  assert cut(HEAD + TAIL, 5) is None


def test_only_headings_at_a_lines_start_count_and_the_last_rubric():
  quoted = 'a ###Score Rubrics: b\n###Score Rubrics: of the judged text\n'
  prompt = HEAD + quoted + WORDS + TAIL
  low, high = truncation.cuttable(prompt)
  assert prompt[:low] == HEAD
  assert prompt[high:] == TAIL
  found = cut(prompt, num_tokens(prompt) - 500)
  assert found.startswith(HEAD + quoted) and found.endswith(TAIL)
  behind = f'{prompt}\nSee the ###Score Rubrics above.'
  assert truncation.cuttable(behind) == (low, high)
  inline = f'Say ###The instruction to evaluate: or not. {WORDS}'
  low, _ = truncation.cuttable(inline)
  assert low >= len(inline) // 4


def test_text_without_headings_keeps_its_first_and_last_quarter():
  found = cut(WORDS, num_tokens(WORDS) * 6 // 10)
  quarter = len(WORDS) // 4
  assert found.startswith(WORDS[:quarter]) and found.endswith(WORDS[-quarter:])
  assert cut(WORDS, num_tokens(WORDS) * 4 // 10) is None
  # The rubric is kept all the same, wherever it stands.
  early = f'{WORDS[: len(WORDS) // 2]}{TAIL}\n{WORDS}'
  low, high = truncation.cuttable(early)
  assert (low, early[high:]) == (len(early) // 4, f'{TAIL}\n{WORDS}')
  first = TAIL.strip() + WORDS
  assert cut(first, num_tokens(first) - 9) is None


@pytest.mark.parametrize(
  'character',
  [
    'e\u0301',
    '\U0001f468\u200d\U0001f469\u200d\U0001f467',
    '\U0001f1e9\U0001f1ea',
  ],
)
def test_characters_stay_whole(character):
  text = character * 120
  prompt = HEAD + text + TAIL
  for fewer in range(40, 80):
    found = cut(prompt, num_tokens(prompt) - fewer)
    kept = found.removeprefix(HEAD).removesuffix(TAIL)
    for part in kept.split(truncation.ELISION):
      assert part == character * (len(part) // len(character))


def example(prompt=HEAD + WORDS + TAIL, cot='It is good.', score=4.0):
  return types.Example('x', prompt, score, cot=cot)


def fit(row, max_length, new_tokens=20, own=True, marker=prompts.MARKER):
  room = truncation.Room(max_length, scores('bytes', marker), new_tokens)
  return truncation.fitting_prompt(
    row, TOKENIZERS['bytes'](), room, with_own_cot=own
  )


def test_room_is_for_the_larger_of_own_and_sampled_cot():
  found = scores('bytes')
  lead, score = len(found.lead_ids), len(found.sequences[0])
  room = truncation.Room(500, found, 20)
  assert room.for_prompt == 500 - 20 - lead - score
  short, long = example(), example(cot='It is good. ' * 20)
  assert num_tokens(fit(short, 500)) in range(460 - lead, room.for_prompt + 1)
  own = len(TOKENIZERS['bytes']().encode(prompts.target_text(
    long.cot, '4', prompts.MARKER))[0])  # fmt: skip
  assert own > 20 + lead + score
  prompt = fit(long, 500)
  assert 500 - own - 12 < num_tokens(prompt) <= 500 - own
  # A row to judge has no CoT of its own, nor has a bare score.
  for given in (long, example(score=None, cot='')):
    assert fit(given, 500, own=False) == fit(short, 500)
  bare = fit(long, 500, new_tokens=0, marker='')
  bare_room = truncation.Room(500, scores('bytes', ''), 0).for_prompt
  assert bare_room == 500 - len(scores('bytes', '').sequences[0])
  assert bare_room - 12 < num_tokens(bare) <= bare_room


def test_target_that_leaves_no_room_does_not_fit():
  assert fit(example(cot=WORDS), 400) is None
  assert fit(example(prompt='short', cot=WORDS), 400) is None


@pytest.mark.parametrize('name', TOKENIZERS)
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  judged=strategies.text(
    strategies.one_of(
      strategies.sampled_from('ab 12\n[]#.</s>'),
      strategies.characters(exclude_categories=('Cs', 'Cn')),
    ),
    max_size=400,
  ),
  cot=strategies.text(strategies.sampled_from('It is good. 4'), max_size=60),
  headings=strategies.booleans(),
  limit=strategies.integers(10, 400),
)
def test_what_is_kept_is_never_cut(name, judged, cot, headings, limit):
  if name == 'characters':
    judged = judged.encode('ascii', 'replace').decode()
  prompt = HEAD + judged + TAIL if headings else judged
  row = example(prompt, cot=cot)
  tokenizer, found = TOKENIZERS[name](), scores(name)
  room = truncation.Room(limit, found, 5)
  (new,) = truncation.fit_chunk((tokenizer, room, True), [row])
  if isinstance(new, types.InputError):
    with pytest.raises(types.InputError):
      tokenizer.prompt_ids(prompt)
    return
  whole = encoding.encode_example(row, tokenizer, found)
  if new is None:
    # Then it did not fit.
    target = len(whole.inputs) - num_tokens(prompt, name)
    assert num_tokens(prompt, name) > min(room.for_prompt, limit - target)
    return
  if headings:
    assert new.startswith(HEAD.rstrip()) and new.endswith(TAIL)
  else:
    quarter = len(judged) // 4
    assert new.startswith(judged[:quarter].rstrip())
    assert new.endswith(judged[len(judged) - quarter :].lstrip())
  encoded = encoding.encode_example(
    types.Example('x', new, 4.0, cot=cot), tokenizer, found
  )
  assert len(encoded.inputs) <= limit
  given = tokenizer.prompt_ids(new)
  assert len(given) <= room.for_prompt
  np.testing.assert_array_equal(encoded.inputs[: len(given)], given)
  # CoT, marker, score and end are what they were.
  learnt = [e.targets[e.cot_mask | e.score_mask] for e in (whole, encoded)]
  np.testing.assert_array_equal(*learnt)
  assert encoded.score_mask.sum() == 1
