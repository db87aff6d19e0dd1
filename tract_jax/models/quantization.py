"""A frozen base in 8 or 4 bits: its leaves, and products with them.

    W[i, o]  ~  table[code[i, o]] * scale[i // block, o]

Only adapters are trained on such a base (Dettmers et al., "QLoRA: Efficient
Finetuning of Quantized LLMs", arXiv:2305.14314). Quantised are the weights of
the linear layers of the blocks, `layers/.../<name of lora.TARGETS>/weight`;
embeddings, lm_head, norms, biases and adapters stay as they are. Scales are
float32.

| kind | code | block along the input axis | bytes per weight |
|---|---|---|---|
| int8 | -128..127, table[c] = c (symmetric) | all of it | 1 + 4 / in |
| nf4 | 4 bits, table of Appendix E | 64 | .5 + 4 / 64 = .5625 |

Where 64 does not divide the input axis, nf4 takes the largest block below that
does, and refuses one under 16. XLA's CPU backend unpacks all 4-bit codes, a
byte each, for as long as a program runs: there nf4 saves nothing over int8, and
SmolLM2-135M decodes 8 rows 3.7 times slower with it.

A quantised leaf is a `qwix.QArray`, a pytree of `qvalue` (the codes, shaped as
the weight) and `scale` [..., in / block, out]. Both keep the leading layers
axis, so `jax.lax.scan` slices a leaf as it does a weight. On a mesh, scales are
split like their rows where the blocks divide evenly. Elsewhere each device has
all scales of its columns, and the compiler may gather codes to use them.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from tract_jax import types
from tract_jax.models import lora

KINDS = ('int8', 'nf4')

_NF4_BLOCK = 64
# With smaller blocks the scales would take a quarter of a byte and more.
_MIN_NF4_BLOCK = 16
# The 16 values of arXiv:2305.14314, Appendix E.
_NF4 = np.array(
  [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
  ],
  np.float32,
)

_Path = tuple[str, ...]


def is_quantized(leaf: Any) -> bool:
  """Whether a leaf of params is quantised."""
  return isinstance(leaf, qwix.QArray)


def quantize_leaf(
  path: _Path, array: types.Array, kind: str, like: Any = None
) -> Any:
  """Quantises one leaf as soon as it is read, and frees what was read.

  So the unquantised model never exists whole: on top of the quantised leaves
  there is one leaf, all layers of one weight, at a time.

  Args:
    path: the leaf's keys, such as ('layers', 'mlp', 'up_proj', 'weight').
    array: float [..., in, out] of any sharding. Deleted if it is quantised.
    kind: of `KINDS`.
    like: this leaf of the `abstract` tree with shardings, which the result
      gets; None leaves them to the compiler.

  Returns:
    The quantised leaf, or `array` itself where the path's leaf stays as it is.

  Raises:
    types.InputError: an unknown kind, or an input axis without a block.
  """
  _check_kind(kind)
  if not _is_target(path):
    return array
  _check_block(path, array.shape, kind)
  shardings = jax.tree.map(lambda x: x.sharding, like)
  quantized = _compiled(kind, shardings)(array)
  # No output is of the input's size: a donated array could not be used again,
  # and would not be freed. Waiting keeps the next leaf from being read before.
  jax.block_until_ready(quantized)
  array.delete()
  return quantized


def quantize(params: types.PyTree, kind: str) -> types.PyTree:
  """Quantises the linear layers of a whole model.

  A pure function: under jit the compiler may drop each weight after its use.

  Args:
    params: nested dict of arrays, as `transformer` gives them.
    kind: of `KINDS`.

  Returns:
    A nested dict with quantised leaves.

  Raises:
    types.InputError: an unknown kind, or an input axis without a block.
  """
  return _targets_mapped(lambda array: _quantized(array, kind), params, kind)


def abstract(abstract_params: types.PyTree, kind: str) -> types.PyTree:
  """What `quantize` gives, as shapes and dtypes; nothing is allocated.

  Args:
    abstract_params: nested dict of jax.ShapeDtypeStruct.
    kind: of `KINDS`.

  Returns:
    The same with quantised leaves, which have no shardings yet; other leaves
    are passed through, shardings and all.

  Raises:
    types.InputError: an unknown kind, or an input axis without a block.
  """

  def shapes(array):
    bare = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return jax.eval_shape(functools.partial(_quantized, kind=kind), bare)

  return _targets_mapped(shapes, abstract_params, kind)


def _targets_mapped(
  fn: Callable[[Any], Any], params: types.PyTree, kind: str
) -> types.PyTree:
  """The tree with fn(leaf) in place of each leaf that is to be quantised."""
  _check_kind(kind)

  def leaf(path, array):
    if not _is_target(path):
      return array
    _check_block(path, array.shape, kind)
    return fn(array)

  return _mapped(leaf, params)


def logical_axes(
  logical_axes_tree: types.PyTree, abstract_quantized: types.PyTree
) -> types.PyTree:
  """Names the dimensions of every array of a quantised model.

  Codes have the weight's names. So do scales, but for the input axis: blocks
  along "embed" are "embed_blocks", and a single one has no name.

  Args:
    logical_axes_tree: of the unquantised model: a tuple for each weight.
    abstract_quantized: of `abstract`.

  Returns:
    A tree like `abstract_quantized`, with a tuple in place of each array.
  """

  def leaf(axes, array):
    if not is_quantized(array):
      return axes
    *leading, size, width = axes
    blocks = f'{size}_blocks' if array.scale.shape[-2] > 1 else None
    return dataclasses.replace(
      array, qvalue=tuple(axes), scale=(*leading, blocks, width)
    )

  return jax.tree.map(
    leaf,
    logical_axes_tree,
    abstract_quantized,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def dequantize(params: types.PyTree) -> types.PyTree:
  """The float32 weights that quantised leaves stand for.

  Args:
    params: nested dict of arrays and quantised leaves.

  Returns:
    A nested dict of arrays; those that were not quantised are passed through.
  """
  return _mapped(
    lambda _, leaf: _dense(leaf, jnp.float32) if is_quantized(leaf) else leaf,
    params,
  )


def num_bytes(params: types.PyTree) -> int:
  """Bytes of all arrays of a tree, 4-bit codes packed two to a byte.

  Args:
    params: tree of arrays or jax.ShapeDtypeStruct.

  Returns:
    Their bytes on devices that pack; `nbytes` counts a byte for each code.
  """
  return sum(
    leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) // 8
    for leaf in jax.tree.leaves(params)
  )


def matmul(x: types.Array, weight: Any, num_dims: int = 1) -> types.Array:
  """X W, for a weight that may be quantised, in the dtype of x.

  Args:
    x: [..., *in]; [rows, in] for a quantised leaf.
    weight: [*in, *out], an array of any float dtype, or a quantised leaf
      [in, out].
    num_dims: dimensions of `in`.

  Returns:
    [..., *out] in the dtype of x. The gradient goes to x alone where the
    weight is quantised.
  """
  if not is_quantized(weight):
    return jnp.tensordot(x, weight.astype(x.dtype), num_dims)
  return _quantized_matmul(x, weight)


# Dequantised, then multiplied: a product of floats and codes has to turn codes
# to floats anyway, and XLA does so inside the matmul. By the compiler's cycles
# for a TPU v5e and a [4096, 4096] layer, against a bfloat16 weight: .94 (int8)
# and .91 (nf4) with 8,192 rows, .66 and 1.8 with 64. Scaling the product of
# int8 instead of the weight takes 3 to 10 % longer. qwix.dot_general does for
# int8 what stands here, but in the dtype of the scales: with float32 ones, a
# float32 matmul. For nf4 it looks codes up in a flattened array, which takes 3
# (8,192 rows) and 25 times (64 rows) as long as a lookup in the weight's own
# shape, and on a mesh gathers the whole weight on each device.
#
# Recomputed in the backward pass, because a dequantised weight kept for it
# would be kept for every layer. Inside a scan nothing can be merged with the
# forward pass, so the barriers against it are left out.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _quantized_matmul(x: types.Array, weight: qwix.QArray) -> types.Array:
  return x @ _dense(weight, x.dtype)


def _dense(weight: qwix.QArray, dtype: Any) -> types.Array:
  """The weight [..., in, out], computed in float32 and rounded once."""
  codes = weight.qvalue
  if weight.qtype == 'nf4':
    values = jnp.asarray(_NF4)[codes.astype(jnp.int32)]
  else:
    values = codes.astype(jnp.float32)
  scale = weight.scale[..., :, None, :]
  return (_in_blocks(values, scale) * scale).reshape(codes.shape).astype(dtype)


def _in_blocks(values: types.Array, scale: types.Array) -> types.Array:
  """[..., in, out] -> [..., blocks, block, out], as scale is [.., 1, out]."""
  *leading, size, width = values.shape
  blocks = scale.shape[-3]
  return values.reshape(*leading, blocks, size // blocks, width)


@functools.cache
def _compiled(kind: str, shardings: Any) -> Callable[..., qwix.QArray]:
  return jax.jit(
    functools.partial(_quantized, kind=kind), out_shardings=shardings
  )


def _quantized(array: types.Array, kind: str) -> qwix.QArray:
  """[..., in, out] -> the quantised leaf; scales computed in float32."""
  wide = array.astype(jnp.float32)
  if kind == 'nf4':
    return _quantized_nf4(wide)
  every_axis_but_in = [*range(array.ndim - 2), array.ndim - 1]
  return qwix.quantize(wide, kind, channelwise_axes=every_axis_but_in)


def _quantized_nf4(array: types.Array) -> qwix.QArray:
  """The nearest of 16 values in each block, scaled to its largest.

  Gives the codes and scales of qwix.quantize, which flattens the array to find
  them: on a mesh, each device would gather the whole weight.
  """
  block = _nf4_block(array.shape[-2])
  tiles = array.reshape(*array.shape[:-2], -1, block, array.shape[-1])
  largest = jnp.max(jnp.abs(tiles), axis=-2, keepdims=True)
  # A block of zeros has code 7, the value 0, whatever its scale. The scale of a
  # block with NaN is NaN, and so is all that is decoded of it.
  scale = jnp.where(largest == 0, 1, largest)
  ratio = tiles / scale
  halfway = (_NF4[1:] + _NF4[:-1]) / 2
  codes = sum((ratio > value).astype(jnp.uint8) for value in halfway)
  return qwix.QArray(
    codes.astype(jnp.uint4).reshape(array.shape), scale[..., 0, :], qtype='nf4'
  )


def _nf4_block(size: int) -> int:
  """The largest divisor of an input axis that is no larger than 64."""
  return max(b for b in range(1, _NF4_BLOCK + 1) if size % b == 0)


def _is_target(path: _Path) -> bool:
  *owners, name = path
  return name == 'weight' and path[0] == 'layers' and owners[-1] in lora.TARGETS


def _check_kind(kind: str) -> None:
  if kind not in KINDS:
    raise types.InputError(
      f'base_quantization={kind!r}: unknown; allowed: ' + ', '.join(KINDS)
    )


def _check_block(path: _Path, shape: tuple[int, ...], kind: str) -> None:
  if kind == 'nf4' and _nf4_block(shape[-2]) < _MIN_NF4_BLOCK:
    raise types.InputError(
      f'{"/".join(path)}: no block of {_MIN_NF4_BLOCK} to {_NF4_BLOCK} divides'
      f' its input axis of {shape[-2]}, as base_quantization="nf4" needs; use'
      ' "int8"'
    )


def _mapped(
  leaf_fn: Callable[[_Path, Any], Any], tree: types.PyTree, path: _Path = ()
) -> Any:
  """The tree with leaf_fn(path, leaf) in each leaf's place; None stays."""
  if isinstance(tree, dict):
    return {
      name: _mapped(leaf_fn, child, (*path, name))
      for name, child in tree.items()
    }
  return None if tree is None else leaf_fn(path, tree)
