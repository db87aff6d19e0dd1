"""Small real runs that are killed, starved of disk, and damaged.

They are runs of configs/demo.py, made small: processes of the command line that
take seconds, most of them to start. What they leave is compared by `results`,
counted by `pieces` and `redone`, so that nothing finished is lost or done
twice, and read by `read_piece`, as a run reads it.
"""

from collections.abc import Callable, Mapping, Sequence
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from etils import epath

from tract_jax.data import leaf_names, manifest, orbax_store, self_cot
from tract_jax.pipeline import (
  prediction_files,
)

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT_SECS = 240
# After these launchers run the same command again: 75, or death by a signal.
_AGAIN = (
  os.EX_TEMPFAIL,
  *(-signal.SIGABRT, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM),
)
# Names a folder for what jax compiles, which all processes of the tests share;
# most of a small run's time would go there.
COMPILED = 'TESTS_COMPILED'
TINY = {
  'methods': '("tract",)',
  'seeds': '(0,)',
  'data.synthetic_train': 64,
  'data.synthetic_test': 192,
  'model.hidden_size': 16,
  'model.intermediate_size': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'model.num_kv_heads': 1,
  'train.num_epochs': 4,
  'train.batch_size': 4,
  'train.checkpoint_every': 8,
  'sampling.slots': 8,
  'sampling.chunk_size': 8,
  'sampling.max_new_tokens': 64,
  'evaluation.gap_examples': 8,
  'evaluation.num_resamples': 100,
}
# Of joined processes: twenty updates a stage, since 60 rows of 64 train and 3
# are for validation.
JOINED = {
  **TINY,
  'data.synthetic_test': 48,
  'sampling.max_new_tokens': 16,
  'train.batch_size': 16,
  'train.num_epochs': 5,
  'train.checkpoint_every': 4,
  'model.num_heads': 4,
  'model.num_kv_heads': 2,
  'hosts.heartbeat_secs': 10,
}
# Phase -> (what shows that it is under way, what shows that it is over).
PHASES = {
  'stage 1': (
    'cot_raft/stage1/seed0/checkpoints/8',
    'cot_raft/stage1/seed0/params/0',
  ),
  'sampling': ('tract/self_cot/seed0/1', 'tract/self_cot/seed0/dataset.json'),
  'stage 2': (
    'tract/stage2/seed0/checkpoints/16',
    'tract/stage2/seed0/params/0',
  ),
  'prediction': (
    'predictions/tract/parts/synthetic/seed0/chunk_00000008.jsonl',
    'predictions/tract/synthetic.jsonl',
  ),
}
STAGES = ('cot_raft/stage1', 'tract/stage2')
_RESULTS = (
  'report/metrics.json',
  'predictions/tract/synthetic.jsonl',
  'tract/self_cot/seed0/self_cots.jsonl',
)


def start(
  workdir,
  task: str = 'run',
  settings: Mapping[str, Any] = TINY,
  *,
  num_devices: int = 1,
  output: Any = subprocess.PIPE,
  environment: Mapping[str, str] | None = None,
) -> subprocess.Popen:
  """A process of the command line on the demo's config with `settings`."""
  env = {
    **os.environ,
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={num_devices}',
    **(environment or {}),
  }
  if folder := os.environ.get(COMPILED):
    env['JAX_COMPILATION_CACHE_DIR'] = folder
    env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    env['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'tract_jax.main',
      f'--task={task}',
      '--config=configs/demo.py',
      f'--workdir={workdir}',
      *(f'--config.{key}={value}' for key, value in settings.items()),
    ],
    cwd=ROOT,
    env=env,
    stdout=output,
    stderr=subprocess.STDOUT,
    text=True,
  )


def start_joined(
  workdirs: Sequence[Any],
  task: str = 'run',
  settings: Mapping[str, Any] = JOINED,
  *,
  num_devices: int = 1,
  outputs: Sequence[Any] | None = None,
) -> list[subprocess.Popen]:
  """The processes of a run, one for each of `workdirs`."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  count = len(workdirs)
  environment = {
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': str(count),
  }
  return [
    start(
      workdir,
      task,
      settings,
      num_devices=num_devices,
      output=outputs[i] if outputs else subprocess.PIPE,
      environment={**environment, 'JAX_PROCESS_ID': str(i)}
      if count > 1
      else {},
    )
    for i, workdir in enumerate(workdirs)
  ]


def finish(process: subprocess.Popen, code: int | None = 0) -> str:
  """What it said, once it has ended; the code is that of `finish_all`."""
  return finish_all([process], code)[0]


def finish_all(
  processes: Sequence[subprocess.Popen], code: int | None = 0
) -> list[str]:
  """What each said, once all have ended.

  Args:
    processes: to wait for.
    code: with which each ends; None: with one after which launchers run the
      same again, where some were killed.
  """
  outputs = _outputs(processes)
  for process, output in zip(processes, outputs, strict=True):
    ended = process.returncode
    assert ended in (_AGAIN if code is None else (code,)), (ended, output)
  return outputs


def _outputs(processes: Sequence[subprocess.Popen]) -> list[str]:
  deadline = time.monotonic() + TIMEOUT_SECS
  outputs = []
  try:
    for process in processes:
      left = deadline - time.monotonic()
      outputs.append(process.communicate(timeout=max(left, 1))[0])
  finally:
    for process in processes:
      process.kill()
  return outputs


def wait_for(path: pathlib.Path, *processes: subprocess.Popen) -> None:
  """Waits until `path` exists; fails where a process ends before."""
  wait_until(path.exists, *processes)


def wait_until(
  condition: Callable[[], bool], *processes: subprocess.Popen
) -> None:
  """Waits until `condition` holds; fails where a process ends before."""
  deadline = time.monotonic() + TIMEOUT_SECS
  while not condition():
    if any(process.poll() is not None for process in processes):
      raise AssertionError('\n'.join(_outputs(processes)))
    assert time.monotonic() < deadline
    time.sleep(0.002)


def losses(workdir: pathlib.Path, stage: str) -> list[float]:
  text = (workdir / stage / 'seed0' / 'metrics.jsonl').read_text()
  return [json.loads(line)['loss'] for line in text.splitlines()]


def results(workdir: pathlib.Path) -> dict[str, Any]:
  """All that a run ends with: of one that was disturbed it is the same."""
  found: dict[str, Any] = {
    path: (workdir / path).read_bytes() for path in _RESULTS
  }
  found |= {f'{stage} loss': losses(workdir, stage) for stage in STAGES}
  return found


def pieces(workdir: pathlib.Path) -> dict[str, Any]:
  """{path below the workdir: when its files were written} of what is finished.

  Checkpoints, chunks of self-CoTs and predictions, and whatever a finished
  manifest stands for.
  """
  found: dict[str, Any] = {}
  for pattern in ('*/stage*/seed*/checkpoints/*', '*/stage*/seed*/params/*',
                  '*/self_cot/seed*/*'):  # fmt: skip
    for folder in workdir.glob(pattern):
      if folder.name.isdigit():
        files = sorted(path for path in folder.rglob('*') if path.is_file())
        found[str(folder.relative_to(workdir))] = _stamps(files)
  for path in workdir.rglob(manifest.MANIFEST):
    if json.loads(path.read_bytes())['finished']:
      found[str(path.relative_to(workdir))] = _stamps([path])
  for pattern in ('**/chunk_*.jsonl', f'**/{self_cot.SUMMARY}'):
    for path in workdir.glob(pattern):
      found[str(path.relative_to(workdir))] = _stamps([path])
  return found


def redone(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
  """Pieces of `before` that were lost or written again.

  A checkpoint that is gone was outdated, where there is a newer one.
  """
  newest: dict[str, int] = {}
  for name in after:
    folder, _, last = name.rpartition('/')
    if folder.endswith('/checkpoints'):
      newest[folder] = max(newest.get(folder, -1), int(last))
  bad = []
  for name, stamps in before.items():
    folder, _, last = name.rpartition('/')
    outdated = folder in newest and int(last) < newest[folder]
    if after.get(name, 'gone' if outdated else None) not in (stamps, 'gone'):
      bad.append(name)
  return bad


def read_piece(path: pathlib.Path) -> Any:
  """What a run reads of a piece, verified as a run does.

  Raises:
    types.InputError: it is damaged.
  """
  if path.name.isdigit():
    with orbax_store.Store(path.parent, local=True) as store:
      arrays, metadata = store.load(int(path.name))
    leaves = leaf_names.flatten(arrays)
    return {k: None if v is None else v.tobytes() for k, v in leaves.items()}, (
      metadata
    )
  if path.name == manifest.MANIFEST:
    return manifest.read_results(path.parent), manifest.read_manifest(
      path.parent
    )
  if path.name == self_cot.SUMMARY:
    summary = self_cot.read_summary(path.parent)
    assert summary is not None
    return summary, self_cot.read_self_cots(path.parent, summary['provenance'])[
      1
    ]
  return prediction_files.read_chunk(epath.Path(path))


def read_all(workdir: pathlib.Path) -> int:
  """Reads and verifies all that is finished; gives how many pieces it is."""
  found = pieces(workdir)
  for name in found:
    read_piece(workdir / name)
  return len(found)


def once(folder: pathlib.Path, make: Callable[[], None]) -> pathlib.Path:
  """`folder`, once one of the processes that ask for it has called `make`."""
  with open(folder.with_name(f'{folder.name}.lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = folder.with_name(f'{folder.name}.done')
    if not done.exists():
      make()
      done.touch()
  return folder


def _stamps(files: Sequence[pathlib.Path]) -> tuple[tuple[str, int], ...]:
  return tuple((path.name, path.stat().st_mtime_ns) for path in files)
