"""Kills whole runs at random moments, and compares how they end: `make faults`.

  python -m tests.faults.random_kills [--kills=50] [--joined=10] [--exports=5]
    [--asked=6] [--seed=0]

A run is killed (SIGKILL) again and again, each time by a process that continues
it, until one comes to the end; then the next run begins. Every end must be that
of a run that nothing disturbed, bit for bit; what was finished before a kill
must be there after it, whole, and must not be done again. Of the kills some hit
one or both of two joined processes, and some the export of a finished run.
Signals that a run obeys, SIGTERM and Ctrl-C, come on top. Half of all wait for
a file that is being written.

Prints a line for each and the counts; exit code 1 on any difference.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

from tests.faults import harness
from tract_jax import types

_EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
# How long a kill waits for a file that is being written.
_AMID_SECS = 2.0
_CONTINUES = re.compile(r'(\w+) stage (\d) seed 0: continues from step (\d+)')


@dataclasses.dataclass(frozen=True)
class Course:
  """A kind of run.

  Attributes:
    name: of its workdirs.
    num_processes: 1, or several that are joined.
    task: "run", or "export".
    begin: a workdir to begin with; None: from nothing.
  """

  name: str
  num_processes: int = 1
  task: str = 'run'
  begin: pathlib.Path | None = None

  def results(self, workdir: pathlib.Path) -> dict[str, Any]:
    if self.task == 'run':
      return harness.results(workdir)
    paths = (workdir / 'export' / 'tract').iterdir()
    return {path.name: path.read_bytes() for path in paths}


@dataclasses.dataclass
class Counts:
  """What was seen so far.

  Attributes:
    kills: by phase.
    amid: kills that hit a file being written.
    runs: that came to their end.
    whole: pieces that were finished at a kill, and read after it.
    problems: lines.
  """

  kills: Counter = dataclasses.field(default_factory=Counter)
  amid: int = 0
  runs: int = 0
  whole: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)

  def problem(self, line: str) -> None:
    self.problems.append(line)
    print(f'PROBLEM: {line}', flush=True)


class Attempt:
  """The processes of one start in a workdir, which say into files."""

  def __init__(self, course: Course, workdir: pathlib.Path):
    self._logs = [
      workdir.with_name(f'{workdir.name}.log{i}')
      for i in range(course.num_processes)
    ]
    with contextlib.ExitStack() as stack:
      files = [stack.enter_context(path.open('w')) for path in self._logs]
      if course.num_processes == 1:
        self.processes = [harness.start(workdir, course.task, output=files[0])]
      else:
        self.processes = harness.start_joined(
          [workdir] * course.num_processes, course.task, outputs=files
        )
    self.wait(until=lambda: 'workdir: ' in self.output)

  @property
  def output(self) -> str:
    return '\n'.join(path.read_text() for path in self._logs)

  def ended(self) -> bool:
    return all(process.poll() is not None for process in self.processes)

  def wait(
    self,
    secs: float = harness.TIMEOUT_SECS,
    until: Callable[[], Any] = lambda: False,
  ) -> None:
    """Until all have ended, `until` holds, or the time is over."""
    deadline = time.monotonic() + secs
    while not (self.ended() or until() or time.monotonic() > deadline):
      time.sleep(0.002)

  def codes(self) -> list[int]:
    """Exit codes, once all have ended; those that do not are killed."""
    self.wait()
    for process in self.processes:
      process.kill()
    return [process.wait() for process in self.processes]


def measure(
  course: Course, folder: pathlib.Path, counts: Counts
) -> tuple[dict[str, Any], float]:
  """Results of an undisturbed run, and the seconds from when it has a workdir.

  It runs twice: the first compiles, and both must end alike.
  """
  found, secs = [], 0.0
  for number in range(2):
    workdir = folder / f'{course.name}_undisturbed{number}'
    if course.begin:
      shutil.copytree(course.begin, workdir)
    attempt = Attempt(course, workdir)
    begin = time.monotonic()
    if any(attempt.codes()):
      raise SystemExit(f'{workdir.name} failed:\n{attempt.output}')
    secs = time.monotonic() - begin
    found.append(course.results(workdir))
  if found[0] != found[1]:
    counts.problem(f'{course.name}: two undisturbed runs differ')
  return found[1], secs


def strike(
  attempt: Attempt,
  workdir: pathlib.Path,
  sent: signal.Signals,
  secs: float,
  rng: random.Random,
) -> str:
  """Sends a signal within `secs`; says how, "" where all was over before."""
  old = temporary_files(workdir)
  attempt.wait(rng.uniform(0, secs))
  if amid := rng.random() < 0.5:
    attempt.wait(_AMID_SECS, lambda: temporary_files(workdir) - old)
  if attempt.ended():
    return ''
  number = rng.randint(1, len(attempt.processes))
  for process in rng.sample(attempt.processes, number):
    process.send_signal(sent)
  amid = amid and bool(temporary_files(workdir) - old)
  hit = f' to {number} of {len(attempt.processes)}' if number > 1 else ''
  return f'{sent.name}{hit}{", amid a write" if amid else ""}'


def temporary_files(workdir: pathlib.Path) -> set[tuple[str, int]]:
  """Files and folders that do not have their names yet, and their inodes."""
  found = set()
  for folder, folders, files in os.walk(workdir):
    for name in (*folders, *files):
      if 'tmp' in name:
        with contextlib.suppress(FileNotFoundError):
          path = os.path.join(folder, name)
          found.add((path, os.stat(path).st_ino))
  return found


def phase(course: Course, pieces) -> str:
  """Where a run with these finished pieces is."""
  if course.task == 'export':
    return 'export'
  for mark, name in (
    ('predictions/tract/parts/synthetic/seed0/manifest.json', 'report'),
    ('tract/stage2/seed0/manifest.json', 'prediction'),
    ('tract/self_cot/seed0/dataset.json', 'stage 2'),
    ('cot_raft/stage1/seed0/manifest.json', 'sampling'),
  ):
    if mark in pieces:
      return name
  return 'stage 1'


def check_pieces(workdir, before, output: str, counts: Counts):
  """Nothing finished was lost or done again; gives what is finished now."""
  after = harness.pieces(workdir)
  for name in harness.redone(before, after):
    counts.problem(f'{workdir.name}: {name} was lost or done again')
  for method, stage, step in _CONTINUES.findall(output):
    folder = f'{method}/stage{stage}/seed0/checkpoints/'
    saved = [int(n.removeprefix(folder)) for n in before if folder in n]
    if int(step) != max(saved, default=-1):
      counts.problem(f'{workdir.name}: went on from {step}, not from {saved}')
  try:
    counts.whole += harness.read_all(workdir)
  except types.InputError as error:
    counts.problem(f'{workdir.name}: {error}')
  return after


def disturb(
  course: Course,
  signals: Sequence[signal.Signals],
  expected: dict[str, Any],
  secs: float,
  folder: pathlib.Path,
  rng: random.Random,
  counts: Counts,
) -> None:
  """Sends all signals, to as many runs as it takes, which come to their end."""
  left = list(signals)
  for number in range(10 * len(left) + 1):
    if not left:
      return
    workdir = folder / f'{course.name}{number}'
    if course.begin:
      shutil.copytree(course.begin, workdir)
    before = harness.pieces(workdir)
    codes = [1]
    while any(codes):
      attempt = Attempt(course, workdir)
      how = strike(attempt, workdir, left[0], secs, rng) if left else ''
      codes = attempt.codes()
      before = check_pieces(workdir, before, attempt.output, counts)
      if not any(codes):
        break
      if not how:
        raise SystemExit(f'{workdir.name}: {codes}:\n{attempt.output}')
      sent = left.pop(0)
      if codes[0] != _EXIT_CODES.get(sent, codes[0]):
        counts.problem(f'{workdir.name}: {how}: exit code {codes[0]}')
      counts.kills[phase(course, before)] += 1
      counts.amid += 'amid' in how
      print(
        f'{workdir.name}: {how}, in {phase(course, before)}: {len(before)}'
        f' pieces are finished, exit codes {codes}',
        flush=True,
      )
    counts.runs += 1
    if course.results(workdir) != expected:
      counts.problem(f'{workdir.name}: its end is not that of others')
    shutil.rmtree(workdir)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs all; gives the exit code."""
  parser = argparse.ArgumentParser(prog='random_kills')
  for name, default in (
    ('kills', 50), ('joined', 10), ('exports', 5), ('asked', 6), ('seed', 0),
  ):  # fmt: skip
    parser.add_argument(f'--{name}', type=int, default=default)
  asked = parser.parse_args(argv)
  rng, counts, begin = random.Random(asked.seed), Counts(), time.monotonic()
  with tempfile.TemporaryDirectory(prefix='faults') as scratch:
    folder = pathlib.Path(scratch)
    os.environ.setdefault(harness.COMPILED, str(folder / 'compiled'))
    alone = [signal.SIGKILL] * (asked.kills - asked.joined - asked.exports)
    alone += [rng.choice(list(_EXIT_CODES)) for _ in range(asked.asked)]
    rng.shuffle(alone)
    finished = folder / 'alone_undisturbed1'
    for course, signals in (
      (Course('alone'), alone),
      (Course('joined', 2), [signal.SIGKILL] * asked.joined),
      (
        Course('export', task='export', begin=finished),
        [signal.SIGKILL] * asked.exports,
      ),
    ):
      # Exports begin with the end of a run.
      if signals or (course.name == 'alone' and asked.exports):
        expected, secs = measure(course, folder, counts)
        disturb(course, signals, expected, secs, folder, rng, counts)
  kills = ', '.join(f'{name} {n}' for name, n in sorted(counts.kills.items()))
  minutes, secs = divmod(round(time.monotonic() - begin), 60)
  print(
    f'seed {asked.seed}: {counts.kills.total()} kills and signals ({kills}),'
    f' {counts.amid} amid a write; {counts.runs} runs came to their end;'
    f' {counts.whole} finished pieces were read, each done once;'
    f' {len(counts.problems)} problems; {minutes}:{secs:02d} min'
  )
  return 1 if counts.problems else 0


if __name__ == '__main__':
  sys.exit(main())
