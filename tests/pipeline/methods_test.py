"""The table of methods, against the paper's rows."""

import pytest

from tract_jax.pipeline import methods


def test_tract_is_cot_raft_and_then_self_cots_from_the_seed_model():
  first, second = methods.METHODS['tract'].stages
  assert methods.METHODS['cot_raft'].stages == (first,)
  assert (first.cot_source, first.start) == ('annotator', 'seed')
  assert (second.objective, second.cot_source, second.start) == (
    'cot_raft',
    'self',
    'seed',
  )


def test_rows_of_the_paper_predict_as_the_paper_does():
  rows = {
    name: ([s.objective for s in m.stages], m.predictor, m.with_cot)
    for name, m in methods.METHODS.items()
  }
  assert rows['ce'] == (['ce'], 'decode', False)
  assert rows['ce_cot'] == (['ce'], 'decode', True)
  assert rows['raft'] == (['raft'], 'rail', False)
  assert rows['tract_ce'] == (['cot_raft', 'ce'], 'rail', True)
  assert rows['zero_shot'] == ([], 'rail', True)
  assert rows['released'] == ([], 'decode', True)
  assert rows['cot_raft'] == (['cot_raft'], 'rail', True)
  for name in ('tract', 'tract_warm', 'tract_mixed'):
    assert rows[name] == (['cot_raft', 'cot_raft'], 'rail', True)
  assert len(rows) == 10


def test_methods_that_share_a_stage_share_its_artefacts():
  for name in ('tract', 'tract_ce', 'tract_warm', 'tract_mixed'):
    assert methods.stage_owner(name, 0) == 'cot_raft'
    assert methods.stage_owner(name, 1) == name
    assert methods.self_cot_owner(name) == 'tract'
  assert methods.stage_owner('ce_cot', 0) == 'ce_cot'
  assert methods.METHODS['tract_warm'].stages[1].start == 'previous'


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (('raft', 'ce'), False),
    (('raft', 'ce_cot'), True),
    (('zero_shot',), True),
    (('none such',), False),
  ],
)
def test_methods_that_need_room_for_a_cot(names, expected):
  assert methods.any_with_cot(names) == expected
