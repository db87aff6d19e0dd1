"""Rows of every kind, whatever their columns are called."""

import pytest

from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.data import records, row_kinds, truncation
from tract_jax.text import prompt_template, prompts

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
PLAIN = {
  'instruction': 'Ask.',
  'response': 'Say.',
  'reference_answer': 'Best.',
  'rubric': 'Is it?',
  'score': 4,
  'feedback': 'Fine. So the overall score is 4',
}
FEEDBACK_COLLECTION = {
  'instruction': 'Formatted. ###Feedback: ',
  'output': 'Clear. [RESULT] 4',
  'orig_instruction': 'Ask.',
  'orig_response': 'Say.',
  'orig_reference_answer': 'Best.',
  'orig_criteria': 'Is it?',
  **{f'orig_score{i}_description': f'd{i}' for i in (1, 2, 3, 4, 5)},
  'orig_score': 4,
}
FLASK = {
  'idx': 1,
  'response_source': 'm',
  'instruction': 'Formatted.',
  'gpt4_score': [3, 5],
  'gpt4_feedback': ['a', 'b'],
  'human_score': [2, 3],
}
PAIR = {'prompt': 'Ask.', 'chosen': 'Good.', 'rejected': 'Bad.', 'subset': 's'}
TURNS = [
  {'role': 'system', 'content': 'no'},
  {'role': 'user', 'content': 'One?'},
  {'role': 'assistant', 'content': 'first'},
  {'role': 'user', 'content': 'Two?'},
  {'role': 'assistant', 'content': 'last'},
]


def read(row, role='eval', **row_format):
  examples, _ = records.examples_from_rows(
    [row],
    GRID,
    role=role,
    name='rows',
    row_format=row_kinds.RowFormat(**row_format),
  )
  return examples


def problem_of(row, role='eval', **row_format):
  with pytest.raises(types.InputError) as error:
    read(row, role, **row_format)
  (line,) = str(error.value).splitlines()
  return line


def own(instruction, response, reference='', rubric=''):
  parts = prompt_template.Parts(instruction, response, reference, rubric)
  return prompt_template.render(prompt_template.DEFAULT, parts, GRID)


def test_plain_row_is_rendered():
  (example,) = read(PLAIN, 'train')
  assert example.prompt == own('Ask.', 'Say.', 'Best.', 'Is it?')
  assert (example.score, example.cot) == (4.0, 'Fine.')
  (example,) = read({'instruction': 'Ask.', 'response': 'Say.'}, 'judge')
  assert example.prompt == own('Ask.', 'Say.')
  (example,) = read(PLAIN, use_reference=False)
  assert example.prompt == own('Ask.', 'Say.', rubric='Is it?')


def test_rubric_of_an_object_or_columns():
  described = {f'score{i}_description': f'd{i}' for i in (10, 2)}
  rubric = {'criteria': 'Is it?', **described, 'score3_description': None}
  text = '[Is it?]\nScore 2: d2\nScore 10: d10'
  for row in ({**PLAIN, 'rubric': rubric}, {**PLAIN, **rubric, 'rubric': None}):
    assert read(row)[0].prompt == own('Ask.', 'Say.', 'Best.', text)


def test_feedback_collection_is_rendered_where_a_template_is_given():
  assert read(FEEDBACK_COLLECTION)[0].prompt == 'Formatted. ###Feedback:'
  template = '{instruction}|{response}|{reference_answer}|{rubric}|{best}'
  rubric = '[Is it?]\n' + '\n'.join(f'Score {i}: d{i}' for i in range(1, 6))
  (example,) = read(FEEDBACK_COLLECTION, template=template)
  assert example.prompt == f'Ask.|Say.|Best.|{rubric}|5'
  assert example.score == 4.0
  (example,) = read(FEEDBACK_COLLECTION, template=template, use_reference=False)
  assert example.prompt == f'Ask.|Say.||{rubric}|5'
  assert problem_of(FLASK, template=template).endswith(
    'has only a formatted prompt, no "response" or "orig_response" for '
    'config.data.template'
  )


def test_formatted_prompt_loses_its_reference_answer():
  prompt = own('Ask.', 'Say.', 'Best.', 'Is it?')
  for row in ({'prompt': prompt, 'score': 1}, {**FLASK, 'instruction': prompt}):
    assert read(row)[0].prompt == prompt
    (example,) = read(row, use_reference=False)
    assert example.prompt == own('Ask.', 'Say.', rubric='Is it?')


def test_human_score_stands_beside_the_raters():
  (example,) = read(FLASK)
  assert (example.score, example.human_score) == (4.0, 2.5)
  assert read({**FLASK, 'human_score': 9})[0].human_score == 9.0
  assert read({**FLASK, 'human_score': None})[0].human_score is None
  assert "human_score 'x' is no number" in problem_of(
    {**FLASK, 'human_score': 'x'}
  )


def test_preference_row_gives_two_examples():
  chosen, rejected = read({**PAIR, 'id': 7})
  assert (chosen.example_id, rejected.example_id) == ('7-chosen', '7-rejected')
  assert chosen.pair_id == rejected.pair_id == '7'
  assert chosen.prompt == own('Ask.', 'Good.')
  assert rejected.prompt == own('Ask.', 'Bad.')
  for example in (chosen, rejected):
    assert (example.score, example.ratings, example.cot) == (None, (), '')
    assert example.category == 's'
  named = read({**PAIR, 'id': 7}, 'judge')
  assert [e.sampling_id for e in named] == ['7-chosen', '7-rejected']
  unnamed = read(PAIR, 'judge')
  assert len({e.sampling_id for e in unnamed}) == 2


def test_preference_row_of_chat_messages():
  other = [*TURNS[:-1], {'role': 'assistant', 'content': 'worse'}]
  row = {'chosen': TURNS, 'rejected': other}
  chosen, rejected = read(row)
  assert chosen.prompt == own('One?\n\nTwo?', 'last')
  assert rejected.prompt == own('One?\n\nTwo?', 'worse')
  chosen, _ = read({**row, 'prompt': 'Ask.'})
  assert chosen.prompt == own('Ask.', 'last')
  chosen, _ = read({**PAIR, 'prompt': TURNS[:2]})
  assert chosen.prompt == own('One?', 'Good.')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({**PLAIN, 'response': ' '}, 'its response is empty'),
    ({**PLAIN, 'response': 3}, 'response is int, not text'),
    ({**PLAIN, 'rubric': 3}, 'rubric is int, not text or an object'),
    ({**PLAIN, 'rubric': {'a': 1}}, 'rubric has no "criteria", only a'),
    ({**PLAIN, 'reference_answer': []}, 'reference_answer is list, not text'),
    ({**PAIR, 'chosen': ''}, 'its chosen response is empty'),
    ({**PAIR, 'rejected': TURNS[:2]}, 'its rejected response is empty'),
    ({**PAIR, 'rejected': [1]}, 'no text and no list of role and content'),
    ({**PAIR, 'prompt': None}, 'its instruction is missing or empty'),
    ({**PLAIN, 'instruction': ' '}, 'its instruction is missing or empty'),
  ],
)
def test_bad_part(row, message):
  assert message in problem_of(row)


@pytest.mark.parametrize(
  ('row', 'fields'),
  [
    ({'prompt': 'Ask.', 'response': 'Say.', 'score': 3}, {}),
    ({'prompt': 'Ask.', 'answer': 'Say.', 'score': 3}, {'response': 'answer'}),
    (
      {'prompt': 'Ask.', 'response': 'Say.', 'score': 3},
      {'instruction': 'prompt'},
    ),
  ],
)
def test_prompt_beside_a_response_is_what_was_asked(row, fields):
  (example,) = read(row, fields=fields)
  assert example.prompt == own('Ask.', 'Say.')


def test_a_templates_rubric_is_not_cut():
  row = {**PLAIN, 'response': 'word ' * 999, 'rubric': 'Is it? ' * 40}
  (example,) = read(row, template='Rate. {rubric}: {response}! {scores}')
  tokenizer = small_tokenizers.byte_level()
  cut = truncation.truncated(example.prompt, tokenizer, 500, example.judged)
  assert cut.startswith(f'Rate. {row["rubric"]}: word ')
  assert cut.endswith(' word ! 1, 2, 3, 4, 5')
  assert ' word [...] word ' in cut
  # Headings tell where our own template and formatted prompts are cut.
  assert read(row)[0].judged is None
  assert read(FEEDBACK_COLLECTION)[0].judged is None


def test_prompt_beside_instruction_and_response_is_formatted():
  (example,) = read({**PLAIN, 'prompt': 'Formatted.'})
  assert example.prompt == 'Formatted.'


def test_instruction_may_be_missing_where_a_template_has_none():
  row = {'response': 'Say.', 'score': 3}
  assert 'its instruction is missing or empty' in problem_of(row)
  (example,) = read(row, template='Rate: {response}')
  assert example.prompt == 'Rate: Say.'


def test_null_columns_say_nothing_of_a_rows_kind():
  rows = [PLAIN, FEEDBACK_COLLECTION, FLASK, PAIR]
  rows += [{'prompt': 'Formatted.', 'score': 2}]
  columns = {column: None for row in rows for column in row}
  for row in rows:
    for made, expected in zip(read(columns | row), read(row), strict=True):
      assert made == expected
  # Nor is anything made of the wrong columns where the right ones are null.
  for column, message in (
    ('score', 'it has no rating'),
    ('response', 'its response is empty'),
    ('instruction', 'its instruction is missing or empty'),
  ):
    assert message in problem_of({**PLAIN, column: None})


def test_preference_rows_are_not_trained_on():
  assert problem_of(PAIR, 'train') == (
    'rows: row 1 (id 1): is a preference row (chosen, rejected): it has no '
    'score to train on; use it as a benchmark'
  )


@pytest.mark.parametrize(
  'more',
  [{'gpt4_score': 2, 'gpt4_feedback': 'No.'}, {'output': 'No. [RESULT] 2'}],
)
def test_somebodys_rating_beside_plain_columns_changes_nothing(more):
  for role in ('train', 'eval', 'judge'):
    assert read({**PLAIN, **more}, role) == read(PLAIN, role)


@pytest.mark.parametrize('response', ['Ask', ''])
def test_a_response_that_the_instruction_holds_is_judged(response):
  row = {**PLAIN, 'response': response, 'gpt4_score': 2}
  if response:
    assert read(row) == read({**PLAIN, 'response': response})
  else:
    assert 'its response is empty' in problem_of(row)


def test_a_response_beside_a_published_prompt_changes_nothing():
  for row in (FLASK, FEEDBACK_COLLECTION):
    row = {**row, 'instruction': own('Ask.', 'Say.')}
    (example,), (alone,) = read({**row, 'response': 'Say.\n'}), read(row)
    assert (example.prompt, example.score) == (alone.prompt, alone.score)


def test_null_columns_are_passed_over():
  row = {**PLAIN, 'example_id': None, 'id': 'a', 'human_score': [4, None, 5]}
  (example,) = read(row, 'judge')
  assert (example.example_id, example.human_score) == ('a', 4.5)
  assert example.sampling_id == 'a'
  assert [e.category for e in read({**PAIR, 'category': None})] == ['s', 's']
  assert [e.category for e in read({**PAIR, 'category': 'c'})] == ['c', 'c']


def test_fields_name_the_files_columns():
  (example,) = read(FLASK, fields={'score': 'human_score'})
  assert (example.score, example.ratings) == (2.5, (2.0, 3.0))
  row = {'q': 'Ask.', 'a': 'Say.', 'mark': 2, 'why': 'So.', 'key': 'k', 'id': 1}
  fields = {
    'instruction': 'q', 'response': 'a', 'score': 'mark', 'cot': 'why',
    'example_id': 'key',
  }  # fmt: skip
  (example,) = read(row, 'train', fields=fields)
  assert example == types.Example(
    'k', own('Ask.', 'Say.'), 2.0, 'So.', 'annotator', (2.0,)
  )
  # The columns of a published row give way to the fields.
  (example,) = read({**FLASK, 'answer': 'Say.'}, fields={'response': 'answer'})
  assert example.prompt == own('Formatted.', 'Say.')


def test_fields_of_ratings_and_feedbacks_have_as_many():
  row = {**FLASK, 'notes': ['x'], 'marks': [1, 2, 3]}
  assert '2 ratings but 1 feedbacks' in problem_of(row, fields={'cot': 'notes'})
  both = {'cot': 'notes', 'score': 'marks'}
  assert '3 ratings but 1 feedbacks' in problem_of(row, fields=both)
  (example,) = read(row, fields={'score': 'marks'})
  assert (example.ratings, example.cot) == ((1.0, 2.0, 3.0), 'a')
  (example,) = read({**row, 'notes': 'x'}, fields={'cot': 'notes'})
  assert (example.ratings, example.cot) == ((3.0, 5.0), 'x')


def test_field_without_a_column():
  assert problem_of(FLASK, fields={'score': 'gold'}) == (
    "rows: config.data.fields: score=gold: no row has a column 'gold'; its "
    'columns are idx, response_source, instruction, gpt4_score, gpt4_feedback, '
    'human_score'
  )
  rows = [{**PLAIN, 'gold': 1}, PLAIN]
  with pytest.raises(types.InputError) as error:
    records.examples_from_rows(
      rows,
      GRID,
      role='eval',
      name='rows',
      row_format=row_kinds.RowFormat(fields={'score': 'gold'}),
    )
  assert str(error.value) == (
    "rows: row 2 (id 2): has no column 'gold', which config.data.fields takes "
    'as score'
  )


@pytest.mark.parametrize(
  ('row', 'expected'),
  [
    (PLAIN, ['Say.']),
    (FEEDBACK_COLLECTION, ['Say.']),
    (FLASK, ['']),
    (PAIR, ['Good.', 'Bad.']),
    ({**FLASK, 'instruction': prompt_template.DEFAULT}, ['{response}']),
    # The judged text may hold a heading itself.
    (
      {
        'prompt': 'a\n###Response to evaluate:\nb\n###Score Rubrics: no\n'
        '###Score Rubrics:\nc',
        'score': 3,
      },
      ['b\n###Score Rubrics: no'],
    ),
    # A column that is no text is passed over, as it is in other places.
    ({**FEEDBACK_COLLECTION, 'orig_response': 3}, ['']),
  ],
)
def test_response_that_is_reported_on(row, expected):
  assert [e.response for e in read(row)] == expected


def test_who_wrote_the_response():
  assert read(FLASK)[0].response_source == 'm'
  assert read({**FLASK, 'response_source': 4})[0].response_source == ''
  assert read(PLAIN)[0].response_source == ''
  assert read(PLAIN, 'train')[0].response == ''
