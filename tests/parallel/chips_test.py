"""Names of topologies."""

import pytest

from tract_jax.parallel import chips


def test_topology_is_read_from_its_name():
  found = chips.topology('v5p:2x2x4')
  assert found.chip is chips.CHIPS['v5p']
  assert (found.num_chips, found.accelerator_type) == (16, 'v5p-32')
  assert chips.topology('v5e:4x4').accelerator_type == 'v5litepod-16'
  assert chips.topology('v6e:8x8').num_chips == 64


@pytest.mark.parametrize('name', ['', 'v5e', 'v5e:16', 'v9:2x2', 'v5e:2x2 '])
def test_other_names_are_none(name):
  assert not chips.is_topology(name)
  with pytest.raises(ValueError, match='no topology'):
    chips.topology(name)


@pytest.mark.parametrize(
  ('device_kind', 'name'),
  [('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'), ('TPU v6 lite', 'v6e')],
)
def test_chips_are_known_by_their_devices(device_kind, name):
  assert chips.of_device(device_kind) is chips.CHIPS[name]


def test_other_devices_are_unknown():
  assert chips.of_device('cpu') is None
  assert chips.of_device('TPU v4') is None


def test_utilisation_by_hand():
  # Half of the peak: 197e12 a second.
  assert chips.mfu(197e12, 2.0, chips.CHIPS['v5e']) == 0.5
