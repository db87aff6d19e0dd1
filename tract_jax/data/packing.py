"""Which examples share a row: a plan over all of them, made once.

In: how many tokens each example has. Out: rows, each of one or more examples.
Lengths are known after encoding, so a row has a number, and any batch of rows
can be made at any time. For lengths 5, 2, 4, 3 and rows of 8 tokens:

  row 0    0 0 0 0 0 3 3 3
  row 1    1 1 2 2 2 2 . .

Axes: n examples, R rows, L tokens of a row.
"""

import bisect
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Rows of example indices; every example stands in exactly one.

  For the rows above: indices 0 3 1 2, offsets 0 2 4.

  Attributes:
    indices: [n] int32 examples, row after row, ascending within each.
    offsets: [R + 1] int64, where each row begins in `indices`, and n.
  """

  indices: np.ndarray
  offsets: np.ndarray

  @property
  def num_rows(self) -> int:
    """R."""
    return len(self.offsets) - 1

  @property
  def max_examples(self) -> int:
    """E, the most examples that any row has; 0 without rows."""
    return int(np.diff(self.offsets).max(initial=0))

  def row(self, number: int) -> list[int]:
    """The examples of a row, in [0, R)."""
    begin, end = self.offsets[number : number + 2]
    return self.indices[begin:end].tolist()

  def totals(self, sizes: np.ndarray) -> np.ndarray:
    """Adds up a size of the examples in each row.

    Args:
      sizes: [n] int, such as tokens or targets.

    Returns:
      [R] int64.
    """
    # Cumulative sums, since `np.add.reduceat` has no way to give no rows.
    ends = np.concatenate([[0], np.cumsum(sizes[self.indices])])
    return np.diff(ends[self.offsets]).astype(np.int64)


def one_each(num_examples: int) -> Plan:
  """The plan without packing: row i has example i alone.

  Args:
    num_examples: n.

  Returns:
    n rows.
  """
  return Plan(
    np.arange(num_examples, dtype=np.int32), np.arange(num_examples + 1)
  )


def best_fit(lengths: np.ndarray, row_length: int) -> Plan:
  """Packs by best fit, decreasing: each example where the least room is left.

  The longest example comes first, of equal ones the first; it goes to the row
  that it fills best, of equal rows to the latest, or else to a new one. So
  lengths in another order give rows of the same lengths.

  Rows are found by their room in a sorted list of the rooms that there are, at
  most L: n log L comparisons.

  Args:
    lengths: [n] int, tokens of each example, in [1, L].
    row_length: L.

  Returns:
    The plan, the same for the same lengths on any machine.

  Raises:
    ValueError: a length that is out of range.
  """
  lengths = np.asarray(lengths, np.int64)
  for i in np.flatnonzero((lengths < 1) | (lengths > row_length))[:1]:
    raise ValueError(f'example {i}: {lengths[i]} tokens, not 1 to {row_length}')
  row_of = np.zeros(len(lengths), np.int32)
  rooms: list[int] = []  # Ascending, each once.
  rows_with: dict[int, list[int]] = {}
  num_rows = 0
  order = np.argsort(-lengths, kind='stable')
  for i, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
    at = bisect.bisect_left(rooms, length)
    if at < len(rooms):
      room = rooms[at]
      row = rows_with[room].pop()
      if not rows_with[room]:
        del rooms[at]
    else:
      room, row, num_rows = row_length, num_rows, num_rows + 1
    row_of[i] = row
    rest = rows_with.setdefault(room - length, [])
    if not rest:
      bisect.insort(rooms, room - length)
    rest.append(row)
  sizes = np.bincount(row_of, minlength=num_rows)
  return Plan(
    indices=np.argsort(row_of, kind='stable').astype(np.int32),
    offsets=np.concatenate([[0], np.cumsum(sizes)]),
  )
