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
