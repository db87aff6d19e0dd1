"""BLEU and ROUGE-L of a CoT and its rubric, by hand and by their libraries."""

import math

import pytest

from tests.evaluation import cot_texts_test
from tract_jax.evaluation import cot_texts, overlap

COT = 'The response is clear and complete. So the overall score is 4'
RUBRIC = (
  '[Is the response clear, complete and correct?]\nScore 1: It is unclear.\n'
  'Score 5: The response is clear and complete.'
)


@pytest.fixture
def measures():
  for library in ('sacrebleu', 'rapidfuzz'):
    pytest.importorskip(library)
  return overlap.measures()


def facts(rows, rubrics, most=100):
  return cot_texts.facts(
    *('tract', 'flask', rows, 1, cot_texts_test.BOOTSTRAP, rubrics, most)
  )


@pytest.mark.parametrize(
  ('cot', 'rubric', 'bleu', 'rouge_l'),
  [
    ('a b c d', 'a b c d', 1.0, 1.0),
    # All of its words and pairs are there, but it is half as long.
    ('a b', 'a b c d', math.exp(1 - 4 / 2), 2 * 2 / (2 + 4)),
    ('x y', 'a b c d', 0.0, 0.0),
    ('', 'a b', 0.0, 0.0),
    # BLEU tells cases and punctuation apart, ROUGE does not.
    ('The cat sat', 'the CAT, sat!', None, 1.0),
    ('\u00dcber 3', '\u00fcber: 3', None, 1.0),
    # rouge-score 0.1.2 and sacrebleu 2.6.0.
    (COT, RUBRIC, 0.15798563511578448, 0.375),
  ],
)
def test_by_hand_and_by_the_libraries(measures, cot, rubric, bleu, rouge_l):
  assert measures['rouge_l'](cot, rubric) == pytest.approx(rouge_l)
  if bleu is not None:
    found = measures['bleu'](cot, rubric)
    assert found == pytest.approx(bleu) and found <= 1


def test_rouge_is_that_of_rouge_score(measures):
  scorer = pytest.importorskip('rouge_score.rouge_scorer')
  reference = scorer.RougeScorer(['rougeL'])
  for cot in (COT, RUBRIC, COT[::-1], 'score 5 is clear'):
    found = reference.score(RUBRIC, cot)['rougeL'].fmeasure
    assert measures['rouge_l'](cot, RUBRIC) == pytest.approx(found)


def test_each_cot_is_held_against_its_own_rows_rubric(measures):
  row = cot_texts_test.row
  rows = [row('1', ['a b c d']), row('2', ['a b']), row('3', ['q'])]
  rubrics = {'1': 'a b c d', '2': 'a b c d', '3': ''}
  found = facts([*rows, row('4', [' '])], rubrics | {'4': 'a'})
  # Row 3 has no rubric, and row 4 no words.
  assert found.num_overlap == 2
  assert found.bleu == pytest.approx((1 + math.exp(-1)) / 2)
  assert found.rouge_l == pytest.approx((1 + 2 / 3) / 2)
  assert found.rouge_l_ci == pytest.approx((2 / 3, 1))
  assert 'bleu' not in found.reason


def test_a_drawn_part_is_the_same_in_any_order_and_for_every_method(measures):
  rows = [cot_texts_test.row(f'{i:03d}', ['a ' * (i + 1)]) for i in range(200)]
  rubrics = {row.example_id: 'a a a' for row in rows}
  some = facts(rows, rubrics, most=50)
  again = facts(rows[::-1], rubrics, most=50)
  assert some.num_overlap == again.num_overlap == 50
  assert (some.bleu, some.rouge_l_ci) == (again.bleu, again.rouge_l_ci)
  whole = facts(rows, rubrics, most=500)
  assert whole.num_overlap == 200
  assert some.rouge_l != whole.rouge_l
  assert whole.rouge_l == pytest.approx(
    sum(2 * min(n, 3) / (n + 3) for n in range(1, 201)) / 200
  )


def test_without_a_library_a_rubric_or_a_wish_there_is_a_reason(monkeypatch):
  rows = [cot_texts_test.row('1', ['a'], [1])]
  none = facts(rows, {'1': 'a'}, most=0)
  assert none.bleu is none.rouge_l_ci is None and none.num_overlap == 0
  assert none.reason == 'bleu, rouge_l: config.evaluation.overlap_cots is 0'
  monkeypatch.setattr(overlap, '_LIBRARIES', ('no-such-library',))
  assert overlap.versions() == ''
  lost = facts(rows, {'1': 'a'})
  assert lost.bleu is None and lost.mean_tokens == 1
  assert lost.reason == (
    "bleu, rouge_l: needs pip install 'tract_jax[analyses]'"
  )


def test_without_a_rubric_there_is_a_reason(measures):
  rows = [cot_texts_test.row('1', ['a'], [1])]
  assert facts(rows, {}).reason == (
    'bleu, rouge_l: no CoT of a row whose rubric is known'
  )
