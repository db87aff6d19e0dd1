"""What the processes of a benchmark tell each other: one JSON file each way.

    pairs --Job--> sampling_torch or sampling_jax, ... --Measurement--> pairs

Each side runs in a process of its own, so that its peak memory is its own and
neither library's threads disturb the other's. For the same reason nothing of
tract_jax is imported here.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import math
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import time
from typing import Any

# Names of JAX's; PyTorch has no part in what runs on a TPU.
PLATFORMS = ('cpu', 'cuda', 'tpu')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a process has to do.

  Attributes:
    kind: a key of the module's KINDS, such as "sample" or "train".
    model: a Hugging Face folder.
    seed: of what is random, the same on both sides.
    num_threads: of the process.
    platform: of PLATFORMS, where both sides work.
    settings: further keys of our configuration, dotted.
    asked_at: when the process was started, in seconds of the clock.
  """

  kind: str
  model: str
  seed: int = 0
  num_threads: int = 2
  platform: str = 'cpu'
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  asked_at: float = 0.0

  @property
  def has_pytorch(self) -> bool:
    """Whether there is another side."""
    return self.platform != 'tpu'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingJob(Job):
  """CoTs or score distributions of prompts.

  Attributes:
    example_ids: of the prompts.
    prompts: token ids, the same on both sides.
    marker, lead_ids, prefix_ids, score_ids, eos_id, pad_id: as in
      sampling.cot_end.CotFormat.
    temperature, top_p, repetition_penalty, max_new_tokens: of sampling.
    num_cots: CoTs per prompt.
    generate_rows, score_rows: PyTorch's batch sizes, in CoTs.
    sweep_rows: batch sizes that "sweep" tries.
    ours: Measurement file that the checks compare with.
    max_checks: CoTs of it whose distribution is checked.
  """

  example_ids: list[str]
  prompts: list[list[int]]
  marker: str
  lead_ids: list[int]
  prefix_ids: list[int]
  score_ids: list[int]
  eos_id: int
  pad_id: int
  temperature: float = 1.0
  top_p: float = 0.9
  repetition_penalty: float = 1.03
  max_new_tokens: int = 128
  num_cots: int = 1
  generate_rows: int = 8
  score_rows: int = 4
  sweep_rows: list[int] = dataclasses.field(default_factory=list)
  ours: str = ''
  max_checks: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
  """Updates of CoT-RAFT on rows without padding.

  Attributes:
    num_rows, length: B and L of each update.
    num_targets: the last so many places of a row, which are learnt.
    lora_rank: of adapters on all linear layers; 0: all weights are trained.
    num_steps: updates that are timed, after the first one.
    vocab_size: V.
    score_ids, score_values: [Y].
    lr: of the first update, from which a cosine goes to 0.
    adapter: PEFT folder of the adapters that both sides begin with: written by
      kind "start"; "": each side draws its own.
  """

  num_rows: int
  length: int
  num_targets: int
  lora_rank: int
  num_steps: int
  vocab_size: int
  score_ids: list[int]
  score_values: list[float]
  lr: float = 1e-4
  adapter: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataJob(Job):
  """Rows of the synthetic world, read, encoded and planned.

  Attributes:
    num_rows: how many.
  """

  num_rows: int


@dataclasses.dataclass(frozen=True)
class Cot:
  """A sampled CoT.

  Attributes:
    prompt: its index in Job.prompts.
    tokens: all that stands between prompt and score.
    num_sampled_tokens: how many of them the model wrote.
    finish_reason: as in types.CotSample.
    score_probs: [Y]; None where a number is not finite.
  """

  prompt: int
  tokens: list[int]
  num_sampled_tokens: int
  finish_reason: str
  score_probs: list[float | None]


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What a process found.

  Attributes:
    secs: of the timed work.
    num_tokens: that the model wrote in this time.
    warm_up_secs: before it: compilation, and first calls.
    peak_memory_bytes: resident, of the whole process from its start; on an
      accelerator the most of its memory that was in use.
    versions: of the libraries; and Python's, and the machine.
    cots: the samples.
    details: further numbers.
    lines: for the reader.
    other_cpus: CPUs that were busy with other processes, on average over the
      process's life.
  """

  secs: float
  num_tokens: int
  warm_up_secs: float
  peak_memory_bytes: int
  versions: dict[str, str]
  cots: list[Cot] = dataclasses.field(default_factory=list)
  details: dict[str, float] = dataclasses.field(default_factory=dict)
  lines: list[str] = dataclasses.field(default_factory=list)
  other_cpus: float = 0.0

  @property
  def rows_per_sec(self) -> float:
    return len(self.cots) / self.secs

  @property
  def tokens_per_sec(self) -> float:
    return self.num_tokens / self.secs


def worst(differences: Iterable[float]) -> float:
  """The largest of some differences.

  Args:
    differences: at least one.

  Returns:
    It, or 1, as wrong as can be, where one is not finite.
  """
  found = list(differences)
  return max(found) if all(map(math.isfinite, found)) else 1.0


def start(module: str, job: Job, folder: pathlib.Path) -> Measurement:
  """Runs a job in a new process and waits for it.

  Args:
    module: of this package, such as "sampling_torch"; those that end in "_jax"
      run as if PyTorch were not installed.
    job: what to do.
    folder: for the two files, which stay there.

  Returns:
    What the process found.

  Raises:
    subprocess.CalledProcessError: it failed; its error is on the terminal.
  """
  number = len(list(folder.glob('*.job.json')))
  asked = folder / f'{number:02d}_{module}_{job.kind}.job.json'
  job = dataclasses.replace(job, asked_at=time.time())
  asked.write_text(json.dumps(dataclasses.asdict(job)), encoding='utf-8')
  answer = answer_path(asked)
  threads = str(job.num_threads)
  env = {
    # The thread pools of XLA and of PyTorch.
    'NPROC': threads,
    'OMP_NUM_THREADS': threads,
    'JAX_PLATFORMS': job.platform,
    # What one thread has freed is there for all others.
    'MALLOC_ARENA_MAX': '1',
  }
  if job.platform != 'cpu':
    # As PyTorch multiplies; accelerators would round float32 to fewer digits.
    env['JAX_DEFAULT_MATMUL_PRECISION'] = 'highest'
  command = [f'benchmarks.{module}', str(asked)]
  if module.endswith('_jax'):
    command = ['benchmarks.without_torch', *command]
  others, begin = _secs_of_others(), time.monotonic()
  subprocess.run(
    [sys.executable, '-m', *command],
    env={**os.environ, **env},
    cwd=pathlib.Path(__file__).resolve().parent.parent,
    check=True,
  )
  others, secs = _secs_of_others() - others, time.monotonic() - begin
  # Both counts are rounded to ticks, so that a little less than 0 may come out.
  return dataclasses.replace(
    read_measurement(answer), other_cpus=max(0.0, others / secs)
  )


def _secs_of_others() -> float:
  """CPU seconds of all processes but this one and those it has waited for."""
  stat = pathlib.Path('/proc/stat').read_text(encoding='ascii')
  # user nice system idle iowait irq softirq steal
  ticks = [int(number) for number in stat.split('\n')[0].split()[1:9]]
  busy = (sum(ticks) - sum(ticks[3:5])) / os.sysconf('SC_CLK_TCK')
  own = sum(
    used.ru_utime + used.ru_stime
    for used in map(
      resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
  )
  return busy - own


def answer_path(asked: pathlib.Path) -> pathlib.Path:
  """Where the Measurement of a Job's file is written."""
  return asked.with_name(asked.name.replace('.job.', '.measured.'))


def last_answer(folder: pathlib.Path) -> str:
  """The file of our Measurement that was written last."""
  return str(max(folder.glob('*_jax_*.measured.json')))


def read_measurement(path: pathlib.Path | str) -> Measurement:
  """Reads a Measurement."""
  fields = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  cots = [Cot(**cot) for cot in fields.pop('cots')]
  return Measurement(**fields, cots=cots)


def answer(
  argv: Sequence[str], kinds: dict[str, Any], job_type: type[Job]
) -> None:
  """The main function of a process: reads its Job, does it, writes the answer.

  Args:
    argv: one argument, the Job's file.
    kinds: {Job.kind: function of the Job that gives a Measurement}.
    job_type: of the Job.
  """
  asked = pathlib.Path(argv[0])
  job = job_type(**json.loads(asked.read_text(encoding='utf-8')))
  found = dataclasses.asdict(kinds[job.kind](job))
  answer_path(asked).write_text(json.dumps(found), encoding='utf-8')


def measured(
  secs: float,
  num_tokens: int,
  warm_up_secs: float,
  versions: dict[str, str],
  *,
  device: str = '',
  device_memory_bytes: int | None = None,
  **more: Any,
) -> Measurement:
  """A Measurement with this process's memory, its Python and the machine.

  Args:
    secs, num_tokens, warm_up_secs, versions: as in Measurement.
    device: name of the accelerator that was used; "": none.
    device_memory_bytes: the most that was in use of its memory; default that of
      the process.
    **more: the rest of Measurement.
  """
  versions = {
    **versions,
    'python': platform.python_version(),
    'machine': f'{device}, {machine()}' if device else machine(),
  }
  peak = device_memory_bytes
  if peak is None:
    peak = peak_memory_bytes()
  return Measurement(secs, num_tokens, warm_up_secs, peak, versions, **more)


def machine() -> str:
  """The machine, as a table's header names it."""
  info = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
  memory = pathlib.Path('/proc/meminfo').read_text(encoding='ascii')
  models = re.findall(r'^model name\s*: (.*)$', info, re.MULTILINE)
  (kilobytes,) = re.findall(r'^MemTotal: *(\d+) kB', memory)
  amx = ' with AMX' if ' amx_tile' in info else ''
  model = models[0] if models else platform.machine()
  return f'{os.cpu_count()} x {model}{amx}, {int(kilobytes) / 1e6:.0f} GB'


def peak_memory_bytes() -> int:
  """The most resident memory that this process has had.

  VmHWM of Linux, which is ru_maxrss without what the process inherits from the
  one that started it.
  """
  status = pathlib.Path('/proc/self/status').read_text(encoding='ascii')
  (line,) = (l for l in status.splitlines() if l.startswith('VmHWM:'))
  return int(line.split()[1]) * 1024
