import pytest

from tract_jax import types
from tract_jax.text import prompts


@pytest.mark.parametrize(
  ('feedback', 'expected'),
  [
    ('Clear. So the overall score is 4. [RESULT] 4', 'Clear.'),
    ('Clear. So the overall score is 4', 'Clear.'),
    # Only the last marker ends the CoT.
    (
      'A. So the overall score is low. B. So the overall score is 4',
      'A. So the overall score is low. B.',
    ),
    (
      'So the overall quality is fine. [RESULT] 4',
      'So the overall quality is fine.',
    ),
    ('no ending at all \n', 'no ending at all'),
    (
      'says [RESULT] early. So the overall score is 2. [RESULT] 2',
      'says [RESULT] early.',
    ),
    ('So the overall score is 3', ''),
    ('', ''),
  ],
)
def test_strip_cot(feedback, expected):
  assert prompts.strip_cot(feedback) == expected


@pytest.mark.parametrize(
  ('feedback', 'expected'),
  [
    ('A. So the overall score is 4. [RESULT] 3', 4.0),
    ('A. [RESULT] 2.5', 2.5),
    ('A. [RESULT] -1', -1.0),
    ('A. So the overall score is high. [RESULT] 3', None),
    ('A.', None),
  ],
)
def test_stated_score(feedback, expected):
  assert prompts.stated_score(feedback) == expected


def test_target_text():
  marker = prompts.MARKER
  assert (
    prompts.target_text('Clear.\n', '4', marker)
    == 'Clear. So the overall score is 4'
  )
  assert prompts.target_text('', '4', marker) == 'So the overall score is 4'
  assert prompts.target_text('', '4', '') == '4'


def test_clean_prompt_changes_the_end_alone():
  assert prompts.clean_prompt('" a, "b"\n###Feedback: ",') == (
    '" a, "b"\n###Feedback:'
  )
  assert prompts.clean_prompt('is it good?') == 'is it good?'


def test_every_score_of_a_grid_is_the_nearest_to_itself():
  grid = prompts.make_score_grid([0, 1e-12, 1e-9], '{:.17g}')
  assert [grid.nearest(value) for value in grid.values] == [0, 1, 2]
  assert prompts.make_score_grid([1, 2, 3]).nearest(5 / 2) == 2


def test_score_grid_has_values_and_texts():
  grid = prompts.make_score_grid([1, 2.5, 4])
  assert grid == types.ScoreGrid((1.0, 2.5, 4.0), ('1', '2.5', '4'))
  assert prompts.make_score_grid((0,), '{:.0f}!').texts == ('0!',)


@pytest.mark.parametrize(
  ('values', 'score_format', 'message'),
  [
    ([], '{:g}', 'score.grid: is empty'),
    ([1, True], '{:g}', 'score.grid: True is not a finite number'),
    ([1, float('nan')], '{:g}', 'score.grid: nan is not'),
    ([1, '2'], '{:g}', "score.grid: '2' is not"),
    ([2, 1], '{:g}', 'score.grid: 1 does not ascend after 2'),
    ([1, 1], '{:g}', 'score.grid: 1 does not ascend after 1'),
    ([1, 1.4], '{:.0f}', "score.grid: 1.0 and 1.4 both read '1'"),
    ([-2e9], '{:g}', 'score.grid: -2000000000.0 is not a finite number of'),
    ([1e8, 1e8 + 1], '{:.17g}', 'does not ascend after'),
    ([1], '{0[a]}', "score.format: '{0[a]}' does not format a number"),
    ([1], 'a\n{:999999999}', 'does not format a number'),
    ([1], '{:d}', "score.format: '{:d}' does not format a number"),
    ([1], '{:g} {}', "score.format: '{:g} {}' does not format"),
    ([1], ' {:g}', 'spaces around it'),
  ],
)
def test_bad_score_grid_names_the_key(values, score_format, message):
  with pytest.raises(types.InputError) as error:
    prompts.make_score_grid(values, score_format)
  assert message in str(error.value)
