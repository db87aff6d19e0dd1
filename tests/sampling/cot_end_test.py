"""Tests of the search for the marker."""

import dataclasses

import numpy as np
import pytest

from tests.sampling import fakes
from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.sampling import cot_end
from tract_jax.text import score_tokens

MARKER = fakes.MARKER


class Pieces:
  """A tokenizer that gives each new piece of text the next id."""

  def __init__(self):
    self.pieces = []

  def ids(self, *pieces):
    for piece in pieces:
      if piece not in self.pieces:
        self.pieces.append(piece)
    return [self.pieces.index(piece) for piece in pieces]

  def decode(self, ids):
    parts = [self.pieces[i] for i in ids]
    parts = [p if isinstance(p, bytes) else p.encode() for p in parts]
    return b''.join(parts).decode(errors='replace')

  def encode(self, text):
    return self.ids(*text) if text else []


def _end(*pieces, marker=MARKER):
  tokenizer = Pieces()
  end = cot_end.find_cot_end(tokenizer.ids(*pieces), marker, tokenizer.decode)
  return end and (end.num_kept, end.missing)


def test_marker_of_canonical_tokens():
  pieces = ['Good.', ' So', ' the', ' overall', ' score', ' is', ' ', '4']
  assert _end(*pieces) == (6, '')


def test_no_marker():
  assert _end('So the overall quality', ' is', ' 4') is None
  assert _end('So', ' the', ' overall', ' score') is None
  assert _end() is None


def test_marker_at_the_very_start():
  assert _end('So the', ' overall score is', ' 4') == (2, '')


def test_marker_in_odd_pieces():
  assert _end('x S', 'o t', 'he ov', 'eral', 'l sc', 'ore i', 's', ' 4') == (
    7,
    '',
  )
  assert _end(*('a ' + MARKER + ' 4')) == (len('a ' + MARKER), '')


def test_whole_marker_in_one_token():
  assert _end('Bad. ' + MARKER, ' 1') == (1, '')


def test_token_past_the_end_is_not_kept():
  assert _end('So the overall', ' score', ' is 4') == (2, ' is')
  assert _end('So the overall score is.') == (0, MARKER)
  assert _end('Fine. ', MARKER + ' 3', '.') == (1, MARKER)


def test_first_of_two_markers_counts():
  assert _end('a ', MARKER, ' 4. ', MARKER, ' 5') == (2, '')
  assert _end('a ', MARKER + ' 4. ' + MARKER, ' 5') == (1, MARKER)


def test_tokens_without_text_after_the_marker_are_not_kept():
  assert _end('a ', MARKER, '', '', ' 4') == (2, '')


def test_character_broken_over_tokens_before_the_marker():
  star = '★'.encode()
  pieces = [star[:1], star[1:2], star[2:], ' ' + MARKER, ' 4']
  assert _end(*pieces) == (4, '')


def test_character_broken_over_tokens_inside_the_marker():
  star = '★'.encode()
  marker = 'note ★ is'
  assert _end('a note ', star[:2], star[2:], ' is', marker=marker) == (4, '')
  # The token past the end is preceded by a broken character: both go.
  pieces = ['a note', ' ', star[:2], star[2:] + b' is 4']
  assert _end(*pieces, marker=marker) == (2, '★ is')


def test_character_broken_right_after_the_marker():
  star = '★'.encode()
  assert _end('a ', MARKER, star[:1], star[1:]) == (2, '')


def _ending(pieces, *, is_over=False, prefix=(' ',), lead=None, encode=None):
  """What is kept and what is written, as texts."""
  tokenizer = Pieces()
  tokens = tokenizer.ids(*pieces)
  lead = lead or [' So', ' the', ' overall', ' score', ' is', *prefix]
  cot_format = cot_end.CotFormat(
    marker=MARKER,
    lead_ids=tuple(tokenizer.ids(*lead)),
    prefix_ids=tuple(tokenizer.ids(*prefix)),
    score_ids=(0,),
    eos_id=0,
    pad_id=0,
  )
  end = cot_end.find_cot_end(tokens, MARKER, tokenizer.decode)
  ending = cot_end.ending_after_marker(
    tokens,
    end,
    is_over,
    cot_format,
    encode or tokenizer.encode,
    tokenizer.decode,
  )
  if ending is None:
    return None
  assert ending.score_index == ending.num_kept + len(ending.forced_ids)
  kept = tokenizer.decode(tokens[: ending.num_kept])
  return kept, tokenizer.decode(ending.forced_ids)


def test_prefix_written_by_the_model():
  assert _ending(['a ', MARKER, ' ', '4']) == (f'a {MARKER} ', '')


def test_other_tokens_than_the_prefix():
  assert _ending(['a ', MARKER, ' 4']) == (f'a {MARKER}', ' ')
  pieces = ['a ', MARKER, ' ', 'x', '4']
  assert _ending(pieces, prefix=(' ', '"')) == (f'a {MARKER} ', '"')


def test_prefix_not_yet_complete():
  assert _ending(['a ', MARKER]) is None
  assert _ending(['a ', MARKER, ' '], prefix=(' ', '"')) is None
  assert _ending(['a ', MARKER], is_over=True) == (f'a {MARKER}', ' ')


def test_empty_prefix():
  assert _ending(['a ', MARKER], prefix=()) == (f'a {MARKER}', '')


def test_marker_is_respelled():
  pieces = ['a So the', ' overall', ' score', ' is.']
  assert _ending(pieces) == ('a So the overall score', ' is ')


def test_respelling_needs_the_same_text():
  # An encoder that puts a space before every text: " score is" is got right
  # only from the token before the space on.
  tokenizer_pieces = ['a So the overall', ' ', 'score is.']
  lead = [' ', *(MARKER + ' ')]

  def encode(text):
    return ids.encode(' ' + text.lstrip())

  ids = Pieces()
  tokens = ids.ids(*tokenizer_pieces)
  cot_format = cot_end.CotFormat(
    MARKER, tuple(ids.ids(*lead)), tuple(ids.ids(' ')), (0,), 0, 0
  )
  end = cot_end.find_cot_end(tokens, MARKER, ids.decode)
  assert end.num_kept == 2
  ending = cot_end.ending_after_marker(
    tokens, end, False, cot_format, encode, ids.decode
  )
  assert ending.num_kept == 1
  assert ids.decode(ending.forced_ids) == ' score is '


def test_respelling_falls_back_on_the_fixed_words():
  # The rest needs more tokens than the fixed words: there is no room for it.
  # The space before the marker goes, for the fixed words bring their own.
  pieces = ['a', ' ', 'So', ' the overall score is.']
  assert _ending(pieces) == ('a', f' {MARKER} ')


def test_ending_without_marker_drops_trailing_space():
  tokens = fakes.encode_text('ab \n')
  ending = cot_end.ending_without_marker(
    tokens, fakes.COT_FORMAT, fakes.decode_text
  )
  assert ending == cot_end.Ending(2, fakes.COT_FORMAT.lead_ids)
  ending = cot_end.ending_without_marker([], fakes.COT_FORMAT, lambda ids: '')
  assert ending.num_kept == 0


def test_filter_finds_the_token_that_completes():
  marker_filter = cot_end.MarkerFilter(MARKER, fakes.decode_text)
  tokens = fakes.encode_text('ab So the overall score is 4')
  may_end = marker_filter.may_end(np.asarray([tokens]))[0]
  is_end = [
    bool(ok) and marker_filter.may_hold(tokens[: i + 1])
    for i, ok in enumerate(may_end)
  ]
  assert [tokens[i] for i in np.flatnonzero(is_end)] == fakes.encode_text(' is')
  assert not may_end[tokens.index(fakes.encode_text(' the')[0])]


@pytest.mark.parametrize('seed', range(5))
def test_filter_misses_nothing(seed):
  rng = np.random.default_rng(seed)
  text = f'Good enough. {MARKER} 4. Next. {MARKER}nt 5.'
  cuts = np.sort(rng.choice(len(text), 18, replace=False)).tolist()
  tokenizer = Pieces()
  tokens = tokenizer.ids(
    *(text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True))
  )
  marker_filter = cot_end.MarkerFilter(MARKER, tokenizer.decode)
  may_end = marker_filter.may_end(np.asarray(tokens))
  first = cot_end.find_cot_end(tokens, MARKER, tokenizer.decode)
  found = [
    cot_end.find_cot_end(tokens[: i + 1], MARKER, tokenizer.decode)
    for i in np.flatnonzero(may_end)
    if marker_filter.may_hold(tokens[: i + 1])
  ]
  assert [end for end in found if end][0] == first


def test_filter_lets_broken_characters_pass():
  tokenizer = Pieces()
  star = '★'.encode()
  tokens = tokenizer.ids('is ', star[:2], star[2:])
  marker_filter = cot_end.MarkerFilter('is ★', tokenizer.decode)
  assert marker_filter.may_end(np.asarray(tokens))[2]
  assert marker_filter.may_hold(tokens)


def test_filter_decodes_each_token_once():
  calls = []

  def decode(ids):
    calls.append(tuple(ids))
    return fakes.decode_text(ids)

  marker_filter = cot_end.MarkerFilter(MARKER, decode)
  tokens = np.asarray([[9, 10, 9], [10, 10, 30]])
  assert marker_filter.may_end(tokens).shape == (2, 3)
  marker_filter.may_end(tokens)
  assert sorted(calls) == [(9,), (10,), (30,)]


def test_bad_formats():
  with pytest.raises(types.InputError, match='score.marker'):
    dataclasses.replace(fakes.COT_FORMAT, marker='is ')
  with pytest.raises(ValueError, match='does not end with'):
    dataclasses.replace(fakes.COT_FORMAT, prefix_ids=(9, 9))
  with pytest.raises(ValueError, match='without marker words'):
    dataclasses.replace(fakes.COT_FORMAT, lead_ids=fakes.COT_FORMAT.prefix_ids)
  with pytest.raises(ValueError, match='score_ids'):
    dataclasses.replace(fakes.COT_FORMAT, score_ids=())


@pytest.mark.parametrize('rest', [' 4', '. 4', 'nt', '', ' ★'])
@pytest.mark.parametrize('letter_by_letter', [False, True])
@pytest.mark.parametrize('kind', ['byte_level', 'sentence_piece'])
def test_tokenizers_of_both_families(kind, letter_by_letter, rest):
  tokenizer = getattr(small_tokenizers, kind)()
  grid = types.ScoreGrid((1.0, 4.0), ('1', '4'))
  scores = score_tokens.find_score_tokens(tokenizer, grid, MARKER)
  cot_format = cot_end.CotFormat(
    marker=MARKER,
    lead_ids=scores.lead_ids,
    prefix_ids=scores.prefix_ids,
    score_ids=scores.ids,
    eos_id=tokenizer.eos_id,
    pad_id=tokenizer.pad_id,
  )

  def encode(text):
    return tokenizer.encode(text)[0]

  text = f'It is good ★. {MARKER}{rest}'
  tokens = encode(text).tolist()
  if letter_by_letter and kind == 'sentence_piece':
    # Its encoder would put a space before each letter.
    pieces = list(text.replace(' ', '▁'))
    tokens = tokenizer.hf.convert_tokens_to_ids(pieces)
  elif letter_by_letter:
    tokens = [i for letter in text for i in encode(letter).tolist()]
  # One of them does not know the star.
  text = tokenizer.decode(tokens)
  text = text[: text.index(MARKER) + len(MARKER)]
  end = cot_end.find_cot_end(tokens, MARKER, tokenizer.decode)
  assert end.text == text
  assert tokenizer.decode(tokens[: end.num_kept]) + end.missing == text
  ending = cot_end.ending_after_marker(
    tokens, end, True, cot_format, encode, tokenizer.decode
  )
  written = [*tokens[: ending.num_kept], *ending.forced_ids]
  assert tokenizer.decode([*written, scores.ids[1]]) == f'{text} 4'
  assert tuple(written[len(written) - len(scores.prefix_ids) :]) == (
    scores.prefix_ids
  )
  # The filter lets the end pass.
  marker_filter = cot_end.MarkerFilter(MARKER, tokenizer.decode)
  num_tokens = end.num_kept + bool(end.missing)
  assert marker_filter.may_end(np.asarray(tokens))[num_tokens - 1]
  assert marker_filter.may_hold(tokens[:num_tokens])
