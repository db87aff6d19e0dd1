import pytest

from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.text import prompts, score_tokens

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
MARKER = prompts.MARKER


def ids_of(tokenizer, *pieces):
  return tuple(tokenizer.hf.convert_tokens_to_ids(list(pieces)))


def test_space_of_its_own_before_the_score():
  tokenizer = small_tokenizers.byte_level()
  found = score_tokens.find_score_tokens(tokenizer, GRID, MARKER)
  assert found.ids == ids_of(tokenizer, *'12345')
  assert found.prefix_ids == ids_of(tokenizer, 'Ġ')
  assert tokenizer.decode(found.lead_ids) == f' {MARKER} '
  assert found.lead_ids[-1:] == found.prefix_ids


def test_bare_score_of_byte_level_has_nothing_before_it():
  tokenizer = small_tokenizers.byte_level()
  found = score_tokens.find_score_tokens(tokenizer, GRID, '')
  assert found.ids == ids_of(tokenizer, *'12345')
  assert found.prefix_ids == found.lead_ids == ()


@pytest.mark.parametrize('prefix_everywhere', [True, False])
def test_sentence_piece_puts_a_space_before_the_bare_score(prefix_everywhere):
  tokenizer = small_tokenizers.sentence_piece(prefix_everywhere)
  found = score_tokens.find_score_tokens(tokenizer, GRID, '')
  assert found.ids == ids_of(tokenizer, *'12345')
  assert found.prefix_ids == found.lead_ids == ids_of(tokenizer, '▁')
  marked = score_tokens.find_score_tokens(tokenizer, GRID, MARKER)
  assert marked.ids == found.ids
  assert marked.prefix_ids == ids_of(tokenizer, '▁')
  assert marked.lead_ids[0] == ids_of(tokenizer, '▁So')[0]
  assert marked.lead_ids[-2:] == ids_of(tokenizer, '▁is', '▁')


def test_space_merged_into_the_score():
  tokenizer = small_tokenizers.characters([(' ', digit) for digit in '12345'])
  found = score_tokens.find_score_tokens(tokenizer, GRID, MARKER)
  assert found.ids == ids_of(tokenizer, *(f' {digit}' for digit in '12345'))
  assert found.prefix_ids == ()
  # The space before the marker is the lead's: it continues "end.".
  assert found.lead_ids == ids_of(tokenizer, *f' {MARKER}')


def test_whole_words():
  tokenizer = small_tokenizers.word_level(f'1 2 3 4 5 {MARKER}')
  found = score_tokens.find_score_tokens(tokenizer, GRID, MARKER)
  assert found.ids == (3, 4, 5, 6, 7)
  assert found.lead_ids == (8, 9, 10, 11, 12)
  assert found.prefix_ids == ()


def test_lead_continues_a_cot():
  for tokenizer in (
    small_tokenizers.byte_level(),
    small_tokenizers.sentence_piece(),
  ):
    found = score_tokens.find_score_tokens(tokenizer, GRID, MARKER)
    cot, _ = tokenizer.encode('It is good.')
    target = score_tokens.encode_target(tokenizer, 'It is good.', '4', MARKER)
    assert [*cot, *found.lead_ids, found.ids[3]] == target.ids.tolist()


@pytest.mark.parametrize('marker', [MARKER, ''])
def test_ten_as_two_tokens(marker):
  tokenizer = small_tokenizers.sentence_piece()
  grid = prompts.make_score_grid(range(11))
  found = score_tokens.find_score_tokens(tokenizer, grid, marker)
  digits = [ids_of(tokenizer, str(digit)) for digit in range(10)]
  assert found.sequences == (*digits, ids_of(tokenizer, '1', '0'))
  assert found.prefix_ids == ids_of(tokenizer, '▁')
  assert found.ids == ()
  end = tokenizer.eos_id
  assert found.tree.sequences == tuple((*i, end) for i in found.sequences)
  # A node for each token, and one for what stands before them.
  assert len(found.tree.tokens) == 11


def test_single_tokens_need_no_tree():
  tokenizer = small_tokenizers.byte_level()
  found = score_tokens.find_score_tokens(tokenizer, GRID, MARKER)
  assert found.tree is None
  assert found.sequences == tuple((i,) for i in found.ids)


@pytest.mark.parametrize('split_digits', [True, False])
@pytest.mark.parametrize('marker', [MARKER, ''])
@pytest.mark.parametrize(
  'values, score_format',
  [
    (range(11), '{:g}'),
    ([i / 2 for i in range(2, 11)], '{:.1f}'),
    (range(-4, 5), '{:g}'),
  ],
)
def test_any_grid_of_byte_level(values, score_format, marker, split_digits):
  tokenizer = small_tokenizers.byte_level(split_digits)
  grid = prompts.make_score_grid(values, score_format)
  found = score_tokens.find_score_tokens(tokenizer, grid, marker)
  for text, ids in zip(grid.texts, found.sequences, strict=True):
    # Together they are what a target has.
    cot = 'So.' if marker else ''
    target = score_tokens.encode_target(tokenizer, cot, text, marker)
    written = [*found.lead_ids, *ids]
    assert target.ids[-len(written) :].tolist() == written
    assert tokenizer.decode(written).strip() == f'{marker} {text}'.strip()
  assert len(set(found.sequences)) == len(grid.values)


def test_a_minus_that_takes_the_space_leaves_it_to_the_other_scores():
  tokenizer = small_tokenizers.characters([(' ', '-')])
  grid = prompts.make_score_grid([-1, 0, 1])
  found = score_tokens.find_score_tokens(tokenizer, grid, MARKER)
  assert found.prefix_ids == ()
  assert found.sequences == (
    ids_of(tokenizer, ' -', '1'),
    ids_of(tokenizer, ' ', '0'),
    ids_of(tokenizer, ' ', '1'),
  )
  assert tokenizer.decode(found.lead_ids).replace(' ', '') == (
    MARKER.replace(' ', '')
  )
  bare = score_tokens.find_score_tokens(tokenizer, grid, '')
  assert bare.sequences[1:] == (
    ids_of(tokenizer, '0'),
    ids_of(tokenizer, '1'),
  )


def test_ten_as_one_token_is_fine():
  tokenizer = small_tokenizers.word_level(f'9 10 {MARKER}')
  grid = prompts.make_score_grid([9, 10])
  found = score_tokens.find_score_tokens(tokenizer, grid, MARKER)
  assert found.ids == (3, 4)


def test_score_that_is_no_word_is_refused():
  tokenizer = small_tokenizers.word_level(f'1 2 3 4 {MARKER}')
  with pytest.raises(types.InputError, match='score 5 .*"<unk>"'):
    score_tokens.find_score_tokens(tokenizer, GRID, MARKER)


def test_two_scores_of_one_token_are_refused():
  tokenizer = small_tokenizers.lowercase_words(f'a b {MARKER.lower()}')
  grid = types.ScoreGrid((1.0, 2.0), ('a', 'A'))
  with pytest.raises(types.InputError, match='scores a and A are the same'):
    score_tokens.find_score_tokens(tokenizer, grid, MARKER)


def test_two_scores_of_the_same_tokens_are_refused():
  tokenizer = small_tokenizers.lowercase_words(f'a b c {MARKER.lower()}')
  grid = types.ScoreGrid((1.0, 2.0, 3.0), ('a b', 'c', 'A B'))
  with pytest.raises(types.InputError) as error:
    score_tokens.find_score_tokens(tokenizer, grid, MARKER)
  assert str(error.value) == (
    'scores a b and A B are the same tokens, [3, 4] "a" "b"'
  )


def test_score_that_changes_the_words_before_it_is_refused():
  # "is 5" is "i", "s", " 5", but "is 4" is "i", "s ", "4".
  tokenizer = small_tokenizers.characters([(' ', '5'), ('s', ' ')])
  with pytest.raises(types.InputError) as error:
    score_tokens.find_score_tokens(
      tokenizer, prompts.make_score_grid([4, 5]), 'is'
    )
  assert str(error.value).startswith('score 5 changes the words before it: ')
  assert len(str(error.value).splitlines()) == 1


def test_score_that_is_joined_to_the_words_before_it_is_refused():
  merges, joined = [], 's'
  for letter in ' 4':
    merges.append((joined, letter))
    joined += letter
  tokenizer = small_tokenizers.characters(merges)
  with pytest.raises(types.InputError, match='joined to the words .*"s 4"'):
    score_tokens.find_score_tokens(
      tokenizer, prompts.make_score_grid([4]), 'is'
    )


def test_score_that_differs_with_the_words_before_is_refused():
  # After a word that ends in "d", all of "d is 4" is one token.
  merges, joined = [], 'd'
  for letter in ' is 4':
    merges.append((joined, letter))
    joined += letter
  tokenizer = small_tokenizers.characters(merges)
  grid = prompts.make_score_grid([4])
  with pytest.raises(types.InputError) as error:
    score_tokens.find_score_tokens(tokenizer, grid, 'is')
  assert 'score 4 differs with the words before' in str(error.value)
  assert "'is good is '" in str(error.value)


def test_describe_is_one_line():
  tokenizer = small_tokenizers.word_level(f'1 2 3 4 5 {MARKER}')
  found = score_tokens.find_score_tokens(tokenizer, GRID, MARKER)
  assert found.describe(tokenizer) == (f'1=3 2=4 3=5 4=6 5=7 after "{MARKER}"')
  bare = score_tokens.find_score_tokens(tokenizer, GRID, '')
  assert bare.describe(tokenizer) == '1=3 2=4 3=5 4=6 5=7'


def test_describe_joins_several_tokens():
  tokenizer = small_tokenizers.sentence_piece()
  grid = prompts.make_score_grid([1, 10])
  found = score_tokens.find_score_tokens(tokenizer, grid, '')
  one, zero = ids_of(tokenizer, '1', '0')
  assert found.describe(tokenizer).startswith(f'1={one} 10={one}+{zero}')
  assert found.describe(tokenizer).endswith(', each with the end token')
