import dataclasses

import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import encoded_examples, encoding

FIELDS = ('inputs', 'targets', 'cot_mask', 'score_mask', 'target_probs')


def make(tokens, num_prompt, num_score_tokens=1, score=4.0):
  return encoded_examples.record(
    np.array(tokens, np.int32),
    num_prompt=num_prompt,
    num_score_tokens=num_score_tokens,
    score=score,
    target_probs=np.array([score % 1, 1 - score % 1], np.float32),
  )


ROWS = [
  make([1, 8, 9, 10, 11, 6, 2], 3),
  make([1, 8, 6, 2], 2, score=11 / 3),
  make([1, 8, 9, 5, 3, 4, 2], 2, num_score_tokens=2),
]


def check_same(found, expected):
  assert len(found) == len(expected)
  for one, other in zip(found, expected, strict=True):
    for name in FIELDS:
      a, b = getattr(one, name), getattr(other, name)
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)
    assert one.score == other.score


def test_record_by_hand():
  row = ROWS[2]
  assert row.inputs.tolist() == [1, 8, 9, 5, 3, 4]
  assert row.targets.tolist() == [8, 9, 5, 3, 4, 2]
  assert row.cot_mask.tolist() == [False, True, True, False, False, True]
  assert row.score_mask.tolist() == [False, False, False, True, True, False]


def test_packed_rows_are_read_as_they_were():
  packed = encoded_examples.pack(ROWS)
  check_same(packed, ROWS)
  check_same(packed[1:], ROWS[1:])
  check_same(packed[::-1], ROWS[::-1])
  check_same(packed[2:1], [])
  check_same([packed[-1]], ROWS[-1:])
  for index in (3, -4):
    with pytest.raises(IndexError, match='is not among 3'):
      packed[index]
  # A sequence that is used up by its own iterator, too.
  assert [len(e.inputs) for e in packed] == [6, 3, 6]


def test_sizes_of_arrays_and_of_records_are_the_same():
  expected = ([6, 3, 6], [4, 2, 5])
  for rows in (ROWS, encoded_examples.pack(ROWS)):
    found = encoding.sizes(rows)
    assert tuple(x.tolist() for x in found) == expected
    assert [x.dtype for x in found] == [np.int64] * 2
  for rows in ([], encoded_examples.pack([])):
    assert [x.shape for x in encoding.sizes(rows)] == [(0,), (0,)]


def test_row_without_prompt_learns_all_but_its_first_token():
  row = make([6, 2], 0)
  assert encoding.sizes(encoded_examples.pack([row]))[1].tolist() == [1]
  assert encoding.num_targets(row) == 1


def test_parts_are_put_together():
  parts = [
    encoded_examples.pack(ROWS[:1]),
    encoded_examples.pack([]),
    encoded_examples.pack(ROWS[1:]),
  ]
  whole = encoded_examples.concatenate(parts)
  check_same(whole, ROWS)
  one = encoded_examples.pack(ROWS)
  for name in encoded_examples.ARRAYS:
    array = getattr(one, name)
    assert getattr(whole, name).dtype == array.dtype
    np.testing.assert_array_equal(getattr(whole, name), array)
  assert len(encoded_examples.concatenate([])) == 0
  assert encoded_examples.concatenate([one]) is one


def test_ids_stay_with_their_examples():
  rows = dataclasses.replace(encoded_examples.pack(ROWS), ids=('a', 'b', 'c'))
  assert rows[1:].ids == ('b', 'c')
  parts = [rows[2:], encoded_examples.pack([]), rows[:2]]
  assert encoded_examples.concatenate(parts).ids == ('c', 'a', 'b')


def test_a_token_takes_four_bytes():
  row = make([1] * 1000, 3)
  packed = encoded_examples.pack([row] * 50)
  assert 50 * 4 * 1000 < packed.nbytes < 50 * (4 * 1000 + 64)
  assert isinstance(packed[0], types.EncodedExample)
  assert np.shares_memory(packed[0].inputs, packed.tokens)
