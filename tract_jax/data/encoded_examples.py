"""Encoded examples in a few flat arrays, read as a sequence of records.

A hundred thousand examples of 1,350 tokens take 0.55 GB: four bytes a token.
Masks and the shift are made again whenever an example is read:

  tokens            x  x  c  4  </s> | x  x  x  c  c  4  </s>
  starts            0                  5                      12
  num_prompt        2                  3
  num_score_tokens  1                  1

In: records, or arrays from a file (memory-mapped ones, too). Out: records.
Axes: T tokens of all n examples, Y score grid.
"""

import array
from collections.abc import Iterator, Sequence
import dataclasses
from typing import overload

import numpy as np

from tract_jax import types


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedExamples(Sequence[types.EncodedExample]):
  """Examples as arrays; an index gives a record, a slice more of this.

  Attributes:
    tokens: [T] int32, each example's tokens, the end token included.
    starts: [n + 1] int64, where each example begins, and T.
    num_prompt: [n] int32, tokens of the prompt; at least 1, since an example's
      first token is no target.
    num_score_tokens: [n] int32, tokens of the score, right before the end.
    scores: [n] float64, y*.
    target_probs: [n, Y] float32.
    ids: [n] example ids; () where nobody asked for them.
  """

  tokens: np.ndarray
  starts: np.ndarray
  num_prompt: np.ndarray
  num_score_tokens: np.ndarray
  scores: np.ndarray
  target_probs: np.ndarray
  ids: tuple[str, ...] = ()

  @property
  def lengths(self) -> np.ndarray:
    """[n] int64 inputs of each example; the end token is none."""
    return np.diff(self.starts) - 1

  @property
  def num_targets(self) -> np.ndarray:
    """[n] int64 targets that are learnt in each: CoT, score and end."""
    return self.lengths + 1 - self.num_prompt

  @property
  def nbytes(self) -> int:
    """Bytes of all arrays together."""
    return sum(getattr(self, name).nbytes for name in ARRAYS)

  def __len__(self) -> int:
    return len(self.scores)

  @overload
  def __getitem__(self, index: int) -> types.EncodedExample: ...

  @overload
  def __getitem__(self, index: slice) -> 'EncodedExamples': ...

  def __getitem__(self, index):
    if isinstance(index, slice):
      if index.step not in (None, 1):
        return pack([self[i] for i in range(*index.indices(len(self)))])
      begin, end, _ = index.indices(len(self))
      return self._between(begin, max(begin, end))
    if not -len(self) <= index < len(self):
      raise IndexError(f'example {index} is not among {len(self)}')
    index %= len(self)
    return record(
      self.tokens[self.starts[index] : self.starts[index + 1]],
      num_prompt=int(self.num_prompt[index]),
      num_score_tokens=int(self.num_score_tokens[index]),
      score=float(self.scores[index]),
      target_probs=self.target_probs[index],
    )

  def __iter__(self) -> Iterator[types.EncodedExample]:
    return (self[i] for i in range(len(self)))

  def _between(self, begin: int, end: int) -> 'EncodedExamples':
    starts = self.starts[begin : end + 1]
    return EncodedExamples(
      self.tokens[starts[0] : starts[-1]],
      starts - starts[0],
      self.num_prompt[begin:end],
      self.num_score_tokens[begin:end],
      self.scores[begin:end],
      self.target_probs[begin:end],
      self.ids[begin:end],
    )


ARRAYS = tuple(
  field.name
  for field in dataclasses.fields(EncodedExamples)
  if field.name != 'ids'
)


def record(
  tokens: np.ndarray,
  *,
  num_prompt: int,
  num_score_tokens: int,
  score: float,
  target_probs: np.ndarray,
) -> types.EncodedExample:
  """Shifts an example's tokens and marks its targets; the one place for it.

  Args:
    tokens: [l + 1] int32: prompt, CoT, score and end token.
    num_prompt: how many are the prompt's.
    num_score_tokens: how many are the score's, right before the end token.
    score: y*.
    target_probs: [Y] float32.

  Returns:
    The record; inputs and targets are views of `tokens`.
  """
  # Aligned with targets: target i is token i + 1.
  position = np.arange(1, len(tokens))
  end = len(tokens) - 1
  score_mask = (position >= end - num_score_tokens) & (position < end)
  return types.EncodedExample(
    inputs=tokens[:-1],
    targets=tokens[1:],
    cot_mask=(position >= num_prompt) & ~score_mask,
    score_mask=score_mask,
    score=score,
    target_probs=target_probs,
  )


def pack(examples: Sequence[types.EncodedExample]) -> EncodedExamples:
  """Records as arrays.

  Args:
    examples: as `record` makes them: the score stands before the end token.

  Returns:
    The same examples.
  """
  starts = np.zeros(len(examples) + 1, np.int64)
  np.cumsum([len(e.inputs) + 1 for e in examples], out=starts[1:])
  tokens = np.empty(starts[-1], np.int32)
  for i, example in enumerate(examples):
    tokens[starts[i]] = example.inputs[0]
    tokens[starts[i] + 1 : starts[i + 1]] = example.targets
  learnt = [e.cot_mask | e.score_mask for e in examples]
  probs = [e.target_probs for e in examples]
  return EncodedExamples(
    tokens,
    starts,
    np.array([1 + int(np.argmax(mask)) for mask in learnt], np.int32),
    np.array([e.score_mask.sum() for e in examples], np.int32),
    np.array([e.score for e in examples], np.float64),
    np.stack(probs) if probs else np.zeros((0, 0), np.float32),
  )


class Builder:
  """Puts parts one after another, without any beside the whole.

  Parts may come and go one at a time: the one buffer grows in place.
  """

  def __init__(self):
    self._tokens = array.array('i')
    self._ids: list[str] = []
    self._columns: dict[str, list[np.ndarray]] = {
      name: []
      for name in (
        'lengths',
        'num_prompt',
        'num_score_tokens',
        'scores',
        'target_probs',
      )
    }

  def add(self, part: EncodedExamples) -> None:
    """Copies the examples of a part."""
    if len(part):
      tokens = np.ascontiguousarray(part.tokens, np.int32)
      self._tokens.frombytes(tokens.view(np.uint8).data)
      self._ids += part.ids
      for name, column in self._columns.items():
        column.append(getattr(part, name))

  def examples(self) -> EncodedExamples:
    """All examples, in order; call it once, after the last part."""
    if not self._columns['lengths']:
      return pack([])
    columns = {k: np.concatenate(v) for k, v in self._columns.items()}
    lengths = columns.pop('lengths') + 1
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.frombuffer(self._tokens, np.int32)
    return EncodedExamples(tokens, starts, **columns, ids=tuple(self._ids))


def concatenate(parts: Sequence[EncodedExamples]) -> EncodedExamples:
  """All examples of the parts, in order; a single part is not copied."""
  if len(parts) == 1:
    return parts[0]
  builder = Builder()
  for part in parts:
    builder.add(part)
  return builder.examples()
