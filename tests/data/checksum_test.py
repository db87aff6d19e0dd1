import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax.data import checksum

_RNG = np.random.default_rng(0)
_ARRAYS = [
  _RNG.standard_normal((3, 70_000)).astype(np.float32),
  _RNG.standard_normal((2, 3, 5)).astype(jnp.bfloat16),
  np.int32(7),
  np.array([[True, False, True]]),
  np.zeros((0, 3), np.float32),
  _RNG.integers(0, 255, (9,), dtype=np.uint8),
]


@pytest.mark.parametrize('array', _ARRAYS, ids=lambda a: f'{a.dtype}{a.shape}')
def test_host_and_device_agree(array):
  on_device = jax.jit(checksum.device_checksum)(jnp.asarray(array))
  assert checksum.host_checksum(array) == int(on_device)


def test_a_hand_computed_value():
  # mix(0) is 0, so the element 0 of value 1 gives mix(1), worked out here in
  # Python's unbounded integers.
  x = 1
  x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
  x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
  x ^= x >> 16
  assert checksum.host_checksum(np.array([1], np.int32)) == x


@pytest.mark.parametrize('bit', range(16))
def test_every_flipped_bit_changes_it(bit):
  array = _ARRAYS[1].view(np.uint16)
  flipped = array.copy()
  flipped[1, 2, 3] ^= np.uint16(1 << bit)
  assert checksum.host_checksum(array) != checksum.host_checksum(flipped)


def test_flipped_signs_and_moved_elements_change_it():
  array = _ARRAYS[0]
  variants = [array, -array, np.abs(array), array[::-1], array[:, ::-1]]
  assert len({checksum.host_checksum(v) for v in variants}) == len(variants)


def test_leaf_records_hold_dtype_and_shape_and_none():
  records = checksum.leaf_records({'a': np.zeros((2, 3), np.int32), 'b': None})
  assert records['a'].items() >= {'dtype': 'int32', 'shape': [2, 3]}.items()
  assert records['b'] is None
