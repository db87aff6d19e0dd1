"""What every process of the other side begins and ends with."""

from typing import Any

import torch
import transformers

from benchmarks import job as job_lib

VERSIONS = {
  'torch': torch.__version__,
  'transformers': transformers.__version__,
}


def prepare(job: job_lib.Job) -> None:
  """The number of threads, and no lines or bars of transformers'."""
  torch.set_num_threads(job.num_threads)
  torch.manual_seed(job.seed)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()


def device(job: job_lib.Job) -> str:
  """Where PyTorch works: on the GPU, if the job is of one, else on the CPU."""
  return 'cuda' if job.platform == 'cuda' else 'cpu'


def wait() -> None:
  """Until the GPU, if one is used, has done what it was asked."""
  if torch.cuda.is_initialized():
    torch.cuda.synchronize()


def measured(
  secs: float,
  num_tokens: int,
  warm_up_secs: float,
  versions: dict[str, str] | None = None,
  **more: Any,
) -> job_lib.Measurement:
  """With these versions, too, and with the GPU's memory if one was used."""
  if torch.cuda.is_initialized():
    more['device'] = torch.cuda.get_device_name()
    more['device_memory_bytes'] = torch.cuda.max_memory_allocated()
  versions = VERSIONS | (versions or {})
  return job_lib.measured(secs, num_tokens, warm_up_secs, versions, **more)
