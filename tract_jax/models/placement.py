"""What running on several devices, or on other ones, asks of a model.

The model knows no mesh: it calls these functions where arrays must move. They
change no number but for rounding. Axes as in types.py.
"""

from collections.abc import Callable
import dataclasses
import math

from tract_jax import types
from tract_jax.models import attention


@dataclasses.dataclass(frozen=True)
class Placement:
  """The defaults are those of one device.

  Attributes:
    row_attention: attention of whole rows; another with the arguments and
      results of `attention.causal_attention`, such as a kernel.
    split_rows: [B, ...] -> [B, ...], each device's own rows on it. Without it
      the compiler may keep all rows on every device, and split widths.
    gather: (weights, their logical axes) -> weights, for trees: whole on every
      device that multiplies with them. None where they are.
    fuse_adapters: whether many rows meet weight and adapter in one product
      (lora.adapted_matmul), where the weight is not quantised.
    keep_heads: whether products of many rows keep all dimensions, heads too,
      where the weight is not quantised. A compiler that chooses how arrays lie
      then has nothing to copy for a kernel that wants heads before tokens; from
      [B, L, N H] it has.
    cache_block: entries of the cache that a new token's attention reads at a
      time, a power of two. Fewer leave out more of what is not seen. 128
      entries of 16 rows fit a CPU core's own cache.
    cache_multiple: of which the width of a cached head is one.
  """

  row_attention: Callable[..., types.Array] = attention.causal_attention
  split_rows: Callable[[types.Array], types.Array] = lambda x: x
  gather: Callable[[types.PyTree, types.PyTree], types.PyTree] | None = None
  fuse_adapters: bool = False
  keep_heads: bool = False
  cache_block: int = 128
  cache_multiple: int = 1

  def gathered(
    self, weights: types.PyTree, logical_axes: types.PyTree, x: types.Array
  ) -> types.PyTree:
    """Weights for a product with x [..., D].

    With fewer tokens than the model is wide, x is the smaller thing to move,
    and weights stay where they lie.
    """
    *tokens, width = x.shape
    if self.gather is None or math.prod(tokens) < width:
      return weights
    return self.gather(weights, logical_axes)


ONE_DEVICE = Placement()
