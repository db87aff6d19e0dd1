"""Tests of the rated texts: parsing, rationales and rows, by hand."""

import json

import pytest

from tract_jax import types
from tract_jax.data import records, sentiment
from tract_jax.text import prompts

GROUND_TRUTH = (
  b'1\t2.5\tYay, a good day!\r\n'
  b'2\t-0.333333333\tna\xc3\xafve \xe2\x80\x93 so &amp; so\r\n'
)
RATINGS = (
  b'\xef\xbb\xbf1\t2.5\t0.5\t[2, 3]\r\n2\t-0.333333333\t0.9\t[-1, 1, -1]\r\n'
)
LEXICON = {
  'good': 1.9,
  'lucky': 1.8,
  'sad': -2.1,
  'horrible': -2.5,
  'love': 3.2,
  'no': -1.2,
  'meh': -0.3,
  ':)': 2.0,
}


def read(ground_truth=GROUND_TRUTH, ratings=RATINGS):
  return sentiment.read_texts('tweets', ground_truth, ratings)


def problems_of(**files):
  with pytest.raises(types.InputError) as error:
    read(**files)
  return str(error.value).splitlines()


def test_two_files_are_joined_by_id():
  texts, left_out = read()
  assert texts == [
    sentiment.RatedText('tweets-1', 'tweets', 'Yay, a good day!', (2, 3)),
    sentiment.RatedText(
      'tweets-2', 'tweets', 'naïve – so &amp; so', (-1, 1, -1)
    ),
  ]
  assert left_out == []


def test_text_whose_two_means_differ_is_left_out_and_named():
  texts, left_out = read(ratings=RATINGS.replace(b'[2, 3]', b'[2, 2]'))
  assert [text.text_id for text in texts] == ['tweets-2']
  assert left_out == ['tweets-1']


@pytest.mark.parametrize(
  ('files', 'line'),
  [
    (
      {'ground_truth': GROUND_TRUTH.replace(b'\xc3\xaf', b'\xef')},
      'tweets_GroundTruth.txt: line 2: byte 0xef is not UTF-8',
    ),
    (
      {'ground_truth': GROUND_TRUTH.replace(b'\tYay', b' Yay')},
      'tweets_GroundTruth.txt: line 1: 2 columns, 3 expected',
    ),
    (
      {'ground_truth': GROUND_TRUTH.replace(b'\t2.5', b'\tmuch')},
      "tweets_GroundTruth.txt: line 1: mean 'much' is no number",
    ),
    (
      {'ground_truth': GROUND_TRUTH.replace(b'Yay, a good day!', b' ')},
      'tweets_GroundTruth.txt: line 1: the text is empty',
    ),
    (
      {'ratings': RATINGS.replace(b'[2, 3]', b'[2, 5]')},
      'tweets_anonDataRatings.txt: line 1: rating 5 is no whole number from'
      ' -4 to 4',
    ),
    (
      {'ratings': RATINGS.replace(b'[2, 3]', b'[2, true]')},
      'tweets_anonDataRatings.txt: line 1: rating True is no whole number from'
      ' -4 to 4',
    ),
    (
      {'ratings': RATINGS.replace(b'[2, 3]', b'[]')},
      "tweets_anonDataRatings.txt: line 1: ratings '[]' are no list of numbers",
    ),
    (
      {'ratings': RATINGS.replace(b'[2, 3]', b'2, 3')},
      "tweets_anonDataRatings.txt: line 1: ratings '2, 3' are no list of"
      ' numbers',
    ),
    (
      {'ratings': RATINGS + b'2\t0\t0\t[0]\r\n'},
      'tweets_anonDataRatings.txt: line 3: id 2 stands in line 2 already',
    ),
    (
      {'ratings': RATINGS + b'3\t0\t0\t[0]\r\n'},
      'tweets_anonDataRatings.txt: line 3: id 3 has no line in the other file',
    ),
  ],
)
def test_bad_line_is_named(files, line):
  assert line in problems_of(**files)


def test_lexicon():
  content = (
    b'LOL\t1.8\t.4\t[2]\r\n:-\xc3\x9e\t1.1\t.4\t[1]\r\nlol\t2.9\t.3\t[3]'
  )
  assert sentiment.read_lexicon(content) == {'lol': 2.9, ':-þ': 1.1}
  with pytest.raises(types.InputError) as error:
    sentiment.read_lexicon(b'a\t1\t0\t[1]\nb\tx\t0\t[1]\nc\n')
  assert str(error.value).splitlines() == [
    "vader_lexicon.txt: line 2: mean 'x' is no number",
    'vader_lexicon.txt: line 3: 1 columns, 4 expected',
  ]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    # 1.9 and 1.8: mean 1.85.
    (
      'Good, "LUCKY"!',
      '"good" is clearly positive, "lucky" is clearly positive.'
      ' On the whole: clearly positive.',
    ),
    # -.74 * 1.9 = -1.406; and 2.0: mean .297.
    (
      "It isn't all that good :)",
      '"good" after "isn\'t" is slightly negative, ":)" is clearly positive.'
      ' On the whole: neutral.',
    ),
    # -.74 * -2.5 = 1.85; the negation itself is not counted, rated as it is.
    (
      'No horrible day',
      '"horrible" after "no" is clearly positive.'
      ' On the whole: clearly positive.',
    ),
    # The fourth word after the negation is out of its reach.
    (
      'not that it is good',
      '"good" is clearly positive. On the whole: clearly positive.',
    ),
    ('meh', '"meh" is neutral. On the whole: neutral.'),
    # The weakest of four is not named, but counted: 2.6 / 4 = .65.
    (
      'sad lucky, love and meh',
      '"sad" is clearly negative, "lucky" is clearly positive, "love" is very'
      ' positive, and 1 more. On the whole: slightly positive.',
    ),
    # Equal words are not named more often than there is room for.
    (
      'good good good good good',
      '"good" is clearly positive, "good" is clearly positive, "good" is'
      ' clearly positive, and 2 more. On the whole: clearly positive.',
    ),
    (
      'The consulate issues visas.',
      'No word here has a rated feeling. On the whole: neutral.',
    ),
  ],
)
def test_rationale_by_hand(text, expected):
  assert sentiment.rationale(text, LEXICON) == expected


@pytest.mark.parametrize(
  ('valence', 'words'),
  [
    (-4.0, 'extremely negative'),
    (-3.5, 'extremely negative'),
    (-3.4, 'very negative'),
    (-0.5, 'slightly negative'),
    (-0.4, 'neutral'),
    (0.4, 'neutral'),
    (0.5, 'slightly positive'),
    (2.4, 'clearly positive'),
    (2.5, 'very positive'),
    (4.0, 'extremely positive'),
  ],
)
def test_valence_in_the_words_of_the_rubric(valence, words):
  assert sentiment.in_words(valence) == words


def many_texts():
  return [
    sentiment.RatedText(f'tweets-{i}', 'tweets', f'good day {i % 90}', (1, 2))
    for i in range(100)
  ]


def test_equal_texts_are_on_one_side_and_order_does_not_matter():
  train, test = sentiment.make_rows(many_texts(), LEXICON)
  assert len(train) + len(test) == 100
  assert 5 < len(test) < 40
  assert not {r['prompt'] for r in train} & {r['prompt'] for r in test}
  assert (train, test) == sentiment.make_rows(many_texts()[::-1], LEXICON)
  ids = [row['example_id'] for row in train]
  assert ids != sorted(ids, key=lambda i: int(i.removeprefix('tweets-')))


def test_side_of_a_text_does_not_depend_on_the_others():
  _, test = sentiment.make_rows(many_texts(), LEXICON)
  _, fewer = sentiment.make_rows(many_texts()[::2], LEXICON)
  assert {r['example_id'] for r in fewer} <= {r['example_id'] for r in test}


@pytest.mark.parametrize('role', ['train', 'eval'])
def test_row_is_an_example_with_the_mean_of_its_ratings(role):
  text = sentiment.RatedText('tweets-7', 'tweets', ' good </s> ', (2, -4, 3, 2))
  rows = sum(sentiment.make_rows([text], LEXICON), [])
  rows = [json.loads(json.dumps(row)) for row in rows]
  grid = prompts.make_score_grid(range(-4, 5))
  (example,), report = records.examples_from_rows(
    rows, grid, role=role, name='rows'
  )
  assert example == types.Example(
    example_id='tweets-7',
    prompt=sentiment.PROMPT.replace('{text}', 'good </s>'),
    score=0.75,
    cot='"good" is clearly positive. On the whole: clearly positive.',
    cot_source='annotator',
    ratings=(2.0, -4.0, 3.0, 2.0),
    category='tweets',
  )
  assert (report.num_averaged, report.num_first_rating) == (1, 0)
