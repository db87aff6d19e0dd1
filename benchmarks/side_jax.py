"""What every process of ours ends with."""

from typing import Any

import jax

from benchmarks import job as job_lib


def measured(
  secs: float, num_tokens: int, warm_up_secs: float, **more: Any
) -> job_lib.Measurement:
  """With the version, and with the accelerator's memory if one was used."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    more['device'] = device.device_kind
    more['device_memory_bytes'] = device.memory_stats()['peak_bytes_in_use']
  versions = {'jax': jax.__version__}
  return job_lib.measured(secs, num_tokens, warm_up_secs, versions, **more)
