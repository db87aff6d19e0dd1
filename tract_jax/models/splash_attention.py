"""Attention of whole rows by the splash kernel of JAX, for TPUs.

Computes what `attention.causal_attention` does. Scores stay in the chip's
vector memory, forward and backward, and blocks of keys that causality or the
window hide from a whole block of queries are never read. Axes as in types.py.
"""

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp

from tract_jax import types
from tract_jax.models import attention

# Queries, and keys, handled together: at most so many. Their scores take a
# megabyte of the 16 that a kernel may use on a v5e.
MAX_BLOCK = 512

# A block is a multiple of it: the width of a TPU's vector registers.
_LANES = 128


def causal_attention(
  queries: types.Array,
  keys: types.Array,
  values: types.Array,
  segment_ids: types.Array,
  window: int | None,
  *,
  interpret: bool = False,
) -> types.Array:
  """Attention of whole rows that lie on one device.

  Rows are padded to whole blocks. Query head n reads key/value head n // G,
  which is never repeated.

  Args:
    queries: [B, L, N, H].
    keys, values: [B, L, K, H].
    segment_ids: [B, L] int32; padding (segment 0) attends within itself.
    window: key j is seen by query i if 0 <= i - j < window; None: if j <= i.
    interpret: whether to run the kernel as plain operations, slowly, on a
      device that is no TPU.

  Returns:
    [B, L, N, H]. Rematerialisation knows it as attention.OUTPUT_NAME; so are
    the log-sum-exps [B, N, L] that the backward pass needs with it.
  """
  _, length, num_heads, head_dim = queries.shape
  block = block_length(length)

  def padded(x):
    widths = [(0, 0), (0, -length % block)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths)

  # The kernel's scores are plain products.
  scaled = queries * head_dim**-0.5
  heads = [jnp.swapaxes(padded(x), 1, 2) for x in (scaled, keys, values)]
  ids = padded(segment_ids)
  kernel = _make_kernel(num_heads, ids.shape[1], block, window, interpret)
  output = jax.vmap(kernel)(*heads, splash.SegmentIds(ids, ids))
  return jnp.swapaxes(output, 1, 2)[:, :length]


def block_length(length: int) -> int:
  """Tokens of a block: as few blocks as can be, and these as even.

  Args:
    length: L.

  Returns:
    A multiple of 128, at most `MAX_BLOCK`.

  Example:
    >>> block_length(3072), block_length(640), block_length(20)
    (512, 384, 128)
  """
  num_blocks = -(-length // MAX_BLOCK)
  return -(-length // (num_blocks * _LANES)) * _LANES


def _make_kernel(num_heads, length, block, window, interpret):
  """(queries [N, L, H], keys, values [K, L, H], segments) -> [N, L, H]."""
  shape = (length, length)
  if window is None or window >= length:
    mask = splash.CausalMask(shape)
  else:
    mask = splash.LocalMask(shape, (window - 1, 0), offset=0)
  return splash.make_splash_mha_single_device(
    splash.MultiHeadMask([mask] * num_heads),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    residual_checkpoint_name=attention.OUTPUT_NAME,
    interpret=interpret,
  )
