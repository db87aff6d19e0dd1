"""What the TPU compiler is asked for, and why; other compilers get nothing.

Options go with each compiled function, not with the process's environment, so
that a plan that is compiled ahead of time has those of the run.
"""

import jax

from tract_jax.parallel import chips

# Option -> (value, reason).
Table = dict[str, tuple[str, str]]

# KiB of the chip's own memory that a fusion may fill; 16384 where not asked.
_VMEM = 'xla_tpu_scoped_vmem_limit_kib'

# By the compiler's estimates for a training step of Mistral-7B on v5e:4x4, 4
# rows of 3,072 tokens a chip.
TRAINING: Table = {
  'xla_jf_spmd_threshold_for_windowed_einsum_mib': (
    '1000000',
    'weights are gathered whole, beside other products; as windowed matmuls, a'
    ' loop of small permutes each, full fine-tuning takes a third longer',
  ),
  _VMEM: (
    '32768',
    'larger fusions stay in the memory on the chip: a step takes a ninth to an'
    ' eighth less, and compiles about twice as long; 65536 gains no more, and'
    ' compiles four times as long',
  ),
}
FULL_TRAINING = TRAINING | {
  'xla_enable_async_all_reduce': (
    'true',
    'gradients are added up over the chips while others are computed: two'
    ' thirds of their bytes cost no time then; needs the next two',
  ),
  'xla_tpu_enable_async_collective_fusion_fuse_all_reduce': (
    'true',
    'beside products, as weights are gathered',
  ),
  'xla_jf_crs_combiner_threshold_count': (
    '1',
    'each by itself: several as one have nothing to go on beside',
  ),
}
# For v6e, whatever is trained, by the same step on v6e:4x4.
V6E_TRAINING = TRAINING | {
  _VMEM: (
    '65536',
    'the chip has more memory of its own: with 32768 products take 1.4 times as'
    ' long',
  ),
  'xla_enable_async_all_gather': (
    'true',
    'weights are gathered beside products, which v5e and v5p do by themselves:'
    ' a step with adapters takes an eighth less; needs the next one',
  ),
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': (
    'true',
    'as above',
  ),
}
# By the estimates for Mistral-7B, weights and 64 slots on four chips.
DECODING: dict[str, Table] = {
  'v5e': {
    _VMEM: (
      '65536',
      'weights and cache are read in larger pieces: a step takes 7 % less',
    )
  },
  'v5p': {_VMEM: ('32768', 'the same: 6 % less; with 65536 it is lost')},
  'v6e': {_VMEM: ('65536', 'the same: 8 % less')},
}
PREFILL: dict[str, Table] = {
  'v5p': {_VMEM: ('32768', 'prompts take 3 % less')},
  'v6e': {_VMEM: ('32768', 'prompts take 22 % less; with 65536, 13 %')},
}


def for_training(
  mesh: jax.sharding.Mesh, *, train_base: bool
) -> dict[str, str] | None:
  """The options of a training step.

  Args:
    mesh: where it runs, or will.
    train_base: whether weights are trained, not only adapters.

  Returns:
    {option: value} for `jax.jit(compiler_options=...)`; None where the devices
    are no TPUs.
  """
  device = mesh.devices.flat[0]
  if device.platform != 'tpu':
    return None
  table = FULL_TRAINING if train_base else TRAINING
  if chips.name_of_device(device.device_kind) == 'v6e':
    # Added up beside products, gradients make one of these six times as slow.
    table = V6E_TRAINING
  return _values(table)


def for_chip(
  mesh: jax.sharding.Mesh, tables: dict[str, Table]
) -> dict[str, str] | None:
  """The options of a function that samples.

  Args:
    mesh: where it runs, or will.
    tables: `DECODING` or `PREFILL`.

  Returns:
    As `for_training`; None for a chip that has no table.
  """
  name = chips.name_of_device(mesh.devices.flat[0].device_kind)
  return _values(tables[name]) if name in tables else None


def _values(table: Table) -> dict[str, str]:
  return {name: value for name, (value, _) in table.items()}
