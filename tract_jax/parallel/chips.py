"""Memory of devices, TPU chips as numbers, and the names of their topologies.

Peaks are the vendor's, for bfloat16. The clock turns the compiler's estimated
cycles into seconds. Usable memory is less than the nominal: the rest belongs to
the runtime, and a program that needs more is refused by the compiler.
"""

import dataclasses
import math
import re

import jax

_GIB = 2**30
_NAME = re.compile(r'(\w+):(\d+(?:x\d+){1,2})')


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip.

  Attributes:
    peak_flops: bfloat16 operations per second.
    hbm_bytes_per_sec: between memory and the chip.
    ici_bytes_per_sec: from and to the neighbours on one axis of the torus,
      both directions used, as a ring of all chips uses them.
    clock_hz: cycles per second.
    memory_bytes: usable by a program.
  """

  peak_flops: float
  hbm_bytes_per_sec: float
  ici_bytes_per_sec: float
  clock_hz: float
  memory_bytes: int


CHIPS = {
  'v5e': Chip(197e12, 819e9, 90e9, 1.5e9, int(15.75 * _GIB)),
  'v5p': Chip(459e12, 2765e9, 180e9, 1.75e9, int(95.74 * _GIB)),
  'v6e': Chip(918e12, 1640e9, 180e9, 1.75e9, int(31.25 * _GIB)),
}
# What JAX calls the devices of a kind.
_DEVICE_KINDS = {
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
}
# How a TPU VM of so many chips calls itself; v5p counts two cores a chip.
_ACCELERATOR = {'v5e': ('v5litepod', 1), 'v5p': ('v5p', 2), 'v6e': ('v6e', 1)}


def name_of_device(device_kind: str) -> str | None:
  """The chip that a device is, by what JAX calls it.

  Args:
    device_kind: of a jax.Device, such as "TPU v5 lite".

  Returns:
    A key of `CHIPS`; None for one without numbers here, as a CPU is.
  """
  return _DEVICE_KINDS.get(device_kind)


def of_device(device_kind: str) -> Chip | None:
  """The numbers of `name_of_device`."""
  name = name_of_device(device_kind)
  return CHIPS[name] if name else None


def memory_bytes(device: jax.Device) -> int | None:
  """What programs may use of a device's memory.

  Args:
    device: of this machine, or one to compile for.

  Returns:
    Bytes; None where the memory is not the device's own, as a CPU's.
  """
  chip = of_device(device.device_kind)
  if chip:
    return chip.memory_bytes
  stats = device.memory_stats() or {}
  return stats.get('bytes_limit')


def mfu(flops: float, secs: float, chip: Chip) -> float:
  """Needed operations over those that the peak would do meanwhile.

  Args:
    flops: that one chip's share of the work needs; models/flops.
    secs: that it took.
    chip: its numbers.

  Returns:
    Model FLOPs utilisation: 1 for a perfect program on a perfect chip.
  """
  return flops / secs / chip.peak_flops


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice, by name.

  Attributes:
    name: as libtpu knows it, such as "v5e:4x4".
    chip: what it is made of.
    num_chips: how many.
    accelerator_type: what its machines call themselves, "v5litepod-16".
  """

  name: str
  chip: Chip
  num_chips: int
  accelerator_type: str


def is_topology(name: str) -> bool:
  """Whether a topology has such a name, of a chip that has numbers here."""
  match = _NAME.fullmatch(name)
  return match is not None and match[1] in CHIPS


def topology(name: str) -> Topology:
  """Reads a topology's name.

  Args:
    name: kind of chip and chips along each axis of the torus: v5e:4x4,
      v5p:2x2x4.

  Returns:
    The topology; whether libtpu knows such a slice is not checked.

  Raises:
    ValueError: not `is_topology`.
  """
  match = _NAME.fullmatch(name)
  if not match or not is_topology(name):
    raise ValueError(f'{name!r} is no topology')
  num_chips = math.prod(int(size) for size in match[2].split('x'))
  kind, units = _ACCELERATOR[match[1]]
  return Topology(
    name, CHIPS[match[1]], num_chips, f'{kind}-{num_chips * units}'
  )
