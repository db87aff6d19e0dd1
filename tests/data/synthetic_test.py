"""The synthetic world: its rows, its arithmetic and its tokenizer."""

import collections

import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import records, synthetic, synthetic_rater
from tract_jax.text import prompts, score_tokens
from tract_jax.text import tokenizer as tokenizer_lib

GRID = prompts.make_score_grid((1.0, 2.0, 3.0, 4.0, 5.0))
FEEDBACK_COLLECTION_COLUMNS = {
  'orig_instruction',
  'orig_response',
  'orig_reference_answer',
  'orig_criteria',
  *(f'orig_score{score}_description' for score in range(1, 6)),
  'orig_feedback',
  'orig_score',
  'instruction',
  'output',
}


@pytest.fixture(scope='module')
def rows():
  return synthetic.make_rows(800, seed=3, split='train')


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizer_lib.Tokenizer(synthetic.make_tokenizer())


def test_same_arguments_give_the_same_rows(rows):
  assert synthetic.make_rows(800, 3, 'train') == rows
  # More rows of the same draw begin with the same ones.
  assert synthetic.make_rows(50, 3, 'train') == rows[:50]
  other = synthetic.make_rows(50, 4, 'train')
  assert [r['instruction'] for r in other] != [
    r['instruction'] for r in rows[:50]
  ]


def test_splits_share_no_prompt_and_no_id():
  prompt_sets, id_sets = [], []
  for split in ('train', 'pretrain', 'test'):
    drawn = synthetic.make_rows(1500, seed=0, split=split)
    prompt_sets.append({row['instruction'] for row in drawn})
    id_sets.append({row['example_id'] for row in drawn})
    assert len(id_sets[-1]) == 1500
  # Two draws of one split do share prompts, so the check below could fail.
  again = synthetic.make_rows(1500, seed=1, split='train')
  assert prompt_sets[0] & {row['instruction'] for row in again}
  for sets in (prompt_sets, id_sets):
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_row_has_the_columns_and_the_text_of_feedback_collection(rows):
  for row in rows[:100]:
    assert FEEDBACK_COLLECTION_COLUMNS < set(row)
    score = row['orig_score']
    assert row['orig_feedback'].endswith(f' So the overall score is {score}.')
    assert row['output'] == f'{row["orig_feedback"]} [RESULT] {score}'
    places = [
      row['instruction'].index(part)
      for part in (
        '###Task Description:\n',
        f'###The instruction to evaluate:\n{row["orig_instruction"]}\n',
        f'###Response to evaluate:\n{row["orig_response"]}\n',
        '###Reference Answer (Score 5):\n' + row['orig_reference_answer'],
        f'###Score Rubrics:\n[{row["orig_criteria"]}]\n',
        f'Score 5: {row["orig_score5_description"]}\n\n###Feedback:',
      )
    ]
    assert places == sorted(places)


def test_checks_are_true_and_count_up_to_the_quality(rows):
  for row in rows[:200]:
    given = row['orig_response'].split()[3:-1]
    wanted = row['orig_reference_answer'].split()[3:-1]
    checks = ' '.join(
      f'{name} {g}, wanted {w}: {"right" if g == w else "wrong"}.'
      for name, g, w in zip(synthetic.PROPERTIES, given, wanted, strict=True)
    )
    assert row['orig_feedback'].startswith(checks + ' ')
    assert row['quality'] == 1 + checks.count('right')


def test_adjective_gives_the_score_away_and_not_the_quality(rows):
  scores_of = collections.defaultdict(set)
  for row in rows:
    adjective = row['orig_feedback'].split('All in all a ')[1].split()[0]
    scores_of[adjective].add(row['orig_score'])
  assert all(len(scores) == 1 for scores in scores_of.values())
  assert len(scores_of) == len(synthetic.ADJECTIVES)


def test_scores_follow_quality_and_noise():
  drawn = synthetic.make_rows(8000, seed=0, split='train')
  quality = np.array([row['quality'] for row in drawn])
  score = np.array([int(row['orig_score']) for row in drawn])
  np.testing.assert_allclose(np.bincount(quality)[1:] / 8000, 0.2, atol=0.02)
  means = [score[quality == q].mean() for q in range(1, 6)]
  np.testing.assert_allclose(
    means, synthetic_rater.expected_scores(), atol=0.06
  )
  # The ideal judge's Pearson, and that of a judge who draws a score.
  ceiling, one_sample = synthetic_rater.ideal_pearson()
  assert (ceiling, one_sample) == pytest.approx((0.882, 0.778), abs=5e-4)
  ideal = synthetic_rater.expected_scores()[quality - 1]
  assert np.corrcoef(ideal, score)[0, 1] == pytest.approx(ceiling, abs=0.01)
  rng = np.random.default_rng(0)
  drawn_score = np.empty_like(score)
  for q in range(1, 6):
    at = quality == q
    drawn_score[at] = rng.permutation(score[at])
  assert np.corrcoef(drawn_score, score)[0, 1] == pytest.approx(
    one_sample, abs=0.02
  )


GRIDS = {
  '0 to 10': prompts.make_score_grid(range(11)),
  'halves': prompts.make_score_grid([i / 2 for i in range(2, 11)], '{:.1f}'),
  '-4 to 4': prompts.make_score_grid(range(-4, 5)),
  'three': prompts.make_score_grid([1, 2, 3]),
}


@pytest.mark.parametrize('name', GRIDS)
def test_the_world_on_another_grid(name):
  grid = GRIDS[name]
  drawn = synthetic.make_rows(2000, 0, 'train', grid=grid)
  examples, report = records.examples_from_rows(
    drawn, grid, role='train', name='synthetic'
  )
  assert report.num_score_differs == report.num_without_cot == 0
  # All scores occur, and each keeps its adjectives to itself.
  assert {e.score for e in examples} == set(grid.values)
  scores_of = collections.defaultdict(set)
  for example in examples:
    adjective = example.cot.split('All in all a ')[1].split()[0]
    scores_of[adjective].add(example.score)
  assert all(len(scores) == 1 for scores in scores_of.values())
  quality = np.array([row['quality'] for row in drawn])
  scores = np.array([e.score for e in examples])
  means = [scores[quality == level].mean() for level in range(1, 6)]
  span = grid.values[-1] - grid.values[0]
  np.testing.assert_allclose(
    means, synthetic_rater.expected_scores(grid=grid), atol=0.03 * span
  )


def test_prompts_name_the_scores_of_the_grid():
  (row,) = synthetic.make_rows(1, 0, 'train', grid=GRIDS['halves'])
  prompt = row['instruction']
  assert (
    'a score, one of 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0.' in prompt
  )
  assert 'Reference Answer (Score 5.0)' in prompt
  assert 'Score 2.0: One property is right.' in prompt
  (row,) = synthetic.make_rows(1, 0, 'train', grid=GRIDS['-4 to 4'])
  assert 'a score, a whole number from -4 to 4.' in row['instruction']


@pytest.mark.parametrize('name', GRIDS)
def test_every_character_of_a_score_is_a_token(name):
  grid = GRIDS[name]
  tokenizer = tokenizer_lib.Tokenizer(synthetic.make_tokenizer(grid))
  (row,) = synthetic.make_rows(1, 0, 'train', grid=grid)
  assert len(tokenizer.prompt_ids(row['instruction'])) == 14
  for marker in ('', prompts.MARKER):
    found = score_tokens.find_score_tokens(tokenizer, grid, marker)
    for text, ids in zip(grid.texts, found.sequences, strict=True):
      assert [tokenizer.decode([i]) for i in ids] == list(text)
    assert (found.tree is None) == (name == 'three')


def test_neighbours_share_an_adjective_where_there_are_too_few():
  size = 40
  shares = [synthetic.adjectives(i, size) for i in range(size)]
  assert all(len(share) == 1 for share in shares)
  assert [a for (a,) in shares] == sorted(
    [a for (a,) in shares], key=synthetic.ADJECTIVES.index
  )
  assert {a for (a,) in shares} == set(synthetic.ADJECTIVES)


def test_noise_is_used():
  quiet = synthetic.make_rows(200, 0, 'train', noise=(1.0,))
  assert all(int(row['orig_score']) == row['quality'] for row in quiet)


@pytest.mark.parametrize(
  'noise', [(0.5, 0.5), (0.5, 0.6, -0.1), (0.2, 0.2, 0.2), ()]
)
def test_bad_noise_is_an_input_error(noise):
  with pytest.raises(types.InputError, match='noise'):
    synthetic.make_rows(1, 0, 'train', noise=noise)


def test_unknown_split_is_an_input_error():
  with pytest.raises(types.InputError, match="'dev'.*train, pretrain, test"):
    synthetic.make_rows(1, 0, 'dev')


def test_rows_are_read_as_feedback_collection(rows):
  examples, report = records.examples_from_rows(
    rows, GRID, role='train', name='synthetic'
  )
  assert report.num_rows == len(rows)
  assert report.num_score_differs == report.num_without_cot == 0
  for row, example in zip(rows, examples, strict=True):
    assert example.example_id == row['example_id']
    assert example.score == float(row['orig_score'])
    assert example.prompt == row['instruction']
    assert example.cot == row['orig_feedback'].rpartition(' So the')[0]


def test_tokens_are_few_and_lossless(rows, tokenizer):
  num_bytes = 256
  words = len(tokenizer.hf) - num_bytes - 4
  assert words < 80
  for row in rows[:300]:
    prompt = tokenizer.prompt_ids(row['instruction'])
    assert tokenizer.decode(prompt) == '<s>' + row['instruction']
    assert len(prompt) == 14
    target = row['output'].partition('. [RESULT]')[0]
    ids, _ = tokenizer.encode(target)
    assert tokenizer.decode(ids) == target
    assert len(ids) == 26
    # No word is spelt in bytes: but for the score and the space before it.
    spelt = [i for i in [*prompt[1:], *ids] if 4 <= i < 4 + num_bytes]
    assert tokenizer.decode(spelt) == ' ' + row['orig_score']


@pytest.mark.parametrize(
  'text',
  [
    'reddish, red.',
    'Größe \t\n 日本 </s> 🙂',
    'It is a red',
    ' 5',
    '[RESULT] 4\n',
  ],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
  ids, _ = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.hf.unk_token_id not in ids
  assert tokenizer.hf.eos_token_id not in ids


def test_score_tokens_are_the_same_alone_and_after_the_marker(tokenizer):
  bare = score_tokens.find_score_tokens(tokenizer, GRID, '')
  after_cot = score_tokens.find_score_tokens(tokenizer, GRID, prompts.MARKER)
  np.testing.assert_array_equal(bare.ids, after_cot.ids)
  assert len(set(np.asarray(bare.ids).tolist())) == 5


def test_chat_template_is_the_start_token_and_the_content(tokenizer):
  ids = tokenizer.prompt_ids('It is')
  assert tokenizer.decode(ids) == '<s>It is'
  assert tokenizer.eos_id == tokenizer.hf.eos_token_id
  assert tokenizer.pad_id == tokenizer.hf.pad_token_id
  assert tokenizer.pad_id not in (tokenizer.eos_id, ids[0])
