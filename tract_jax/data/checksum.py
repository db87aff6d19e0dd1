"""Checksums of arrays that do not depend on how the arrays are sharded.

  checksum(x) = sum_i mix(mix(i) ^ bits_i)  modulo 2^32

where i counts the elements in row-major order and mix is a bijection of 32-bit
numbers. One changed element always changes the sum; other damage escapes with
probability 2^-32. Being a sum it can be made in parts, so that it is the same
for an array on one host and for one that is spread over many processes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1 << 16


def leaf_records(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """What to write down about arrays, to recognise them later.

  Args:
    leaves: {name: jax or numpy array, or None}. If any is spread over several
      processes, then all of these must make this call together.

  Returns:
    {name: {"dtype", "shape", "checksum"}}, JSON values only; None for None.
  """
  spread = {name: x for name, x in leaves.items() if _is_spread(x)}
  sums = _device_checksums(spread) if spread else {}
  records: dict[str, Any] = {}
  for name, leaf in leaves.items():
    if leaf is None:
      records[name] = None
      continue
    value = int(sums[name]) if name in sums else host_checksum(leaf)
    records[name] = {
      'dtype': leaf.dtype.name,
      'shape': list(leaf.shape),
      'checksum': f'{value:08x}',
    }
  return records


def host_checksum(array: Any) -> int:
  """The checksum of an array that this process holds as a whole."""
  array = np.ascontiguousarray(array)
  # Elements of 8 bytes count as two words, the lower half first.
  words = array.reshape(-1).view(f'<u{min(array.itemsize, 4)}')
  total = 0
  for start in range(0, len(words), _BLOCK):
    bits = words[start : start + _BLOCK].astype(np.uint32)
    index = np.arange(start, start + len(bits)).astype(np.uint32)
    total += int(np.sum(_mix(_mix(index) ^ bits), dtype=np.uint64))
  return total % (1 << 32)


def device_checksum(array: jax.Array) -> jax.Array:
  """The checksum of a traced array; uint32 scalar."""
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  width = min(array.dtype.itemsize, 4)
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
  bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(bits.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    index += along * np.uint32(stride % (1 << 32))
    stride *= bits.shape[axis]
  return jnp.sum(_mix(_mix(index) ^ bits), dtype=jnp.uint32)


@jax.jit
def _device_checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """All in one program, so that a large state costs one compilation."""
  return {name: device_checksum(array) for name, array in arrays.items()}


def _is_spread(leaf: Any) -> bool:
  """Whether no single process can read the whole array."""
  return isinstance(leaf, jax.Array) and not (
    leaf.is_fully_addressable or leaf.is_fully_replicated
  )


def _mix(x: Any) -> Any:
  """A bijection of uint32 whose every output bit depends on all input bits."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return x ^ (x >> np.uint32(16))
