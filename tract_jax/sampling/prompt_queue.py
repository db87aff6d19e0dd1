"""Which prompts are read next, and in which shapes.

Prompts are padded to a multiple of some tokens, their bucket, and read in as
many rows as make up about `prefill_tokens`. So each bucket has one shape, and
what is computed for a prompt depends on its own length alone.

    requests  a0 a1 a2 b0 c0 c1      (CoT 0 of input a, ..)
    prompts   [a0 a1 a2] [b0] [c0 c1]    one prefill each
    batches   bucket 128: a, c; bucket 256: b

Axes: P prompts, L their padded length.
"""

import collections
from collections.abc import Sequence
import dataclasses
import itertools

import numpy as np

# Prompts that are looked at to fill a batch, for each of its rows.
_LOOK_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Attempt:
  """A CoT to sample: the request's number, and how often it failed before."""

  index: int
  num_retries: int = 0


@dataclasses.dataclass(frozen=True)
class Buckets:
  """The shapes in which prompts are read.

  Attributes:
    multiple: prompts are padded to multiples of it.
    max_length: but not beyond this.
    prefill_tokens: of one batch, about.
    row_multiple: a batch has a multiple of so many rows.
    pad_id: stands in padded places; never read.
  """

  multiple: int
  max_length: int
  prefill_tokens: int
  row_multiple: int
  pad_id: int

  def length(self, num_tokens: int) -> int:
    """L of a prompt."""
    padded = -(-num_tokens // self.multiple) * self.multiple
    return min(padded, self.max_length)

  def num_rows(self, length: int) -> int:
    """P of a bucket."""
    groups = self.prefill_tokens // (length * self.row_multiple)
    return max(groups, 1) * self.row_multiple

  def padded(
    self, sequences: Sequence[np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [P, L] and lengths [P] int32; missing rows have one token.

    Args:
      sequences: up to P, of one bucket.
    """
    length = self.length(max(map(len, sequences)))
    shape = (self.num_rows(length), length)
    tokens = np.full(shape, self.pad_id, np.int32)
    lengths = np.ones(shape[0], np.int32)
    for row, sequence in enumerate(sequences):
      tokens[row, : len(sequence)] = sequence
      lengths[row] = len(sequence)
    return tokens, lengths


class PromptQueue:
  """Prompts that wait to be read, with the CoTs that each is read for."""

  def __init__(self, buckets: Buckets):
    """Makes an empty queue.

    Args:
      buckets: the shapes of the batches.
    """
    self._buckets = buckets
    self._waiting = collections.deque[tuple[int, list[Attempt]]]()

  def __bool__(self) -> bool:
    return bool(self._waiting)

  def add(
    self, attempts: Sequence[Attempt], prompts: Sequence[np.ndarray]
  ) -> None:
    """Puts CoTs at the end of the queue.

    Args:
      attempts: those that stand together and have the same prompt share it.
      prompts: tokens [l] of each.
    """
    pairs = zip(attempts, prompts, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: bytes(pair[1])):
      items = list(group)
      bucket = self._buckets.length(len(items[0][1]))
      self._waiting.append((bucket, [attempt for attempt, _ in items]))

  def add_first(self, attempt: Attempt, length: int) -> None:
    """Puts a CoT that failed at the head, so that its chunk is not held up.

    Args:
      attempt: the next one.
      length: tokens of its prompt.
    """
    self._waiting.appendleft((self._buckets.length(length), [attempt]))

  def next_batch(self) -> list[list[Attempt]]:
    """Takes the first prompt, and others of its bucket that stand near it.

    Returns:
      The CoTs of each of up to P prompts.
    """
    bucket = self._waiting[0][0]
    num_rows = self._buckets.num_rows(bucket)
    near = itertools.islice(self._waiting, num_rows * _LOOK_AHEAD)
    taken = [i for i, (other, _) in enumerate(near) if other == bucket]
    taken = taken[:num_rows]
    batch = [self._waiting[i][1] for i in taken]
    for i in reversed(taken):
      del self._waiting[i]
    return batch
