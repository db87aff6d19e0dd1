from collections import Counter
import dataclasses

import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import loader


def example(number, length=3):
  """Tokens number * 10 ...; the last target is the score."""
  tokens = np.arange(length + 1, dtype=np.int32) + number * 10
  score_mask = np.arange(length) == length - 1
  return types.EncodedExample(
    inputs=tokens[:-1],
    targets=tokens[1:],
    cot_mask=np.arange(length) == length - 2,
    score_mask=score_mask,
    score=number + 0.5,
    target_probs=np.array([number, 0.5], np.float32),
  )


def make(num=10, batch_size=4, seed=0, num_epochs=3, **kwargs):
  return loader.Loader(
    [example(i) for i in range(num)],
    batch_size=batch_size,
    length=5,
    seed=seed,
    num_epochs=num_epochs,
    **kwargs,
  )


def assert_same(first, second):
  for field in dataclasses.fields(types.Batch):
    left, right = getattr(first, field.name), getattr(second, field.name)
    np.testing.assert_array_equal(left, right)
    assert left.dtype == right.dtype


def test_batch_by_hand():
  batch = loader.make_batch([example(1, 2), example(2, 3)], 3, 4)
  expected = types.Batch(
    inputs=[[10, 11, 0, 0], [20, 21, 22, 0], [0] * 4],
    targets=[[11, 12, 0, 0], [21, 22, 23, 0], [0] * 4],
    positions=[[0, 1, 0, 0], [0, 1, 2, 0], [0] * 4],
    segment_ids=[[1, 1, 0, 0], [1, 1, 1, 0], [0] * 4],
    cot_mask=[[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4],
    score_mask=[[0, 1, 0, 0], [0, 0, 1, 0], [0] * 4],
    score_values=[[0, 1.5, 0, 0], [0, 0, 2.5, 0], [0] * 4],
    target_probs=[[[1, 0.5]], [[2, 0.5]], [[0, 0]]],
  )
  dtypes = {'cot_mask': bool, 'score_mask': bool, 'score_values': np.float32}
  dtypes['target_probs'] = np.float32
  for field in dataclasses.fields(types.Batch):
    got = getattr(batch, field.name)
    np.testing.assert_array_equal(got, getattr(expected, field.name))
    assert got.dtype == dtypes.get(field.name, np.int32)


@pytest.mark.parametrize(
  ('num', 'batch_size', 'num_epochs', 'steps'),
  [(10, 4, 3, 8), (10, 5, 1, 2), (3, 8, 1, 1), (3, 8, 4, 2), (1, 1, 2, 2)],
)
def test_every_epoch_has_each_example_once(num, batch_size, num_epochs, steps):
  data = make(num, batch_size, num_epochs=num_epochs)
  assert data.num_steps == steps
  order = [i for step in range(steps) for i in data.indices(step)]
  assert len(order) == num * num_epochs
  for epoch in range(num_epochs):
    assert sorted(order[epoch * num : (epoch + 1) * num]) == list(range(num))
  counts = Counter()
  for step in range(steps):
    batch = data.batch(step)
    assert batch.inputs.shape == (batch_size, 5)
    counts.update(batch.score_values[batch.score_mask].tolist())
  assert counts == {i + 0.5: num_epochs for i in range(num)}


def test_order_differs_with_epoch_and_seed():
  def order(seed):
    data = make(40, 40, seed=seed, num_epochs=2)
    return [tuple(data.indices(step)) for step in range(2)]

  # Not even shifted by an epoch is one seed's order another's.
  assert len({*order(0), *order(1), *order(2), tuple(range(40))}) == 7


def test_order_is_fixed():
  # What is resumed today may have been begun with an earlier version: a change
  # here changes every run, and has to be named in the changelog.
  assert [make().indices(step) for step in range(2)] == GOLDEN


GOLDEN = [[1, 2, 4, 5], [9, 7, 8, 6]]


def test_any_start_gives_the_same_batches():
  data = make()
  whole = dict(make().iterate())
  assert list(whole) == list(range(8))
  for start in (0, 3, 7):
    part = list(data.iterate(start))
    assert [step for step, _ in part] == list(range(start, 8))
    for step, batch in part:
      assert_same(batch, whole[step])
      assert_same(batch, data.batch(step))
  assert list(data.iterate(8)) == []


def test_iteration_may_be_left():
  batches = make(num_epochs=1000).iterate()
  assert next(batches)[0] == 0
  batches.close()


@pytest.mark.parametrize('step', [-1, 8])
def test_steps_that_are_none(step):
  data = make()
  with pytest.raises(IndexError, match=rf'step {step} is not in 0\.\.7'):
    data.batch(step)


def test_step_past_the_end_cannot_be_iterated():
  with pytest.raises(IndexError, match='step 9'):
    list(make().iterate(9))


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'num': 0}, 'no examples'),
    ({'batch_size': 0}, 'batch_size 0 is below 1'),
    ({'num_epochs': 0}, 'num_epochs 0 is below 1'),
    ({'max_targets': 1}, 'example 0 has 2 targets, more than 1'),
  ],
)
def test_what_cannot_be_loaded(kwargs, message):
  with pytest.raises(ValueError, match=message):
    make(**kwargs)


def test_example_longer_than_a_row():
  with pytest.raises(ValueError, match='example 1 has 6 tokens, more than 5'):
    loader.Loader(
      [example(0), example(1, 6)],
      batch_size=1,
      length=5,
      seed=0,
      num_epochs=1,
    )


def test_static_shapes():
  examples = [example(0, 3), example(1, 65)]
  assert loader.row_length(examples) == 128
  assert loader.row_length(examples, multiple=5) == 65
  assert loader.max_targets(examples) == 64
  assert loader.max_targets(examples, multiple=1) == 2
