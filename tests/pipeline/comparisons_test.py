"""Which systems are compared: what is asked for, and what cannot be had."""

import pytest

from tests.pipeline import evaluate_test
from tract_jax import types
from tract_jax.pipeline import comparisons, config_check

HEAD = 'config.evaluation.differences: '


def problems(differences, others=''):
  config = evaluate_test.make_config(
    evaluation={'differences': differences, 'others': others},
    methods=('tract', 'ce'),
    data={'source': 'synthetic'},
    model={'lora_rank': 0},
    num_cots=3,
    name='run',
  )
  try:
    config_check.check(config)
  except types.InputError as error:
    return str(error).splitlines()
  return []


def test_pairs_by_name():
  assert comparisons.parse('') is None
  assert comparisons.parse(' all ') == 'all'
  text = 'tract/rail/5 - their-judge.v2,  ce/rail -\tce'
  assert comparisons.parse(text) == [
    ('tract/rail/5', 'their-judge.v2'),
    ('ce/rail', 'ce'),
  ]


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('tract', 'is not like METHOD/PREDICTOR/COTS - METHOD, or all'),
    ('tract-ce', 'is not like METHOD'),
    ('tract - ce - raft', 'is not like METHOD'),
    ('tract//1 - ce', 'is not like METHOD'),
    ('tract/rail/x - ce', 'is not like METHOD'),
    ('all - ce', "'all' is none of tract, ce"),
    ('tract - tract', 'is of one system'),
    ('tract - ce,', "'' is not like METHOD"),
    ('tract - ce,tract - ce', "'tract - ce' stands twice"),
  ],
)
def test_bad_pairs_are_told_before_anything_is_done(text, reason):
  (line,) = problems(text)
  assert line.startswith(HEAD) and reason in line


def test_systems_that_the_run_will_not_have():
  assert problems('tract/rail/3 - ce/decode/0, tract/rail/1 - ce/rail') == []
  assert problems('all') == []
  assert problems(
    'ce/decode - tract/median, ce - raft, tract/rail/2 - ce/rail/1'
  ) == [
    f"{HEAD}'tract/median': 'median' is none of rail",
    f"{HEAD}'raft': 'raft' is none of tract, ce",
    f"{HEAD}'tract/rail/2': '2' is none of 1, 3",
    f"{HEAD}'ce/rail/1': '1' is none of 0",
  ]


def test_another_system_may_be_named():
  others = 'their-judge/synthetic=logits.json'
  assert problems('tract - their-judge/rail/4', others) == []
  (line,) = problems('tract - their-judge/mode', others)
  assert line == f"{HEAD}'their-judge/mode': 'mode' is none of rail"
  (line,) = problems('tract - his', others)
  assert line.endswith("'his' is none of tract, ce, their-judge")
