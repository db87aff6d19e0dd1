"""The table of methods, against the paper's rows."""

import dataclasses

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


# Objective, CoTs and start of each stage; the predictor, and whether with CoT.
FIRST = ('cot_raft', 'annotator', 'seed')
ROWS_OF_THE_PAPER = {
  'zero_shot': ((), 'rail', True),
  'released': ((), 'decode', True),  # Prometheus-2.
  'ce': ((('ce', 'none', 'seed'),), 'decode', False),
  'ce_cot': ((('ce', 'annotator', 'seed'),), 'decode', True),
  'raft': ((('raft', 'none', 'seed'),), 'rail', False),
  'cot_raft': ((FIRST,), 'rail', True),  # A.1
  'tract': ((FIRST, ('cot_raft', 'self', 'seed')), 'rail', True),
  'tract_ce': ((FIRST, ('ce', 'self', 'seed')), 'rail', True),  # A.2, A.3
  'tract_warm': (
    (FIRST, ('cot_raft', 'self', 'previous')),  # A.4
    'rail',
    True,
  ),
  'tract_mixed': ((FIRST, ('cot_raft', 'mixed', 'seed')), 'rail', True),
}


def test_what_is_trained_on_the_grid_predicts_on_the_grid():
  assert methods.trained_with('full') == methods.METHODS
  found = methods.trained_with('grid')
  assert {name for name in found if found[name] != methods.METHODS[name]} == {
    'raft', 'cot_raft', 'tract', 'tract_ce', 'tract_warm', 'tract_mixed'
  }  # fmt: skip
  assert (
    found['tract'].predictor == found['raft'].predictor == ('rail_normalized')
  )
  assert found['tract'].stages == methods.METHODS['tract'].stages


def test_rows_of_the_paper_are_the_table():
  rows = {
    name: (tuple(map(dataclasses.astuple, m.stages)), m.predictor, m.with_cot)
    for name, m in methods.METHODS.items()
  }
  assert rows == ROWS_OF_THE_PAPER


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
