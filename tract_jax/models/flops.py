"""Operations that a model needs, from its architecture alone.

A multiplication and an addition are two operations. Counted are products:

  linear     2 P per token, with P = layers (D (N + 2 K) H + N H D + 3 D F)
  attention  4 N H per layer, and query and key that sees it: scores and values
  head       2 D V per place whose logits are wanted

A causal row of L tokens has L (L + 1) / 2 such pairs, fewer with a window.
Backward takes twice as many again, once for the activations and once for the
weights; of frozen weights only the former. Not counted: adapters' own products
(under 1 %), norms, activations, embedding, and whatever is computed twice to
save memory. So the number is what a perfect program would do.

Axes as in types.py.
"""

import dataclasses

from tract_jax.models import config as config_lib


@dataclasses.dataclass(frozen=True)
class Flops:
  """Operations by kind.

  Attributes:
    linear, attention, head: see the module.
  """

  linear: float
  attention: float
  head: float

  @property
  def total(self) -> float:
    """All of them."""
    return self.linear + self.attention + self.head


def num_pairs(length: int, window: int | None) -> int:
  """Queries and keys of a causal row that see each other.

  Args:
    length: L.
    window: a token sees at most so many, itself included; None: all before it.

  Returns:
    The number of pairs.

  Example:
    >>> num_pairs(4, None), num_pairs(4, 2)
    (10, 7)
  """
  window = min(window or length, length)
  return window * (window + 1) // 2 + (length - window) * window


def row_flops(
  config: config_lib.ModelConfig, length: int, num_logits: int
) -> Flops:
  """Forward through one causal row.

  Args:
    config: the architecture.
    length: L.
    num_logits: places whose logits are wanted.

  Returns:
    Operations.
  """
  pairs = num_pairs(length, config.sliding_window)
  return _flops(config, length, pairs, num_logits)


def token_flops(config: config_lib.ModelConfig, num_cached: int) -> Flops:
  """One more token behind a cache, with its logits.

  Args:
    config: the architecture.
    num_cached: tokens before it.

  Returns:
    Operations.
  """
  seen = min(num_cached + 1, config.sliding_window or num_cached + 1)
  return _flops(config, 1, seen, 1)


def training_flops(forward: Flops, *, train_base: bool) -> float:
  """Forward and backward.

  Args:
    forward: of all rows of an update.
    train_base: whether the weights are trained, or only adapters on them.

  Returns:
    Operations: 3 times forward, or 2 times where weights are frozen (3 times
    attention, which has none).
  """
  weights = 3 if train_base else 2
  return weights * (forward.linear + forward.head) + 3 * forward.attention


def update_flops(
  config: config_lib.ModelConfig,
  *,
  num_rows: int,
  length: int,
  num_targets: int,
  train_base: bool,
) -> float:
  """An update on rows that are full.

  Args:
    config: the architecture.
    num_rows: of the update, on all devices.
    length: L; padding counts, and a packed row counts as one example.
    num_targets: places of a row whose logits are made.
    train_base: as for `training_flops`.

  Returns:
    Operations, of all devices together.
  """
  row = row_flops(config, length, min(num_targets, length))
  return num_rows * training_flops(row, train_base=train_base)


def _flops(config, num_tokens: int, pairs: int, num_logits: int) -> Flops:
  width, heads = config.hidden_size, config.num_heads * config.head_dim
  kv_heads = config.num_kv_heads * config.head_dim
  layer = width * (heads + 2 * kv_heads) + heads * width
  layer += 3 * width * config.intermediate_size
  return Flops(
    linear=2.0 * config.num_layers * layer * num_tokens,
    attention=4.0 * config.num_layers * heads * pairs,
    head=2.0 * width * config.vocab_size * num_logits,
  )
