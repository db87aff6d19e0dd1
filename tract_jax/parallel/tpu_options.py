"""What the TPU compiler is asked for, and why; other compilers get nothing.

Options go with each compiled function, not with the process's environment, so
that a plan that is compiled ahead of time has those of the run.
"""

import jax

from tract_jax.parallel import chips

# Option -> (value, reason), by the compiler's estimates for a training step of
# Mistral-7B on v5e:4x4, 4 rows of 3,072 tokens a chip.
TRAINING: dict[str, tuple[str, str]] = {
  'xla_jf_spmd_threshold_for_windowed_einsum_mib': (
    '1000000',
    'weights are gathered whole, beside other products; as windowed matmuls, a'
    ' loop of small permutes each, full fine-tuning takes a third longer',
  ),
  'xla_tpu_scoped_vmem_limit_kib': (
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
  'xla_tpu_scoped_vmem_limit_kib': (
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
  if chips.of_device(device.device_kind) == chips.CHIPS['v6e']:
    # Added up beside products, gradients make one of these six times as slow.
    table = V6E_TRAINING
  return {name: value for name, (value, _) in table.items()}
