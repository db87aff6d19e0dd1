"""Batches by a global step number.

In: encoded examples. Out: types.Batch of numpy arrays, one example a row, of a
fixed shape. Which rows batch `step` has is a function of (seed, step) alone, so
the step number is the whole state: any step can be made at any time, after any
restart and on any number of hosts. Axes: B rows, L query length, P target
positions per row.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from tract_jax import types
from tract_jax.data import encoding

_PREFETCH_BATCHES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
  """Shuffled epochs of encoded examples.

  Every epoch has each example once, in an order of its own. Epochs follow one
  another without a gap; only the last batch of all may have empty rows.

  Attributes:
    examples: the encoded examples, at least one.
    batch_size: B.
    length: L; no example may be longer.
    seed: of the order, in [0, 2**32).
    num_epochs: how often each example is seen.
    max_targets: P that the step was compiled for; no example may have more
      targets. None: not checked.

  Raises:
    ValueError: no examples, a size below 1, or an example that does not fit.
  """

  examples: Sequence[types.EncodedExample]
  _: dataclasses.KW_ONLY
  batch_size: int
  length: int
  seed: int
  num_epochs: int
  max_targets: int | None = None

  def __post_init__(self):
    if not self.examples:
      raise ValueError('no examples to make batches of')
    for name in ('batch_size', 'length', 'num_epochs'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} {getattr(self, name)} is below 1')
    limits = {'tokens': self.length, 'targets': self.max_targets}
    for i, example in enumerate(self.examples):
      sizes = {
        'tokens': len(example.inputs),
        'targets': encoding.num_targets(example),
      }
      for what, limit in limits.items():
        if limit is not None and sizes[what] > limit:
          raise ValueError(
            f'example {i} has {sizes[what]} {what}, more than {limit}'
          )

  @property
  def num_steps(self) -> int:
    """Batches in all epochs together: ceil(n * num_epochs / batch_size)."""
    return -(-len(self.examples) * self.num_epochs // self.batch_size)

  def indices(self, step: int) -> list[int]:
    """Which examples batch `step` has, in row order, without empty rows."""
    return self._batches[self._checked(step)]

  def batch(self, step: int) -> types.Batch:
    """Batch `step`, counted from 0; [B, L] numpy arrays."""
    return self._make(self.indices(step))

  def iterate(self, start_step: int = 0) -> Iterator[tuple[int, types.Batch]]:
    """Yields (step, batch) to the end, made ahead of use in a thread.

    Args:
      start_step: the first step; `num_steps` yields nothing.

    Yields:
      The step's number and `batch(step)`.
    """
    if start_step == self.num_steps:
      return
    rest = self._batches[self._checked(start_step) :].map(self._make)
    options = grain.ReadOptions(
      num_threads=1, prefetch_buffer_size=_PREFETCH_BATCHES
    )
    yield from enumerate(rest.to_iter_dataset(options), start_step)

  @functools.cached_property
  def _batches(self) -> Any:
    """A grain dataset of lists of example indices, one for each step."""
    # grain draws the shuffle's seed from ours, and another one for each epoch.
    order = grain.MapDataset.range(len(self.examples)).seed(self.seed).shuffle()
    return order.repeat(self.num_epochs).batch(self.batch_size, batch_fn=list)

  def _make(self, indices: Sequence[int]) -> types.Batch:
    rows = [self.examples[i] for i in indices]
    return make_batch(rows, self.batch_size, self.length)

  def _checked(self, step: int) -> int:
    # grain would take any number, modulo the length.
    if not 0 <= step < self.num_steps:
      raise IndexError(f'step {step} is not in 0..{self.num_steps - 1}')
    return step


def make_batch(
  rows: Sequence[types.EncodedExample], batch_size: int, length: int
) -> types.Batch:
  """Puts one example in each row; what is left over is padding.

  For examples of 2 and 3 tokens, batch_size 3 and length 4:

    segment_ids   1 1 0 0    positions   0 1 0 0
                  1 1 1 0                0 1 2 0
                  0 0 0 0                0 0 0 0

  Args:
    rows: at most batch_size examples of at most `length` tokens.
    batch_size: B.
    length: L.

  Returns:
    [B, L] numpy arrays, and [B, 1, Y] for the distributions. Padding is 0 in
    all of them.
  """
  dtypes: dict[str, Any] = {
    'inputs': np.int32,
    'targets': np.int32,
    'positions': np.int32,
    'segment_ids': np.int32,
    'cot_mask': bool,
    'score_mask': bool,
    'score_values': np.float32,
  }
  fields: dict[str, Any] = {
    name: np.zeros((batch_size, length), dtype)
    for name, dtype in dtypes.items()
  }
  for row, example in enumerate(rows):
    num_tokens = len(example.inputs)
    values = {
      'inputs': example.inputs,
      'targets': example.targets,
      'positions': np.arange(num_tokens),
      'segment_ids': 1,
      'cot_mask': example.cot_mask,
      'score_mask': example.score_mask,
      'score_values': np.where(example.score_mask, example.score, 0),
    }
    for name, value in values.items():
      fields[name][row, :num_tokens] = value
  # One example a row: the first of the row's distributions is its own.
  width = len(rows[0].target_probs) if rows else 0
  target_probs = np.zeros((batch_size, 1, width), np.float32)
  for row, example in enumerate(rows):
    target_probs[row, 0] = example.target_probs
  return types.Batch(**fields, target_probs=target_probs)


def row_length(
  examples: Sequence[types.EncodedExample], multiple: int = 64
) -> int:
  """L that fits the longest example, rounded up to a multiple."""
  return _round_up(max(len(e.inputs) for e in examples), multiple)


def max_targets(
  examples: Sequence[types.EncodedExample], multiple: int = 64
) -> int:
  """P that fits the example with the most targets, rounded up to a multiple.

  Args:
    examples: at least one.
    multiple: the static shape is a multiple of it.

  Returns:
    The most targets that are learnt (CoT, score, end) in any row, rounded up;
    may be more than L.
  """
  return _round_up(max(encoding.num_targets(e) for e in examples), multiple)


def _round_up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple
