"""Preference pairs among the judgements that the page shows."""

import numpy as np

from tract_jax import types
from tract_jax.evaluation import judgements


def judgement(pair, side, value):
  return types.Prediction(
    example_id=f'{pair}-{side}',
    seed=0,
    score=None,
    prediction=value,
    distributions=[None],
    decoded=[None],
    cots=[''],
    finish_reasons=['marker'],
    invalid_reason=None if value is not None else 'length',
    pair_id=pair,
  )


def group(rows):
  return judgements.group(
    *('tract', 'bench', 0, rows), fallback=3.0, num_groups=1
  )


def test_both_of_a_pair_stand_together_the_most_wrong_first():
  values = {'a': (5.0, 1.0), 'b': (1.0, 4.0), 'c': (None, 2.0), 'd': (2, 3)}
  rows = [judgement(p, 'chosen', v[0]) for p, v in values.items()]
  rows += [judgement(p, 'rejected', v[1]) for p, v in values.items()]
  shown = [row.example_id for row in group(rows).shown]
  assert shown == [
    f'{pair}-{side}' for pair in 'cbda' for side in ('chosen', 'rejected')
  ]


def test_of_many_pairs_both_are_shown():
  rng = np.random.default_rng(0)
  rows = [
    judgement(str(i), side, float(rng.uniform(1, 5)))
    for i in range(3000)
    for side in ('chosen', 'rejected')
  ]
  rng.shuffle(rows)
  shown = [row.pair_id for row in group(rows).shown]
  assert len(shown) == 2000
  assert len(set(shown)) <= 1001


def test_the_page_has_the_pair():
  rows = [judgement('7', side, 2.0) for side in ('chosen', 'rejected')]
  data = judgements.content(
    [group(rows)], {}, types.ScoreGrid((1.0, 5.0), ('1', '5')), 3.0
  )
  assert [row['pair'] for row in data['rows']] == ['7', '7']
