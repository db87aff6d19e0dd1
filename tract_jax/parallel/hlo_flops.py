"""Operations of the matrix products in a compiled program.

A multiplication and an addition are two. Only products count: what else is
computed beside them hides behind memory. On TPUs a product is a convolution,
with what is batched or summed over several axes as its spatial dimensions.
"""

import functools
import math
import re

import numpy as np

from tract_jax.parallel import hlo

_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')


def matmul_flops(
  module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
  """Operations of one run of an instruction, what is inside it included.

  Args:
    module: the program.
    computation: where the instruction stands.
    instruction: any; one without a product has none.

  Returns:
    2 for each multiplication with its addition.
  """
  total = 0.0
  for place, inner in hlo.within(module, computation, instruction):
    if inner.opcode == 'convolution':
      total += _convolution(place, inner)
    elif inner.opcode == 'dot':
      total += _dot(place, inner)
  return total


def _dot(computation: hlo.Computation, dot: hlo.Instruction) -> float:
  left = computation[dot.operands[0]].shapes[0].dims
  axes = dot.attribute(r'lhs_contracting_dims=\{([\d,]*)\}')
  summed = math.prod(left[int(axis)] for axis in axes.split(',') if axis)
  return 2.0 * math.prod(dot.shapes[0].dims) * summed


def _convolution(computation: hlo.Computation, conv: hlo.Instruction) -> float:
  """As a sum over output places and over the window's places within the input.

  A batched product is a convolution over the batch whose window, as large as
  the batch, meets the input in one place only.
  """
  labels = _LABELS.search(conv.attributes)
  if labels is None:
    return 0.0
  dims = [computation[name].shapes[0].dims for name in conv.operands[:2]]
  sizes = [
    dict(zip(label, shape, strict=True))
    for label, shape in zip(
      labels.groups(), (*dims, conv.shapes[0].dims), strict=True
    )
  ]
  left, right, out = sizes
  groups = int(conv.attribute(r'feature_group_count=(\d+)') or 1)
  batch_groups = int(conv.attribute(r'batch_group_count=(\d+)') or 1)
  total = 2.0 * (left['b'] / batch_groups) * (left['f'] / groups) * out['f']
  windows = {
    key: (conv.attribute(rf'window=\{{[^}}]*\b{key}=([\w\-]+)') or '').split(
      'x'
    )
    for key in ('stride', 'pad', 'lhs_dilate', 'rhs_dilate')
  }
  for place, axis in enumerate(sorted(a for a in out if a.isdigit())):

    def number(key, axis_number=place):
      given = windows[key]
      return given[axis_number] if axis_number < len(given) else ''

    total *= _met(
      left[axis],
      right[axis],
      out[axis],
      int(number('stride') or 1),
      int((number('pad') or '0_0').split('_')[0]),
      int(number('lhs_dilate') or 1),
      int(number('rhs_dilate') or 1),
    )
  return total


@functools.lru_cache(maxsize=4096)
def _met(
  size: int,
  window: int,
  out: int,
  stride: int,
  pad: int,
  dilation: int,
  window_dilation: int,
) -> int:
  """Pairs of an output and a window place that meet an entry of the input."""
  places = (
    np.arange(out)[:, None] * stride
    + np.arange(window)[None] * window_dilation
    - pad
  )
  met = (
    (places >= 0) & (places <= (size - 1) * dilation) & (places % dilation == 0)
  )
  return int(met.sum())
