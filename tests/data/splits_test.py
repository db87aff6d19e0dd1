"""Who is held out, and the shuffle of the negative control."""

import pytest

from tract_jax import types
from tract_jax.data import splits


def make_examples(num):
  return [types.Example(f'id{i}', 'p', 1.0) for i in range(num)]


def test_split_depends_on_ids_alone():
  examples = make_examples(1000)
  rest, held = splits.split(examples, 0.2, seed=0, salt='validation')
  assert len(held) == pytest.approx(200, abs=50)
  assert {e.example_id for e in rest}.isdisjoint(e.example_id for e in held)
  assert len(rest) + len(held) == 1000
  # Neither the order nor the other examples move an example.
  part = list(reversed(examples))[:400]
  _, part_held = splits.split(part, 0.2, seed=0, salt='validation')
  assert part_held == [e for e in part if e in held]


def test_split_differs_with_seed_and_salt():
  examples = make_examples(200)
  held = [
    tuple(e.example_id for e in splits.split(examples, 0.3, seed, salt)[1])
    for seed, salt in [(0, 'a'), (1, 'a'), (0, 'b')]
  ]
  assert len(set(held)) == 3


@pytest.mark.parametrize('num', [2, 3, 10])
@pytest.mark.parametrize('fraction', [0.001, 0.5, 0.999])
def test_split_leaves_no_side_empty(num, fraction):
  for seed in range(20):
    rest, held = splits.split(make_examples(num), fraction, seed, 'v')
    assert rest
    assert held


def test_split_at_its_limits():
  examples = make_examples(3)
  assert splits.split(examples, 0, 0, 'v') == (examples, [])
  found = r'^config\.data\.v_fraction: 0\.1 cannot be held out of 1'
  with pytest.raises(types.InputError, match=found):
    splits.split(examples[:1], 0.1, 0, 'v')
  with pytest.raises(
    types.InputError, match=r'_fraction: 1 is not in \[0, 1\)'
  ):
    splits.split(examples, 1, 0, 'v')


def test_shuffled_scores_are_dealt_anew():
  examples = [
    types.Example(f'id{i}', f'p{i}', float(i), cot=f'c{i}', ratings=(float(i),))
    for i in range(50)
  ]
  shuffled = splits.shuffle_scores(examples, 0, 'a')
  assert sorted(e.score for e in shuffled) == [e.score for e in examples]
  unmoved = [
    a for a, b in zip(examples, shuffled, strict=True) if a.score == b.score
  ]
  assert len(unmoved) < 5
  for before, after in zip(examples, shuffled, strict=True):
    assert (after.prompt, after.cot) == (before.prompt, before.cot)
    assert after.ratings == (after.score,)
  assert splits.shuffle_scores(examples, 0, 'a') == shuffled
  assert splits.shuffle_scores(examples, 1, 'a') != shuffled
  assert splits.shuffle_scores(examples, 0, 'b') != shuffled
