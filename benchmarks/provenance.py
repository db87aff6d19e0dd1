"""What a row of results says of how it was made: its work, and the commit."""

import functools
import pathlib
import subprocess
from typing import Any

from benchmarks import job as job_lib

# Of a job: what is random, what it is compared with, and what follows from the
# model. The machine's name has the platform.
_UNTOLD = frozenset((
  'seed', 'platform', 'asked_at', 'adapter', 'ours', 'max_checks', 'sweep_rows',
  'example_ids', 'prompts', 'marker', 'lead_ids', 'prefix_ids', 'score_ids',
  'score_values', 'eos_id', 'pad_id', 'vocab_size',
))  # fmt: skip


def work(job: job_lib.Job) -> dict[str, Any]:
  """The numbers of a job that decide what is measured.

  Args:
    job: any.

  Returns:
    Its fields, with the model's name for its folder, and of prompts how many
    there are and their tokens; settings where there are any.
  """
  found = {
    name: value
    for name, value in vars(job).items()
    if name not in _UNTOLD and value != {}
  }
  found['model'] = pathlib.PurePath(job.model).name
  if isinstance(job, job_lib.SamplingJob):
    found['num_prompts'] = len(job.prompts)
    found['prompt_tokens'] = sum(map(len, job.prompts))
  return found


@functools.cache
def commit() -> str:
  """The commit that is measured, with "+" for changes; "" without git."""
  head = _git('rev-parse', '--short=12', 'HEAD')
  # The benchmarks themselves write results and tables.
  changes = _git(*('status', '--porcelain', '--', ':/*.py', ':/requirements'))
  return head + '+' * bool(changes)


def _git(*command: str) -> str:
  folder = pathlib.Path(__file__).resolve().parent
  try:
    done = subprocess.run(
      ['git', *command], cwd=folder, capture_output=True, text=True, check=False
    )
  except OSError:
    return ''
  return done.stdout.strip()
