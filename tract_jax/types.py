"""Axis glossary and the records that travel through the project.

One example's way (each arrow is one module's work):

  raw row -> Example -> EncodedExample -> Batch -> hidden states -> LossTerms
    -> TrainState -> checkpoint -> CotSample -> self-CoT dataset -> stage 2
    -> Prediction -> metrics and report

Axes, one letter each, in docstrings and einsums everywhere:

  B rows            D width               V vocabulary
  L query length    F hidden (MLP)        Y score grid
  S key length      N query heads         C CoTs per input
  T cache length    K key/value heads     R LoRA rank
                    G = N / K groups      P target positions per row
  E examples per row                      H head size
  A micro-batches                         W width of a cached head, at least H
  J tokens of a score                     M nodes of a token tree
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any


class InputError(ValueError):
  """Bad config, data or artefact: the user can mend it; exit code 2.

  Its text is one line for each problem, each naming the place, the value and
  the reason.
  """


def raise_problems(
  problems: Sequence[str], rest: str = 'more', place: str = '', most: int = 20
) -> None:
  """Raises InputError with `most` lines, and one with the others' number."""
  lines = list(problems)
  if len(lines) > most:
    lines[most:] = [f'{place}and {len(lines) - most} {rest}']
  if lines:
    raise InputError('\n'.join(lines))


class UnreachableError(Exception):
  """A bucket gives no answer, or none to us; exit code 75: it may later."""


@dataclasses.dataclass(frozen=True)
class ScoreGrid:
  """The finite list of scores a judge may give, ascending, with their text.

  Attributes:
    values: [Y] the numbers.
    texts: [Y] str(y), as it stands in a target.
  """

  values: tuple[float, ...]
  texts: tuple[str, ...]

  @property
  def midpoint(self) -> float:
    """Halfway between the lowest and the highest score."""
    return (self.values[0] + self.values[-1]) / 2

  def nearest(self, score: float) -> int:
    """Index of the grid value nearest to `score`; the upper one on a tie."""
    distances = [abs(value - score) for value in self.values]
    # A mean of ratings is a tie but for its rounding.
    best = min(distances) * (1 + 1e-9)
    return max(i for i, d in enumerate(distances) if d <= best)


@dataclasses.dataclass(frozen=True)
class TokenTree:
  """Token sequences that go on from one place, joined where they begin alike.

  Node 0 is the token before them, whichever it is in a row; every other node
  is a token after its parent. For "1", "10" and "2", each with the end token E:

    node     0  1  2  3      sequence   1 E     1 0 E     2 E
    token    .  1  0  2      read at    0 1     0 1 2     0 3
    parent   .  0  1  0

  p(1 0 E | ...) is p(1) read at node 0, p(0) at node 1 and p(E) at node 2,
  multiplied. The last tokens are no nodes: nothing is read after them.

  Attributes:
    tokens: [M - 1] of the nodes from 1 on.
    parents: [M - 1] of the nodes from 1 on; a parent comes before its children.
    sequences: [Y] tuples of tokens; none is the beginning of another.
    read_at: [Y] tuples, the node at which each token is read.
  """

  tokens: tuple[int, ...]
  parents: tuple[int, ...]
  sequences: tuple[tuple[int, ...], ...]
  read_at: tuple[tuple[int, ...], ...]

  @functools.cached_property
  def sees(self) -> np.ndarray:
    """[M, M] bool, whether node i sees node j: itself and its ancestors."""
    sees = np.eye(len(self.tokens) + 1, dtype=bool)
    for node, parent in enumerate(self.parents, start=1):
      sees[node] |= sees[parent]
    return sees

  @property
  def depths(self) -> np.ndarray:
    """[M] int32, tokens from node 0 to each node."""
    return (self.sees.sum(axis=1) - 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Example:
  """One judgement, as text (host).

  Attributes:
    example_id: unique within its file.
    prompt: the whole formatted prompt x.
    score: the rater's score y*, which may be fractional; None where a row is
      only to be judged.
    cot: chain of thought without marker words and score; "" where none.
    cot_source: "annotator", "self" or "none".
    ratings: the single ratings that `score` was made of; () where unknown.
    category: for breakdowns; "" where unknown.
    sampling_id: what the row's randomness is folded from, the same
      whatever rows are beside it; "" for the example_id.
    human_score: a human's score beside the rater's, the mean of several; not
      bound to the grid.
    pair_id: joins the chosen and the rejected response of a preference row.
    judged: characters (from, to) of the prompt that may be cut where it is too
      long; None: those that its headings tell.
    response: what is judged, for the report; "" where unknown, and of rows to
      train on.
    response_source: who wrote it, for breakdowns; "" where unknown.
  """

  example_id: str
  prompt: str
  score: float | None
  cot: str = ''
  cot_source: str = 'none'
  ratings: tuple[float, ...] = ()
  category: str = ''
  sampling_id: str = ''
  human_score: float | None = None
  pair_id: str = ''
  judged: tuple[int, int] | None = None
  response: str = ''
  response_source: str = ''

  @property
  def random_id(self) -> str:
    """What all randomness of this row is folded from."""
    return self.sampling_id or self.example_id


@dataclasses.dataclass(frozen=True)
class EncodedExample:
  """One example as tokens, shifted once: position i predicts targets[i].

  For prompt "a b" and target "c 4 </s>", with 4 the score (score_mask has a
  place for each of its tokens):

    inputs      a  b  c  4
    targets     b  c  4  </s>
    cot_mask    0  1  0  1
    score_mask  0  0  1  0

  Attributes:
    inputs, targets: [l] int32.
    cot_mask: [l] bool, the target is text of the CoT, the marker or the end.
    score_mask: [l] bool, the target is a token of the score.
    score: y*; need not equal the token's value when fractional.
    target_probs: [Y] float32, the rater's distribution over the score grid.
  """

  inputs: np.ndarray
  targets: np.ndarray
  cot_mask: np.ndarray
  score_mask: np.ndarray
  score: float
  target_probs: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of encoded examples, on the device.

  Attributes:
    inputs, targets: [B, L] int32.
    positions: [B, L] int32, restarting at 0 with every example.
    segment_ids: [B, L] int32; 0 is padding, examples count from 1.
    cot_mask, score_mask: [B, L] bool, aligned with `targets`; a score starts
      at the first of the score_mask's places in a row.
    score_values: [B, L] float32, y* at score positions and 0 elsewhere.
    target_probs: [B, E, Y] float32, the rater's distribution over the score
      grid for each of the at most E examples of a row: of segment e + 1 at e,
      and 0 where there is no such example.
  """

  inputs: Array
  targets: Array
  positions: Array
  segment_ids: Array
  cot_mask: Array
  score_mask: Array
  score_values: Array
  target_probs: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossTerms:
  """Sums and counts of a loss; float32 scalars that add up over any split.

  Attributes:
    ce_sum, ce_count: cross-entropy in nats, and its number of tokens.
    score_sq_sum, score_count: squared error of the expected score, and the
      number of scores.
    score_loss_sum: the objective's score loss; where that is the squared error,
      the same as score_sq_sum.
    off_grid_sum: penalty on probability off the score grid, nats.
    grid_mass_sum: probability on the score grid, summed over the scores.
  """

  ce_sum: Array
  ce_count: Array
  score_sq_sum: Array
  score_loss_sum: Array
  off_grid_sum: Array
  score_count: Array
  grid_mass_sum: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Entries:
  """Keys or values in 8 bits: entry = codes * scales.

  Attributes:
    codes: [layers, B, K, T, W] int8.
    scales: [layers, B, K, T] float32.
  """

  codes: Array
  scales: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """Keys and values of the tokens seen so far.

  Attributes:
    keys, values: [layers, B, K, T, W], as floats or Int8Entries, a head of H
      numbers and zeros; entries at or past a row's length are garbage and never
      attended to, so a row is rewound by its length alone.
    lengths: [B] int32, tokens seen per row.
  """

  keys: Array | Int8Entries
  values: Array | Int8Entries
  lengths: Array

  @property
  def length(self) -> int:
    """T, the tokens that each row has room for."""
    return jax.tree.leaves(self.keys)[0].shape[3]

  @property
  def width(self) -> int:
    """W, the room for each head of a token."""
    return jax.tree.leaves(self.keys)[0].shape[4]


class ModelFns(NamedTuple):
  """A language model as pure functions; `params` is a nested dict of arrays.

  Attributes:
    init: (key) -> params.
    hidden: (params, inputs [B, L], positions [B, L], segment_ids [B, L])
      -> hidden states [B, L, D] after the final norm.
    project: (params, hidden [..., D]) -> logits [..., V] float32.
    head: (params) -> those that `project` reads; what it would gather, and need
      not cast before, is whole on every device. For a loop over `project`.
    prefill: (params, tokens [B, L], lengths [B], cache_length) -> (hidden
      [B, D] at each row's last token, KVCache with room for cache_length).
      Rows are padded on the right.
    decode: (params, tokens [B], cache) -> (hidden [B, D], cache one longer).
    hidden_and_tree: (params, inputs, positions, segment_ids [B, L], starts
      [B, E], tree) -> (hidden states as of `hidden`, those of the tree's nodes
      [B, E, M, D]). Node 0 is the input at `starts`, whose past the nodes see.
    decode_tree: (params, tokens [B], tree, cache) -> hidden [B, M, D] of the
      tree's nodes, with `tokens` as node 0 and the cache as its past.
    logical_axes: tree like params; each leaf a tuple with the logical name of
      every dimension, or None for one that is never sharded.
    vocab_size: V, rows of the embedding.
    cache_block: of which the length of a cache should be a multiple: so many
      entries are read at a time.
  """

  init: Callable[..., PyTree]
  hidden: Callable[..., Array]
  project: Callable[..., Array]
  head: Callable[[PyTree], PyTree]
  prefill: Callable[..., tuple[Array, KVCache]]
  decode: Callable[..., tuple[Array, KVCache]]
  hidden_and_tree: Callable[..., tuple[Array, Array]]
  decode_tree: Callable[..., Array]
  logical_axes: PyTree
  vocab_size: int
  cache_block: int


@dataclasses.dataclass(frozen=True)
class CotSample:
  """One sampled chain of thought with its score distribution (host).

  Attributes:
    example_id, cot_index: which input, and which of its CoTs.
    tokens: [l] int32, what follows the prompt: the CoT, the marker words and
      what stands between them and the score. The score is the next token.
    num_sampled_tokens: how many of `tokens` the model itself wrote; fewer than
      len(tokens) where the ending was completed.
    finish_reason: "marker" (the model wrote the marker words), "length" (it
      reached the limit), "end_token" (it stopped without marker), "too_long"
      (the prompt leaves no room) or "non_finite"; of the last attempt.
    score_probs: [Y] float32, softmax over the whole vocabulary at the score
      position, at the score tokens, or the product of several such, the end
      token's included; NaN for "too_long" and "non_finite", and for "length"
      and "end_token" where such CoTs are dropped.
    greedy_index: which score of the grid greedy decoding writes there, as the
      likeliest token or the likeliest of each of several; -1 where none.
    num_retries: attempts that failed before this one.
  """

  example_id: str
  cot_index: int
  tokens: np.ndarray
  num_sampled_tokens: int
  finish_reason: str
  score_probs: np.ndarray
  greedy_index: int
  num_retries: int = 0

  @property
  def is_usable(self) -> bool:
    """Whether there is a score distribution after the CoT."""
    return bool(np.isfinite(self.score_probs).all())


FINISH_REASONS = ('marker', 'length', 'end_token', 'too_long', 'non_finite')


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A row of predictions/<method>/<benchmark>.jsonl.

  Attributes:
    example_id: of the benchmark's row.
    seed: of the run.
    score: the rater's score; None where the row has none.
    prediction: by the method's own predictor over all CoTs; None if invalid.
    distributions: [C][Y] probability of each score; a null row where none.
    decoded: [C] the score that greedy decoding writes; None where it is none;
      [] where another system does not tell.
    cots: [C] texts; [""] for methods without CoT.
    finish_reasons: [C].
    invalid_reason: why `prediction` is None; else None.
    category, human_score, pair_id: of the benchmark's row.
    cot_tokens: [C] tokens that the model wrote of each CoT, the fixed words
      among them where it wrote those, attempts that were thrown away not; []
      where that is unknown.
  """

  example_id: str
  seed: int
  score: float | None
  prediction: float | None
  distributions: list[list[float] | None]
  decoded: list[float | None]
  cots: list[str]
  finish_reasons: list[str]
  invalid_reason: str | None
  category: str = ''
  human_score: float | None = None
  pair_id: str = ''
  cot_tokens: list[int] = dataclasses.field(default_factory=list)
