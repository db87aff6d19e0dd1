"""Batches by a global step number, whole or a host's share of each.

In: encoded examples, and the plan of which of them share a row. Out:
types.Batch of numpy arrays of a fixed shape. Which rows batch `step` has is a
function of (seed, step) alone, so the step number is the whole state: any step
can be made at any time, after any restart and on any number of hosts. Axes:
B rows, L query length, P target positions per row, E examples per row, Y score
grid.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from tract_jax import types
from tract_jax.data import encoding, packing

_PREFETCH_BATCHES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
  """Shuffled epochs of rows of encoded examples.

  Every epoch has each row once, in an order of its own. Epochs follow one
  another without a gap; only the last batch of all may have empty rows.

  With several hosts, each makes its share of the rows of every batch, the first
  host the first ones. A batch of 5 rows on 2 hosts, and the last one, of 2:

    host 0    row row row        row row .
    host 1    row row .          .   .   .

  Attributes:
    examples: the encoded examples, at least one.
    plan: which of them share a row.
    batch_size: B, rows of the global batch.
    length: L; no row may have more tokens.
    seed: of the order, in [0, 2**32).
    num_epochs: how often each example is seen.
    shard_index: this host's number, in [0, shard_count).
    shard_count: hosts that share a batch.

  Raises:
    ValueError: no examples, a plan of others, a size out of range, or a row
      that does not fit.
  """

  examples: Sequence[types.EncodedExample]
  plan: packing.Plan
  _: dataclasses.KW_ONLY
  batch_size: int
  length: int
  seed: int
  num_epochs: int
  shard_index: int = 0
  shard_count: int = 1

  def __post_init__(self):
    if not len(self.examples):
      raise ValueError('no examples to make batches of')
    for name in ('batch_size', 'length', 'num_epochs', 'shard_count'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} {getattr(self, name)} is below 1')
    if not 0 <= self.shard_index < self.shard_count:
      raise ValueError(f'no shard {self.shard_index} of {self.shard_count}')
    if len(self.plan.indices) != len(self.examples):
      raise ValueError(
        f'a plan of {len(self.plan.indices)} examples for {len(self.examples)}'
      )
    row = int(np.argmax(self._tokens))
    if self._tokens[row] > self.length:
      raise ValueError(
        f'row {row}, examples {self.plan.row(row)}, has {self._tokens[row]} '
        f'tokens, more than {self.length}'
      )

  @property
  def num_steps(self) -> int:
    """Batches in all epochs together: ceil(R * num_epochs / batch_size)."""
    return -(-self.plan.num_rows * self.num_epochs // self.batch_size)

  @property
  def share(self) -> int:
    """Rows of this host in every batch: ceil(batch_size / shard_count)."""
    return -(-self.batch_size // self.shard_count)

  @property
  def fill(self) -> float:
    """Which part of an epoch's positions are tokens; the rest is padding."""
    return float(np.mean(self._tokens) / self.length)

  @property
  def max_targets(self) -> int:
    """The most targets that are learnt (CoT, score, end) in any row."""
    return int(self.plan.totals(encoding.sizes(self.examples)[1]).max())

  def rows(self, step: int) -> list[list[int]]:
    """Examples of each of this host's rows in batch `step`, no empty rows."""
    return self._shares[self._checked(step)]

  def batch(self, step: int) -> types.Batch:
    """This host's share of batch `step`, from 0; [share, L] numpy arrays."""
    return self._make(self.rows(step))

  def iterate(self, start_step: int = 0) -> Iterator[tuple[int, types.Batch]]:
    """Yields (step, batch) to the end, made ahead of use in a thread.

    Args:
      start_step: the first step; `num_steps` yields nothing.

    Yields:
      The step's number and `batch(step)`.
    """
    if start_step == self.num_steps:
      return
    rest = self._shares[self._checked(start_step) :].map(self._make)
    options = grain.ReadOptions(
      num_threads=1, prefetch_buffer_size=_PREFETCH_BATCHES
    )
    yield from enumerate(rest.to_iter_dataset(options), start_step)

  @functools.cached_property
  def _tokens(self) -> np.ndarray:
    """[R] tokens of each row."""
    return self.plan.totals(encoding.sizes(self.examples)[0])

  @functools.cached_property
  def _shares(self) -> Any:
    """A grain dataset of this host's rows, an entry for each step."""
    # grain draws the shuffle's seed from ours, and another one for each epoch.
    rows = grain.MapDataset.range(self.plan.num_rows).seed(self.seed)
    batches = rows.shuffle().repeat(self.num_epochs)
    begin = self.shard_index * self.share
    return batches.batch(self.batch_size, batch_fn=list).map(
      lambda batch: [
        self.plan.row(row) for row in batch[begin : begin + self.share]
      ]
    )

  def _make(self, rows: Sequence[Sequence[int]]) -> types.Batch:
    return make_batch(
      [[self.examples[i] for i in row] for row in rows],
      batch_size=self.share,
      length=self.length,
      max_examples=self.plan.max_examples,
      num_scores=self._num_scores,
    )

  @functools.cached_property
  def _num_scores(self) -> int:
    return len(self.examples[0].target_probs)

  def _checked(self, step: int) -> int:
    # grain would take any number, modulo the length.
    if not 0 <= step < self.num_steps:
      raise IndexError(f'step {step} is not in 0..{self.num_steps - 1}')
    return step


def make_batch(
  rows: Sequence[Sequence[types.EncodedExample]],
  *,
  batch_size: int,
  length: int,
  max_examples: int,
  num_scores: int,
) -> types.Batch:
  """Puts the examples of each row one after another; the rest is padding.

  For rows of 2 and 3 tokens and of 4, batch_size 3 and length 6:

    segment_ids   1 1 2 2 2 0    positions   0 1 0 1 2 0
                  1 1 1 1 0 0                0 1 2 3 0 0
                  0 0 0 0 0 0                0 0 0 0 0 0

  Args:
    rows: at most batch_size rows, each of at most max_examples examples with
      at most `length` tokens together.
    batch_size: B.
    length: L.
    max_examples: E.
    num_scores: Y.

  Returns:
    [B, L] numpy arrays, and [B, E, Y] for the distributions. Padding is 0 in
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
  target_probs = np.zeros((batch_size, max_examples, num_scores), np.float32)
  for row, examples in enumerate(rows):
    start = 0
    for segment, example in enumerate(examples):
      stop = start + len(example.inputs)
      values = {
        'inputs': example.inputs,
        'targets': example.targets,
        'positions': np.arange(stop - start),
        'segment_ids': segment + 1,
        'cot_mask': example.cot_mask,
        'score_mask': example.score_mask,
        'score_values': np.where(example.score_mask, example.score, 0),
      }
      for name, value in values.items():
        fields[name][row, start:stop] = value
      target_probs[row, segment] = example.target_probs
      start = stop
  return types.Batch(**fields, target_probs=target_probs)


def static_size(sizes: Sequence[int] | np.ndarray, multiple: int = 64) -> int:
  """What fits the largest of all sizes, rounded up to a multiple.

  Args:
    sizes: of the rows, such as their tokens (for L) or targets (for P); at
      least one. The targets of a row, rounded up, may be more than L.
    multiple: the static shape is a multiple of it.

  Returns:
    The static shape.
  """
  return -(-int(np.max(sizes)) // multiple) * multiple
