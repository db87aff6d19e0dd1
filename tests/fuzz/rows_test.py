"""Data files of any content: refused in words, or kept to the letter."""

import json

from hypothesis import strategies as st

from tests.fuzz import properties, strategies
from tract_jax import types
from tract_jax.data import records, row_files, row_kinds, sentiment
from tract_jax.objectives import targets
from tract_jax.text import prompt_template, prompts

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
_ROWS = (
  {'prompt': 'Is it good?', 'score': 4, 'cot': 'It is. [RESULT] 4', 'id': 'a'},
  {'prompt': 'Is it?', 'score': [4, 2.5], 'cot': ['It is.', ''], 'id': 3},
  {'instruction': 'Judge "it",', 'output': 'Good. [RESULT] 3'},
  {
    'instruction': 'Judge it.',
    'gpt4_score': ['4', 5],
    'gpt4_feedback': ['It is.', f'It. {prompts.MARKER} 5'],
    'human_score': 3.2,
    'idx': 7,
    'response_source': 'b',
  },
  {
    'instruction': 'Add 1 and 2.',
    'response': '3',
    'reference_answer': 'three',
    'rubric': {'criteria': 'Is it right?', 'score1_description': 'no'},
    'score': 5.0,
    'category': 'sums',
  },
  {'prompt': 'Add.', 'chosen': '3', 'rejected': '4', 'subset': 's', 'id': 'a'},
  {
    'prompt': 'Add.',
    'chosen': [{'role': 'assistant', 'content': '3'}],
    'rejected': [{'role': 'assistant', 'content': '4'}],
  },
  {
    'orig_instruction': 'Add.',
    'orig_response': '3',
    'orig_criteria': 'Is it right?',
    'orig_score5_description': 'yes',
    'orig_score': '5',
    'orig_feedback': 'Yes.',
  },
)  # fmt: skip
_TEXTS = ('prompt', 'cot', 'instruction', 'output', 'response', 'chosen', 'id')
_roles = st.sampled_from(['eval', *records.ROLES])
_PLAIN = row_kinds.RowFormat()
_formats = st.sampled_from(
  [
    *[_PLAIN] * 4,
    row_kinds.RowFormat(use_reference=False),
    row_kinds.RowFormat(template='{instruction}|{response}|{rubric}'),
    row_kinds.RowFormat(fields={'prompt': 'instruction', 'score': 'idx'}),
  ]
)


@st.composite
def _rows(draw) -> list:
  """Rows of the kinds that there are, with other texts and some changes."""
  found = []
  for number in range(draw(st.integers(1, 3))):
    row = dict(draw(st.sampled_from(_ROWS)))
    if 'id' in row and number:
      row['id'] = f'{row["id"]}{number}'
    for key in draw(st.lists(st.sampled_from(_TEXTS), max_size=2)):
      if isinstance(row.get(key), str):
        row[key] = draw(strategies.texts())
    if draw(st.integers(0, 3)) == 0:
      row = draw(strategies.with_changes(row))
    found.append(row)
  return found


@st.composite
def _files(draw) -> bytes:
  rows = draw(_rows())
  ascii_only = draw(st.booleans())
  try:
    if draw(st.booleans()):
      content = json.dumps(rows, ensure_ascii=ascii_only).encode()
    else:
      end = draw(st.sampled_from(['\n', '\r\n', '\n\n']))
      lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
      content = end.join(lines).encode()
  except UnicodeEncodeError:  # Half a surrogate pair.
    content = json.dumps(rows).encode()
  if draw(st.integers(0, 4)) == 0:
    content = b'\xef\xbb\xbf' + content
  if draw(st.integers(0, 3)) == 0:
    content = draw(strategies.damaged(content))
  return content


def _parsed(content: bytes) -> list:
  """The rows, read by nothing of ours."""
  text = content.decode('utf-8-sig')
  if text.lstrip().startswith('['):
    return json.loads(text)
  return [json.loads(line) for line in text.split('\n') if line.strip()]


def _check_kept(
  rows: list, examples: list[types.Example], role: str, row_format
) -> None:
  """Accepted rows have their own texts and scores."""
  ids = [example.example_id for example in examples]
  assert len(set(ids)) == len(ids)
  todo = list(examples)
  for row in rows:
    num_pairs = 2 if row.keys() >= {'chosen', 'rejected'} else 1
    if num_pairs == 2 and None in (row['chosen'], row['rejected']):
      num_pairs = 1
    for example in todo[:num_pairs]:
      _check_one(row, example, role, row_format)
    del todo[:num_pairs]
  assert not todo


def _check_one(
  row: dict, example: types.Example, role: str, row_format
) -> None:
  for score in (example.score, *example.ratings):
    assert score is None or GRID.values[0] <= score <= GRID.values[-1]
  assert example.score is not None or role == 'judge' or example.pair_id
  example.prompt.encode()
  assert example.prompt.strip()
  plain = not row_format.template and not row_format.fields
  if plain and row_format.use_reference and row.keys() <= {
    'prompt', 'score', 'cot', 'id',
  }:  # fmt: skip
    assert example.prompt == row['prompt']
    given = row.get('score')
    given = given if isinstance(given, list) else [given]
    given = [float(score) for score in given if score is not None]
    assert list(example.ratings) == given
    cot = row.get('cot') or ''
    cot = (cot or [''])[0] if isinstance(cot, list) else cot
    assert (cot or '').startswith(example.cot)
  elif plain and row_format.use_reference and row.get('gpt4_score'):
    assert row['instruction'].startswith(example.prompt)
    dropped = row['instruction'][len(example.prompt) :]
    assert not dropped.strip(' \t\r\n,"\'')
  elif plain and example.pair_id:
    side = example.example_id.rpartition('-')[2]
    if isinstance(row[side], str):
      assert row[side] in example.prompt


@properties.fuzzed(25, few=60, content=_files(), role=_roles, how=_formats)
def test_data_file(content, role, how):
  path = properties.file_of(content)
  try:
    examples, report = records.read_examples(
      str(path), GRID, role=role, row_format=how
    )
  except types.InputError as error:
    # Each line names the file.
    lines = str(error).splitlines()
    assert all(line.startswith(f'{path}: ') for line in lines), lines
    raise
  rows = _parsed(content)
  assert report.num_rows == len(rows)
  _check_kept(rows, examples, role, how)


@properties.fuzzed(10, rows=_rows(), role=_roles, how=_formats)
def test_rows_given_in_python(rows, role, how):
  examples, _ = records.examples_from_rows(
    rows, GRID, role=role, name='rows', row_format=how
  )
  _check_kept(rows, examples, role, how)


@properties.fuzzed(
  5,
  content=st.one_of(
    st.binary(max_size=60),
    strategies.json_values().map(strategies.json_bytes),
    st.binary(max_size=60).map(lambda tail: b'{"a": 1}\n' + tail),
  ),
)
def test_file_of_any_bytes(content):
  rows, places = row_files.read_rows(str(properties.file_of(content)))
  assert len(rows) == len(places)


@properties.fuzzed(
  5,
  values=st.one_of(
    st.lists(strategies.numbers(), max_size=6).map(
      lambda v: sorted(v, key=lambda x: (x != x, x))
    ),
    st.lists(st.integers(-20, 20), max_size=9, unique=True).map(sorted),
    st.lists(strategies.json_values(max_leaves=2), max_size=3),
  ),
  score_format=st.one_of(
    st.sampled_from(['{:g}', '{:.1f}', '{:.17g}', '{}', '{0:+.2f} points']),
    strategies.texts(),
    st.builds('{{:{}}}'.format, st.text('<>=^+- #0123456789,._efgdn%')),
  ),
  where=st.floats(0, 1),
)
def test_scores_and_grids(values, score_format, where):
  grid = prompts.make_score_grid(values, score_format)
  assert list(grid.values) == list(values)
  assert len(set(grid.texts)) == len(values)
  for i, value in enumerate(grid.values):
    assert grid.nearest(value) == i
    one_hot = targets.grid_distribution([value], grid.values)
    assert one_hot[i] == 1.0 == one_hot.sum()
  low, high = grid.values[0], grid.values[-1]
  score = min(max(low + where * (high - low), low), high)
  spread = targets.grid_distribution([score], grid.values)
  assert abs(spread.sum() - 1) < 1e-5 and (spread >= 0).all()


_TEMPLATE_PIECES = (
  '{response}', '{instruction}', '{reference_answer}', '{rubric}', '{best}',
  '{scores}', ' ', '\n###Score Rubrics:\n', '\n###Reference Answer:\n', '{x}',
  '{', '}', '{{', '{"a": 1}', '{response.a}', '{response!r}', '{0}',
)  # fmt: skip


@properties.fuzzed(
  3,
  template=st.lists(st.sampled_from(_TEMPLATE_PIECES), max_size=9).map(''.join),
  parts=st.builds(
    prompt_template.Parts, *[strategies.texts(surrogates=True)] * 4
  ),
)
def test_template(template, parts):
  if any(prompt_template.problems(template)):
    return
  prompt = prompt_template.render(template, parts, GRID)
  assert parts.response in prompt
  start, end = prompt_template.judged_span(template, parts, GRID)
  assert 0 <= start <= end <= len(prompt)


@properties.fuzzed(
  2,
  ground_truth=strategies.damaged(b'1\t0.5\tIt is good\r\n2\t-2\tNot so\n'),
  ratings=strategies.damaged(b'1\t0.5\t0.5\t[0, 1]\r\n2\t-2\t0\t[-2, -2]\n'),
)
def test_rated_texts(ground_truth, ratings):
  texts, left_out = sentiment.read_texts('tweets', ground_truth, ratings)
  for text in texts:
    assert text.text.encode() in ground_truth
    assert all(-4 <= rating <= 4 for rating in text.ratings)
  assert len(texts) + len(left_out) <= ground_truth.count(b'\n') + 1
