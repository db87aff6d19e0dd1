"""Low-rank adapters: which leaves they are, and how they join the weights.

    y = x W + (alpha / R) (x A) B

An adapted linear layer has the leaves `lora_a` [..., in, R] and `lora_b`
[..., R, out] beside its `weight` [..., in, out]. Source: Hu et al., "LoRA:
Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
from jax import ad_checkpoint
import jax.numpy as jnp
import qwix

from tract_jax import types

TARGETS = (
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
)
LEAVES = ('lora_a', 'lora_b')
# Name under which rematerialisation keeps X A.
LOW_NAME = 'lora_low'


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters of a model.

  Attributes:
    rank: R; 0 for a model without adapters.
    alpha: numerator of the adapters' scaling.
    targets: names of the adapted linear layers, out of `TARGETS`.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = TARGETS

  def __post_init__(self):
    problems = []
    if self.rank < 0:
      problems.append(f'lora_rank={self.rank}: must be 0 or more')
    problems += [
      f'lora_targets: {name!r} is not a linear layer; allowed: '
      + ', '.join(TARGETS)
      for name in self.targets
      if name not in TARGETS
    ]
    if self.rank and not self.targets:
      problems.append(f'lora_targets is empty, with lora_rank={self.rank}')
    if problems:
      raise types.InputError('\n'.join(problems))

  @property
  def scaling(self) -> float:
    """What adapters are multiplied by: alpha / R, or 0 without adapters."""
    return self.alpha / self.rank if self.rank else 0.0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adapted_matmul(
  scaling: float,
  x: types.Array,
  weight: types.Array,
  a: types.Array,
  b: types.Array,
) -> types.Array:
  """X W + scaling (X A) B as one product, for many rows.

    [X, scaling X A] [W; B]

  along the contraction. The thin product with B and the addition to a whole
  result cost a TPU more than R more columns do. So does the gradient of X:
  [dY, scaling dY B'] [W, A]'.

  The gradient is written by hand to have that of W as a product of its own,
  which the compiler drops where W is frozen. Autodiff would give the gradient
  of [W; B] as a whole.

  Args:
    scaling: alpha / R.
    x: [..., *in]; `in` and `out` may be several dimensions, such as heads.
    weight: [*in, *out].
    a: [*in, R].
    b: [R, *out]; all of one dtype.

  Returns:
    [..., *out].
  """
  return _adapted_matmul_fwd(scaling, x, weight, a, b)[0]


def _adapted_matmul_fwd(scaling, x, weight, a, b):
  num_in = a.ndim - 1
  low = ad_checkpoint.checkpoint_name(
    scaling * jnp.tensordot(x, a, num_in), LOW_NAME
  )
  y = jnp.tensordot(
    _with_low(x, low, low.ndim - 1, num_in),
    _with_low(weight, b, 0, num_in),
    num_in,
  )
  return y, (x, weight, a, b, low)


def _adapted_matmul_bwd(scaling, residuals, y_grad):
  x, weight, a, b, low = residuals
  num_in, num_out = a.ndim - 1, b.ndim - 1
  rows = tuple(range(low.ndim - 1))
  out = tuple(range(-num_out, 0))
  low_grad = scaling * jnp.tensordot(y_grad, b, (out, out))
  x_grad = jnp.tensordot(
    _with_low(y_grad, low_grad, len(rows), num_out),
    _with_low(weight, a, num_in, num_out),
    (out, out),
  )
  return (
    x_grad,
    jnp.tensordot(x, y_grad, (rows, rows)),
    jnp.tensordot(x, low_grad, (rows, rows)),
    jnp.tensordot(low, y_grad, (rows, rows)),
  )


def _with_low(x, low, axis, num_dims):
  """[..., *dims, ...] with R more numbers behind those of dims.

  Where dims are heads of a size H, they fill ceil(R / H) more heads, the last
  with zeros.

  Args:
    x: [..., *dims, ...], dims from `axis` on, `num_dims` of them.
    low: [..., R, ...], R at `axis`.

  Returns:
    x with more along `axis`.
  """
  head = x.shape[axis + 1 : axis + num_dims]
  widths = [(0, 0)] * low.ndim
  widths[axis] = (0, -low.shape[axis] % math.prod(head))
  shape = low.shape[:axis] + (-1, *head) + low.shape[axis + 1 :]
  return jnp.concatenate([x, jnp.pad(low, widths).reshape(shape)], axis)


adapted_matmul.defvjp(_adapted_matmul_fwd, _adapted_matmul_bwd)


def split_trainable(
  params: types.PyTree, train_base: bool
) -> tuple[types.PyTree, types.PyTree]:
  """Params in two: what the optimiser changes, and what stays.

  Both keep the tree's shape, with None where the leaf is in the other.

  Args:
    params: nested dict of arrays.
    train_base: whether the weights themselves are trained, adapters included
      where there are any; else adapters alone are.

  Returns:
    (trainable, frozen); `merge` joins them again.
  """

  def is_trainable(name):
    return train_base or name in LEAVES

  trainable = _mapped(params, lambda n, x: x if is_trainable(n) else None)
  frozen = _mapped(params, lambda n, x: None if is_trainable(n) else x)
  return trainable, frozen


def merge(trainable: types.PyTree, frozen: types.PyTree) -> types.PyTree:
  """Joins two nested dicts of which each leaf is in exactly one.

  Args:
    trainable, frozen: of `split_trainable`; a leaf that the other tree has may
      be None or left out, so adapters join a base that knows of none.

  Returns:
    The whole params.

  Raises:
    ValueError: for a leaf that both trees have, or neither.
  """
  return _merged(trainable, frozen, '')


def _merged(left: Any, right: Any, path: str) -> Any:
  if isinstance(left, dict) and isinstance(right, dict):
    return {
      name: _merged(left.get(name), right.get(name), f'{path}/{name}')
      for name in sorted({*left, *right})
    }
  if (left is None) == (right is None):
    count = 'neither tree' if left is None else 'both trees'
    raise ValueError(f'params{path} is in {count}')
  return right if left is None else left


def merge_adapters(params: types.PyTree, scaling: float) -> types.PyTree:
  """Folds every adapter into its weight: W + scaling A B.

  In float32, rounded once to the weight's dtype: the product is often smaller
  than a bfloat16 step of the weight. The steps of a quantised weight are larger
  still, so it is refused: an adapter that was trained on one is exported merged
  into the unquantised weight.

  Args:
    params: nested dict of arrays.
    scaling: alpha / R.

  Returns:
    Params without adapter leaves.

  Raises:
    ValueError: for an adapter beside a quantised weight.
  """
  if not isinstance(params, dict):
    return params
  rest = {
    name: merge_adapters(child, scaling)
    for name, child in params.items()
    if name not in LEAVES
  }
  if LEAVES[0] in params:
    update = jnp.einsum(
      '...ir,...ro->...io',
      *(params[name].astype(jnp.float32) for name in LEAVES),
      precision='highest',
    )
    weight = params['weight']
    if isinstance(weight, qwix.QArray):
      raise ValueError(
        f'an adapter cannot be merged into an {weight.qtype} weight'
        f' {list(weight.shape)}: merge it into the unquantised one, or apply'
        ' quantization.dequantize first'
      )
    merged = weight.astype(jnp.float32) + scaling * update
    rest['weight'] = merged.astype(weight.dtype)
  return rest


def _mapped(params: types.PyTree, fn: Callable[[str, Any], Any]) -> Any:
  """The tree with fn(leaf name, leaf) in each leaf's place."""
  return {
    name: _mapped(child, fn) if isinstance(child, dict) else fn(name, child)
    for name, child in params.items()
  }
