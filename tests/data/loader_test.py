from collections import Counter
import dataclasses
import functools

import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import loader, packing


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
    packing.one_each(num),
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


def make_packed(num=11, batch_size=3, **kwargs):
  """Rows of one to three examples, of 2 to 4 tokens each."""
  examples = [example(i, 2 + i % 3) for i in range(num)]
  plan = packing.best_fit(np.array([2 + i % 3 for i in range(num)]), 7)
  settings = dict(length=7, seed=0, num_epochs=3) | kwargs
  return loader.Loader(examples, plan, batch_size=batch_size, **settings)


def scores_of(batch):
  """Scores of a batch's examples, row by row."""
  return batch.score_values[batch.score_mask].tolist()


def test_batch_by_hand():
  rows = [[example(1, 2), example(2, 3)], [example(3, 4)]]
  batch = loader.make_batch(
    rows, batch_size=3, length=6, max_examples=2, num_scores=2
  )
  expected = types.Batch(
    inputs=[[10, 11, 20, 21, 22, 0], [30, 31, 32, 33, 0, 0], [0] * 6],
    targets=[[11, 12, 21, 22, 23, 0], [31, 32, 33, 34, 0, 0], [0] * 6],
    positions=[[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0], [0] * 6],
    segment_ids=[[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0], [0] * 6],
    cot_mask=[[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0] * 6],
    score_mask=[[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0] * 6],
    score_values=[[0, 1.5, 0, 0, 2.5, 0], [0, 0, 0, 3.5, 0, 0], [0] * 6],
    target_probs=[[[1, 0.5], [2, 0.5]], [[3, 0.5], [0, 0]], [[0, 0]] * 2],
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
  order = [i for step in range(steps) for (i,) in data.rows(step)]
  assert len(order) == num * num_epochs
  for epoch in range(num_epochs):
    assert sorted(order[epoch * num : (epoch + 1) * num]) == list(range(num))
  counts = Counter()
  for step in range(steps):
    batch = data.batch(step)
    assert batch.inputs.shape == (batch_size, 5)
    counts.update(scores_of(batch))
  assert counts == {i + 0.5: num_epochs for i in range(num)}


def test_order_differs_with_epoch_and_seed():
  def order(seed):
    data = make(40, 40, seed=seed, num_epochs=2)
    return [tuple(i for (i,) in data.rows(step)) for step in range(2)]

  # Not even shifted by an epoch is one seed's order another's.
  assert len({*order(0), *order(1), *order(2), tuple(range(40))}) == 7


def test_order_is_fixed():
  # What is resumed today may have been begun with an earlier version: a change
  # here changes every run, and has to be named in the changelog.
  assert [make().rows(step) for step in range(2)] == GOLDEN


GOLDEN = [[[1], [2], [4], [5]], [[9], [7], [8], [6]]]


@pytest.mark.parametrize(
  'make_loader',
  [
    make,
    make_packed,
    functools.partial(make_packed, shard_index=1, shard_count=2),
  ],
)
def test_any_start_gives_the_same_batches(make_loader):
  data = make_loader()
  whole = dict(data.iterate())
  steps = data.num_steps
  assert list(whole) == list(range(steps))
  for start in (0, 3, steps - 1):
    part = list(data.iterate(start))
    assert [step for step, _ in part] == list(range(start, steps))
    for step, batch in part:
      assert_same(batch, whole[step])
      assert_same(batch, data.batch(step))
  assert list(data.iterate(steps)) == []


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
    ({'shard_count': 0}, 'shard_count 0 is below 1'),
    ({'shard_count': 2, 'shard_index': 2}, 'no shard 2 of 2'),
    ({'shard_index': -1}, 'no shard -1 of 1'),
  ],
)
def test_what_cannot_be_loaded(kwargs, message):
  with pytest.raises(ValueError, match=message):
    make(**kwargs)


def test_row_longer_than_the_length():
  examples, settings = [example(0), example(1, 6)], dict(seed=0, num_epochs=1)
  plan = packing.one_each(2)
  with pytest.raises(ValueError, match=r'row 1, examples \[1\], has 6 tokens'):
    loader.Loader(examples, plan, batch_size=1, length=5, **settings)
  plan = packing.best_fit(np.array([3, 6]), 9)
  with pytest.raises(ValueError, match=r'\[0, 1\], has 9 tokens, more than 8'):
    loader.Loader(examples, plan, batch_size=1, length=8, **settings)


def test_plan_of_other_examples():
  with pytest.raises(ValueError, match='a plan of 3 examples for 2'):
    loader.Loader(
      [example(0), example(1)],
      packing.one_each(3),
      batch_size=1,
      length=5,
      seed=0,
      num_epochs=1,
    )


def test_static_shapes():
  assert loader.static_size([3, 65, 2]) == 128
  assert loader.static_size(np.array([3, 65]), multiple=5) == 65
  assert make().max_targets == 2
  # Three examples of two targets each in one row.
  assert make_packed().max_targets == 6
  assert make_packed().batch(0).target_probs.shape == (3, 3, 2)


def test_fill():
  assert make().fill == 3 / 5
  packed = make_packed()
  assert packed.fill == pytest.approx(32 / (7 * packed.plan.num_rows))
  assert packed.fill > 0.9


# Several hosts.


def union(shares):
  """Rows of all hosts' shares of a batch, in order, without empty ones."""
  rows = types.Batch(
    *(
      np.concatenate([getattr(share, f.name) for share in shares])
      for f in dataclasses.fields(types.Batch)
    )
  )
  is_full = rows.segment_ids.any(axis=1)
  return types.Batch(
    *(getattr(rows, f.name)[is_full] for f in dataclasses.fields(types.Batch))
  )


def on_hosts(make_loader, count, **kwargs):
  return [
    make_loader(shard_index=i, shard_count=count, **kwargs)
    for i in range(count)
  ]


@pytest.mark.parametrize('make_loader', [make, make_packed])
@pytest.mark.parametrize('count', [1, 2, 3, 8])
def test_hosts_share_every_batch(make_loader, count):
  whole = make_loader(batch_size=5)
  hosts = on_hosts(make_loader, count, batch_size=5)
  counts = Counter()
  for step in range(whole.num_steps):
    batch = whole.batch(step)
    shares = [host.batch(step) for host in hosts]
    for share in shares:
      assert share.inputs.shape == (-(-5 // count), whole.length)
    assert_same(union(shares), union([batch]))
    assert sum((host.rows(step) for host in hosts), []) == whole.rows(step)
    counts.update(scores_of(union(shares)))
  scores = {e.score: 3 for e in whole.examples}
  assert counts == scores


@pytest.mark.parametrize('count', [1, 2, 3, 8])
def test_each_epoch_on_hosts_has_each_example_once(count):
  hosts = on_hosts(make_packed, count, num_epochs=2)
  rows = [
    row
    for step in range(hosts[0].num_steps)
    for host in hosts
    for row in host.rows(step)
  ]
  num_rows = hosts[0].plan.num_rows
  assert len(rows) == 2 * num_rows
  epochs = rows[:num_rows], rows[num_rows:]
  for epoch in epochs:
    assert sorted(i for row in epoch for i in row) == list(range(11))
  assert epochs[0] != epochs[1]


@pytest.mark.parametrize(('before', 'after'), [(2, 3), (3, 1), (8, 2)])
def test_goes_on_with_another_number_of_hosts(before, after):
  whole = [batch for _, batch in make_packed().iterate()]
  begun, rest = on_hosts(make_packed, before), on_hosts(make_packed, after)
  for stop in range(len(whole) + 1):
    for step, wanted in enumerate(whole):
      hosts = begun if step < stop else rest
      shares = [host.batch(step) for host in hosts]
      assert_same(union(shares), union([wanted]))
