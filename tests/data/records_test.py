import dataclasses
import decimal
import json
import pathlib

import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import records
from tract_jax.text import prompts

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
MT_BENCH = (
  pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'mt_bench_eval.json'
)

FEEDBACK_COLLECTION = {
  'instruction': '###Task\nJudge "it".\n\n###Feedback: ',
  'output': 'Clear. So the overall score is 4. [RESULT] 4',
  'orig_feedback': 'Clear. So the overall score is 4.',
  'orig_score': '4',
}
BENCHMARK = {
  'idx': 83,
  'response_source': 'llama',
  'category': 'writing',
  'instruction': 'Judge it.\n###Feedback: ",',
  'gpt4_score': [3, 2, 3],
  'gpt4_feedback': ['first', 'second', 'third'],
}
PLAIN = {'prompt': 'Rate "a", ', 'score': 2.5}


def read(rows, role='train', **kwargs):
  return records.examples_from_rows(
    rows, GRID, role=role, name='rows', **kwargs
  )


def problems_of(rows, role='train'):
  with pytest.raises(types.InputError) as error:
    read(rows, role)
  return str(error.value).splitlines()


def plain(**columns):
  return {'prompt': 'p', 'score': 3, **columns}


def test_row_of_feedback_collection():
  (example,), report = read([FEEDBACK_COLLECTION])
  assert example == types.Example(
    example_id='1',
    prompt='###Task\nJudge "it".\n\n###Feedback:',
    score=4.0,
    cot='Clear.',
    cot_source='annotator',
    ratings=(4.0,),
  )
  assert report == records.ReadReport('rows', 1, 0, 0, 1, 0, 0)


def test_score_of_feedback_collection_without_its_column():
  row = {k: v for k, v in FEEDBACK_COLLECTION.items() if k != 'orig_score'}
  (example,), _ = read([row])
  assert example.score == 4.0
  (line,) = problems_of([{**row, 'output': 'Clear.'}])
  assert line == (
    'rows: row 1 (id 1): has no orig_score, and no [RESULT] in its output'
  )


def test_training_takes_the_first_rating_and_its_feedback():
  (example,), report = read([BENCHMARK])
  assert example == types.Example(
    example_id='83-llama',
    prompt='Judge it.\n###Feedback:',
    score=3.0,
    cot='first',
    cot_source='annotator',
    ratings=(3.0, 2.0, 3.0),
    category='writing',
    response_source='llama',
  )
  assert (report.num_first_rating, report.num_averaged) == (1, 0)


@pytest.mark.parametrize('role', ['train', 'eval'])
def test_one_cot_of_all_ratings_goes_with_their_mean(role):
  (example,), report = read([plain(score=[1, 2, 5], cot='Clear.')], role)
  assert example.score == pytest.approx(8 / 3)
  assert example.ratings == (1.0, 2.0, 5.0)
  assert (example.cot, example.cot_source) == ('Clear.', 'annotator')
  assert (report.num_first_rating, report.num_averaged) == (0, 1)


@pytest.mark.parametrize(('stated', 'differs'), [(3, 0), (1, 1), (2, 1)])
def test_score_that_the_cot_of_all_ratings_names(stated, differs):
  # Their mean is 2.67, which the grid has as 3.
  row = plain(score=[1, 2, 5], cot=f'Clear. {prompts.MARKER} {stated}')
  (example,), report = read([row])
  assert example.cot == 'Clear.'
  assert report.num_score_differs == differs


def test_evaluation_takes_the_mean_of_ratings():
  (example,), report = read([BENCHMARK], 'eval')
  assert example.score == pytest.approx(8 / 3)
  assert example.ratings == (3.0, 2.0, 3.0)
  assert (report.num_first_rating, report.num_averaged) == (0, 1)


def test_mean_of_equal_ratings_is_that_rating():
  row = BENCHMARK | {'gpt4_score': [1.6, 1.6, 1.6]}
  (example,), _ = read([row], 'eval')
  assert example.score == 1.6


def test_benchmark_with_one_rating():
  row = {**BENCHMARK, 'gpt4_score': 5, 'gpt4_feedback': 'good'}
  (example,), report = read([row], 'eval')
  assert (example.score, example.cot, example.ratings) == (5.0, 'good', (5.0,))
  assert report.num_averaged == 0


def test_plain_row_stands_as_it_is():
  (example,), report = read([PLAIN])
  assert example == types.Example('1', 'Rate "a", ', 2.5, ratings=(2.5,))
  assert report.num_without_cot == 1
  (example,), _ = read([{'instruction': 'i', 'score': 1, 'cot': 'so'}])
  assert (example.prompt, example.cot, example.cot_source) == (
    'i', 'so', 'annotator',
  )  # fmt: skip


def test_row_to_be_judged_needs_no_rating():
  rows = [
    {'prompt': 'p "'},
    {'instruction': 'i ",', 'idx': 1, 'response_source': 'a'},
    {'instruction': 'o ', 'output': 'no rating in it'},
    {**BENCHMARK, 'gpt4_score': None},
    {'prompt': 'p', 'score': None, 'cot': 'so', 'id': 7},
  ]
  for row in rows:
    assert problems_of([row], 'eval')
  examples, report = read(rows[:4], 'judge')
  assert [e.prompt for e in examples] == [
    'p "',
    'i',
    'o',
    'Judge it.\n###Feedback:',
  ]
  assert [e.score for e in examples] == [None] * 4
  assert {(e.cot, e.ratings) for e in examples} == {('', ())}
  assert report.num_without_score == 4
  (example,), _ = read(rows[4:], 'judge')
  assert (example.example_id, example.score, example.cot) == ('7', None, '')


def test_row_to_be_judged_keeps_its_rating():
  (judged,), report = read([BENCHMARK], 'judge')
  (rated,), _ = read([BENCHMARK], 'eval')
  assert dataclasses.replace(judged, sampling_id='') == rated
  assert (report.num_averaged, report.num_without_score) == (1, 0)
  (line,) = problems_of([plain(score=7)], 'judge')
  assert 'score 7 is outside' in line
  (line,) = problems_of([{'text': 'a'}], 'judge')
  assert 'needed are "prompt" or "instruction"' in line


def test_sampling_id_is_the_rows_own_whatever_is_beside_it():
  rows = [
    {'prompt': 'a'},
    {'prompt': 'b', 'idx': 1, 'response_source': 's'},
    {'prompt': 'b', 'idx': 1},
    {'prompt': 'a', 'score': 3},
  ]
  examples, _ = read(rows, 'judge')
  ids = [e.sampling_id for e in examples]
  assert ids[1] == '1-s'
  assert ids[0] == ids[3] != ids[2]
  assert [e.example_id for e in examples] == ['1', '2', '3', '4']
  for row, expected in zip(rows, ids, strict=True):
    assert read([row], 'judge')[0][0].sampling_id == expected
  (named,), _ = read([{'prompt': 'a', 'uuid': 'u'}], 'judge')
  assert named.sampling_id == named.example_id == 'u'
  assert read([plain(id='x')], 'eval')[0][0].sampling_id == ''


def test_feedback_with_another_score_is_counted_and_the_rater_is_right():
  rows = [{**FEEDBACK_COLLECTION, 'orig_score': 2}, FEEDBACK_COLLECTION]
  examples, report = read(rows)
  assert [e.score for e in examples] == [2.0, 4.0]
  assert report.num_score_differs == 1


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (7, 'score 7 is outside the grid 1..5'),
    (0.99, 'score 0.99 is outside the grid 1..5'),
    (True, 'score True is no number'),
    (float('nan'), 'score nan is not finite'),
    ('nan', "score 'nan' is not finite"),
    (10**400, 'is no number'),
    ([10**5000], 'is no number'),
    ('four', "score 'four' is no number"),
    ('1_0', "score '1_0' is no number"),
    ('4' + ' or so' * 999, "score '4 or so or s...o or so or so' is no number"),
    ({}, 'score {} is no number'),
    ([], 'it has no rating'),
    (None, 'it has no rating'),
    ([3, 9], 'score 9 is outside'),
  ],
)
def test_bad_score(value, message):
  (line,) = problems_of([plain(id=83, score=value)])
  assert line.startswith('rows: row 1 (id 83): ')
  assert message in line


def test_score_as_text():
  (example,), report = read([plain(score=' 4 ')])
  assert example.score == 4.0
  assert report.num_text_scores == 1


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ([1], 'is list, not an object'),
    ({}, 'its columns are none; needed are'),
    (
      {'text': 'a', 'label': 1},
      'its columns are text, label; needed are "instruction" with "output"',
    ),
    (plain(prompt=''), 'its prompt is empty'),
    (plain(prompt=' \n'), 'its prompt is empty'),
    (plain(prompt=3), 'prompt is int, not text'),
    (plain(prompt='a\ud800b'), 'half a surrogate pair at character 1'),
    (plain(cot='\udfff'), 'half a surrogate pair'),
    (plain(score=[1, 2], cot=['one']), '2 ratings but 1 feedbacks'),
    (plain(id=1.5), 'id 1.5 is no text and no whole number'),
    (plain(id=True), 'id True is no text'),
    (plain(uuid=''), "uuid '' is no text"),
    (plain(category=1), 'category is int, not text'),
  ],
)
def test_bad_row(row, message):
  (line,) = problems_of([row])
  assert message in line


def test_all_problems_are_told_at_once_up_to_twenty():
  lines = problems_of([plain(score=7)] * 20)
  assert len(lines) == 20
  lines = problems_of([plain(), *[plain(score=7)] * 23])
  assert len(lines) == 21
  assert lines[0] == 'rows: row 2 (id 2): score 7 is outside the grid 1..5'
  assert lines[-1] == 'rows: and 3 more rows'


def test_ids():
  def ids(rows):
    return [e.example_id for e in read(rows)[0]]

  assert ids([plain(), plain()]) == ['1', '2']
  assert ids([plain(id=7), plain(id='x')]) == ['7', 'x']
  assert ids([plain(example_id='a', id=1)]) == ['a']
  named = [plain(idx=1, response_source=s) for s in 'ab']
  assert ids(named) == ['1-a', '1-b']
  # Not unique, or not everywhere: the row's number.
  assert ids([named[0], named[0]]) == ['1', '2']
  assert ids([named[0], plain()]) == ['1', '2']


def test_duplicate_explicit_id_is_refused():
  (line,) = problems_of([plain(id='a\nb', score=7)])
  assert line.startswith("rows: row 1 (id 'a\\nb'): score 7")
  (line,) = problems_of([plain(id='a'), plain(id='b'), plain(id='a')])
  assert line == 'rows: row 3 (id a): id stands in row 1 already'


def test_row_of_the_name_that_a_response_gets_is_refused():
  pair = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'id': 'x'}
  rows = [pair, plain(id='x-chosen')]
  with pytest.raises(types.InputError) as error:
    records.examples_from_rows(rows, GRID, role='eval', name='rows')
  assert str(error.value) == (
    "rows: row 2 (id x-chosen): another row is 'x-chosen'"
  )


def test_columns_of_any_name_are_told_in_one_line():
  (line,) = problems_of([{'a\nb': 1, 3: 'x'}])
  assert "its columns are 'a\\nb', 3; needed are" in line
  row = {'instruction': 'i', 'response': 'r', 'criteria': 'c', 7: 'x'}
  assert read([row | {'score': 2}])[0][0].score == 2.0


def test_hostile_text_is_kept():
  prompt = 'a\x00b </s> [RESULT] 5 So the overall score is 5'
  (example,), _ = read([plain(prompt=prompt, cot='c\n\n')])
  assert (example.prompt, example.cot) == (prompt, 'c')


@pytest.mark.parametrize(
  ('cot', 'expected'),
  [
    ('', ''),
    ('So the overall score is 3', ''),
    ('Good. So the overall score is 3. [RESULT] 3', 'Good.'),
    (
      'It says "So the overall score is 5". So the overall score is 3',
      'It says "So the overall score is 5".',
    ),
  ],
)
def test_marker_that_is_missing_alone_or_twice(cot, expected):
  (example,), report = read([plain(cot=cot)])
  assert (example.cot, example.score) == (expected, 3.0)
  assert example.cot_source == ('annotator' if expected else 'none')
  assert report.num_without_cot == (not expected)
  assert report.num_score_differs == 0


def test_parquet_with_other_types(tmp_path):
  parquet = pytest.importorskip('pyarrow.parquet')
  pyarrow = pytest.importorskip('pyarrow')

  def read_table(**columns):
    parquet.write_table(pyarrow.table(columns), tmp_path / 'rows.parquet')
    return records.read_examples(
      str(tmp_path / 'rows.parquet'), GRID, role='eval'
    )[0]

  texts = pyarrow.array(['p']).dictionary_encode()
  for kind in (pyarrow.int8(), pyarrow.float32(), pyarrow.string()):
    scores = pyarrow.array([4]).cast(kind)
    (example,) = read_table(prompt=texts, score=scores)
    assert (example.prompt, example.score) == ('p', 4.0)
  for columns, message in (
    ({'prompt': [b'p'], 'score': [4]}, 'row 1 (id 1): prompt is bytes, not'),
    ({'prompt': ['p'], 'score': [decimal.Decimal(4)]}, 'is no number'),
    ({'prompt': ['p'], 'score': [True]}, 'score True is no number'),
    ({'prompt': ['p'], 'score': [None]}, 'it has no rating'),
  ):
    with pytest.raises(types.InputError) as error:
      read_table(**columns)
    assert message in str(error.value)


def test_no_rows_and_unknown_role():
  assert problems_of([]) == ['rows: is empty; at least one row is needed']
  with pytest.raises(ValueError, match="role 'test' is none of train, eval"):
    read([PLAIN], 'test')


def test_read_examples_names_file_and_line(tmp_path):
  path = tmp_path / 'judgé.jsonl'
  rows = [plain(), plain(), plain(score=6)]
  path.write_text('\n\n'.join(map(json.dumps, rows)), encoding='utf-8')
  with pytest.raises(types.InputError) as error:
    records.read_examples(str(path), GRID, role='train')
  assert str(error.value) == (
    f'{path}: line 5 (id 3): score 6 is outside the grid 1..5'
  )
  examples, report = records.read_examples(
    str(path), GRID, role='train', max_examples=2
  )
  assert len(examples) == report.num_rows == 2


@pytest.mark.skipif(not MT_BENCH.exists(), reason=f'{MT_BENCH} is not here')
def test_real_judgements():
  examples, report = records.read_examples(str(MT_BENCH), GRID, role='eval')
  assert (report.num_rows, report.num_averaged) == (320, 320)
  assert len({e.example_id for e in examples}) == 320
  first = examples[0]
  assert first.example_id == '83-llama2_chat_13b'
  assert first.ratings == (3.0, 2.0, 3.0)
  assert first.score == pytest.approx(8 / 3)
  assert all(e.prompt.endswith('###Feedback:') for e in examples)
  scores = [e.score for e in examples]
  assert round(np.mean(scores), 2) == 3.49
  # Of the rows themselves (ddof 0); 1.248 as of a sample.
  assert np.std(scores) == pytest.approx(1.2463, abs=5e-5)
  raw = json.loads(MT_BENCH.read_text(encoding='utf-8'))
  assert not any(row['instruction'].endswith(':') for row in raw)
  train, _ = records.read_examples(str(MT_BENCH), GRID, role='train')
  for example, row in zip(train, raw, strict=True):
    assert example.cot == row['gpt4_feedback'][0].rstrip()
    assert example.cot_source == 'annotator'
  assert all(e.score in GRID.values and e.cot for e in train)
