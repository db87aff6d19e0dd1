"""Tests of the ways in which a row may end, through the whole engine.

A sample is (finish reason, text up to the score, tokens not the model's own).
"""

import dataclasses

import pytest

from tests.sampling import cases, fakes

_MARKER_END = ('marker', 'ab' + cases.MARKER_TEXT[:-1])
# What the model writes -> finish reason, the tokens' text, tokens not its own.
_ENDINGS = {
  'ab So the overall score is 4': (*_MARKER_END, 0),
  'So the overall score is 4': ('marker', cases.MARKER_TEXT[1:-1], 0),
  # Another token than the prefix, the space between marker and score.
  'ab So the overall score is1': (*_MARKER_END, 1),
  # The end token where the prefix should be.
  'ab So the overall score is': (*_MARKER_END, 1),
  # " is." reaches past the marker's end.
  'ab So the overall score is. 4': (*_MARKER_END, 2),
  # The first of two markers.
  'ab So the overall score is 4 So the overall score is 3': (*_MARKER_END, 0),
  # The model stops by itself: the fixed words are written.
  'ab is all so': ('end_token', 'ab is all so' + cases.MARKER_TEXT[:-1], 6),
  'ab \n': ('end_token', 'ab' + cases.MARKER_TEXT[:-1], 6),
  '': ('end_token', cases.MARKER_TEXT[:-1], 6),
}


@pytest.mark.parametrize('steps_per_call', [1, 2, 5, 16])
def test_endings(steps_per_call):
  scripts = [cases.script_of(text) for text in _ENDINGS]
  samples = cases.sample_scripts(scripts, steps_per_call=steps_per_call)
  facts = [cases.facts_of(sample) for sample in samples]
  assert dict(zip(_ENDINGS, facts, strict=True)) == _ENDINGS


@pytest.mark.parametrize('steps_per_call', [1, 16])
def test_length_limit(steps_per_call):
  sampling = dataclasses.replace(cases.PLAIN, max_new_tokens=6)
  completed = cases.MARKER_TEXT[:-1]
  wanted = {
    'abceabceabce': ('length', 'abceab' + completed, 6),
    # The last token allowed is the marker's, in three ways.
    'a So the overall score is 4': ('marker', 'a' + completed, 1),
    'So the overall score is 4': ('marker', completed[1:], 1),
    'a So the overall score is. 4': ('marker', 'a' + completed, 2),
  }
  samples = cases.sample_scripts(
    [cases.script_of(text) for text in wanted],
    sampling=sampling,
    steps_per_call=steps_per_call,
  )
  facts = [cases.facts_of(sample) for sample in samples]
  assert dict(zip(wanted, facts, strict=True)) == wanted


def test_marker_complete_at_the_limit_with_empty_prefix():
  cot_format = dataclasses.replace(
    fakes.COT_FORMAT,
    lead_ids=fakes.COT_FORMAT.lead_ids[:-1],
    prefix_ids=(),
  )
  # The first row has room for 6 tokens, and rests while the other goes on;
  # then its score is read without any token being forced.
  room = 64 - len(cot_format.lead_ids) - 1
  samples = cases.sample_scripts(
    [
      cases.script_of('a So the overall score is'),
      cases.script_of('abceabceabceabceabce'),
    ],
    requests=[cases.make_request(1, room - 6), cases.make_request(2)],
    cot_format=cot_format,
    steps_per_call=16,
  )
  text = 'a So the overall score is'
  assert cases.facts_of(samples[0]) == ('marker', text, 0)


def test_token_that_spells_the_marker_oddly():
  tokens = fakes.encode_text('ab So the over')
  tokens += [fakes.PIECES.index(p) for p in ('all s', 'core', ' is', ' ', '4')]
  (sample,) = cases.sample_scripts([tokens])
  assert cases.facts_of(sample) == ('marker', 'ab' + cases.MARKER_TEXT[:-1], 0)
  assert sample.tokens.tolist() == tokens[:-1]


def test_marker_that_the_filter_cannot_see_is_found_at_the_end():
  # " is" alone shows as nothing, so joined texts never hold the marker.
  hidden = fakes.encode_text(' is')

  def decode_text(ids):
    return '' if list(ids) == hidden else fakes.decode_text(ids)

  (sample,) = cases.sample_scripts(
    [cases.script_of('ab' + cases.MARKER_TEXT)], decode_text=decode_text
  )
  assert cases.facts_of(sample) == ('marker', 'ab' + cases.MARKER_TEXT[:-1], 0)


@pytest.mark.parametrize('steps_per_call', [2, 16])
def test_non_finite_logits_spoil_their_own_row_only(steps_per_call):
  good = cases.script_of('ab' + cases.MARKER_TEXT)
  words = fakes.encode_text('ab So the overall score is')
  samples = cases.sample_scripts(
    [
      [*fakes.encode_text('ab'), fakes.NAN],
      good,
      # Where the score should be, and after it.
      [*words, *fakes.encode_text(' '), fakes.NAN],
      [*words, *fakes.encode_text(' 4'), fakes.NAN],
    ],
    steps_per_call=steps_per_call,
  )
  reasons = [sample.finish_reason for sample in samples]
  assert reasons == ['non_finite', 'marker', 'non_finite', 'marker']
  assert cases.text_of(samples[0]) == 'ab'
  assert cases.text_of(samples[1]) == 'ab' + cases.MARKER_TEXT[:-1]


def test_non_finite_where_the_prefix_is_forced():
  words = fakes.encode_text('ab So the overall score is')
  (sample,) = cases.sample_scripts([[*words, fakes.NAN]])
  # What came before is sound, and so is the score after the forced prefix.
  assert cases.facts_of(sample) == ('marker', 'ab' + cases.MARKER_TEXT[:-1], 1)
