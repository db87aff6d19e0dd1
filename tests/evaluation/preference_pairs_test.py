"""Which rows are pairs, whatever their order."""

import random

import numpy as np

from tract_jax import types
from tract_jax.evaluation import metrics, preference_pairs

SYSTEM = metrics.System('tract', 'rail', 1)


def row(example_id, pair_id, subset=''):
  return types.Example(example_id, 'x', None, pair_id=pair_id, category=subset)


def test_two_responses_with_one_pair_id_are_a_pair():
  rows = [
    row('b-rejected', 'b', 's'),
    row('a-chosen', 'a', 't'),
    row('b-chosen', 'b', 's'),
    row('a-rejected', 'a', 't'),
  ]
  for _ in range(5):
    random.Random(0).shuffle(rows)
    joined = preference_pairs.join('bench', rows)
    assert joined.pairs == preference_pairs.Pairs(
      'bench', ('a', 'b'), ('t', 's'), 0
    )
    ids = np.array([r.example_id for r in rows])
    assert ids[joined.chosen].tolist() == ['a-chosen', 'b-chosen']
    assert ids[joined.rejected].tolist() == ['a-rejected', 'b-rejected']
    said = joined.predictions(SYSTEM, 3, np.array([len(i) for i in ids]))
    assert (said.chosen.tolist(), said.rejected.tolist()) == ([8, 8], [10, 10])


def test_ids_that_look_like_sides_are_told_apart():
  rows = [
    row('7-chosen-chosen', '7-chosen'),
    row('7-chosen-rejected', '7-chosen'),
    row('7-chosen', '7'),
    row('7-rejected', '7'),
  ]
  joined = preference_pairs.join('bench', rows)
  assert joined.pairs.ids == ('7', '7-chosen')
  assert joined.chosen.tolist() == [2, 0]
  assert joined.rejected.tolist() == [3, 1]


def test_responses_without_the_other_are_listed_and_other_rows_passed_over():
  rows = [
    row('a-chosen', 'a'),
    row('b-rejected', 'b'),
    row('c', 'c'),
    row('plain-chosen', ''),
    row('plain-rejected', ''),
    row('d-chosen', 'd'),
    row('d-rejected', 'd'),
  ]
  joined = preference_pairs.join('bench', rows)
  assert joined.pairs.ids == ('d',)
  assert joined.lone == ('a-chosen', 'b-rejected', 'c')
  assert joined.pairs.num_lone == 3
  nothing = preference_pairs.join('bench', rows[:5])
  assert nothing.pairs.ids == () and len(nothing.chosen) == 0


def test_other_side():
  assert preference_pairs.other_side('7-chosen') == '7-rejected'
  assert preference_pairs.other_side('a-b-rejected') == 'a-b-chosen'
