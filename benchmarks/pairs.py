"""Both sides of a benchmark in turn, and the rows of results made of them.

A pair is one process of each side, one after the other, so that what slows the
machine down for a while slows both. The first pair begins with theirs, the next
with ours, and so on: what comes second has a warmer machine, or a hotter one.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
import statistics
import sys

from benchmarks import job as job_lib
from benchmarks import provenance, results
from tract_jax import types

Figure = Callable[[job_lib.Measurement], float]
# What other processes may take of each thread that a side should have.
MAX_OTHERS = 0.1


class Pairs:
  """Runs jobs, and writes rows as it goes.

  Attributes:
    rows: {name: row} so far.
    failures: of checks, for the reader.
    folder: for the processes' files.
  """

  def __init__(self, path: pathlib.Path, folder: pathlib.Path):
    """Begins with no rows.

    Args:
      path: of the results file; rows of other names that it holds stay.
      folder: for the processes' files.
    """
    self.rows: dict[str, results.Row] = {}
    self.failures: list[str] = []
    self._path = path
    self.folder = folder
    folder.mkdir(parents=True, exist_ok=True)

  def run(
    self,
    side: str,
    job: job_lib.Job,
    num_pairs: int,
    figures: Mapping[str, Figure],
  ) -> list[tuple[job_lib.Measurement, job_lib.Measurement | None]]:
    """Runs both sides in turn, and writes the rows after each pair.

    On a TPU ours runs alone.

    Args:
      side: the modules are called side_torch and side_jax.
      job: of both; each pair has a seed of its own.
      num_pairs: how often.
      figures: {name of a row: its number in a Measurement}.

    Returns:
      (ours, theirs) of each pair.
    """
    pairs: list[tuple[job_lib.Measurement, job_lib.Measurement | None]] = []
    for seed in range(num_pairs):
      job = dataclasses.replace(job, seed=seed)
      sides = ['torch', 'jax'] if job.has_pytorch else ['jax']
      order = reversed(sides) if seed % 2 else sides
      found = {name: self.start(f'{side}_{name}', job) for name in order}
      pairs.append((found['jax'], found.get('torch')))
      every = [one for pair in pairs for one in pair if one]
      for name, get in figures.items():
        self.add(_row(name, get, pairs), job, every)
    return pairs

  def start(self, module: str, job: job_lib.Job) -> job_lib.Measurement:
    """Runs one process, and says what it found."""
    say(f'{module}: {job.kind}, seed {job.seed}')
    measured = job_lib.start(module, job, self.folder)
    if warning := _disturbed(job, measured):
      say(f'  warning: {warning}')
    if measured.secs:
      details = ''.join(
        f'; {name} {value:,.1f}' for name, value in measured.details.items()
      )
      say(
        f'  {measured.secs:.1f} s, {measured.num_tokens:,} tokens; warm-up'
        f' {measured.warm_up_secs:.1f} s; peak'
        f' {measured.peak_memory_bytes / 1e9:.2f} GB{details}'
      )
    return measured

  def last_answer(self) -> str:
    """The file of our Measurement that was written last."""
    return job_lib.last_answer(self.folder)

  def add(
    self,
    row: results.Row,
    job: job_lib.Job,
    found: Sequence[job_lib.Measurement] = (),
  ) -> None:
    """Writes a row.

    Args:
      row: its numbers.
      job: what was measured, of which the row keeps the work.
      found: its Measurements, of which the row keeps how busy others were.
    """
    self.rows[row.name] = dataclasses.replace(
      row,
      work=provenance.work(job),
      commit=provenance.commit(),
      other_cpus=max((one.other_cpus for one in found), default=None),
    )
    results.write_results(self._path, self.rows.values())


def _disturbed(job: job_lib.Job, found: job_lib.Measurement) -> str:
  """What to say where others took CPUs that the process should have had."""
  free = max(0, (os.cpu_count() or 1) - job.num_threads)
  if found.other_cpus - free <= MAX_OTHERS * job.num_threads:
    return ''
  return (
    f'other processes kept {found.other_cpus:.1f} CPUs busy; times and ratios'
    ' say little'
  )


def _row(
  name: str,
  get: Figure,
  pairs: Sequence[tuple[job_lib.Measurement, job_lib.Measurement | None]],
) -> results.Row:
  """Of both sides, or of ours alone."""
  ours = [get(mine) for mine, _ in pairs]
  theirs = [get(other) for _, other in pairs if other]
  versions = pairs[-1][0].versions
  if other := pairs[-1][1]:
    return results.compared(name, ours, theirs, {**other.versions, **versions})
  return results.checked(name, statistics.median(ours), len(ours), versions)


def say(line: str) -> None:
  """Prints a line at once."""
  print(line, flush=True)


def complain(*problems: object) -> None:
  """Tells of problems, each line of each as an error."""
  for problem in problems:
    for line in str(problem).splitlines():
      print(f'error: {line}', file=sys.stderr)


def refusing_bad_input(
  main: Callable[[Sequence[str] | None], int],
) -> Callable[..., int]:
  """A program that tells what is wrong with its input, and exits with 2.

  Args:
    main: (arguments, or None for those of the process) -> exit code; may raise
      types.InputError.

  Returns:
    The same, which raises none.
  """

  @functools.wraps(main)
  def told(argv: Sequence[str] | None = None) -> int:
    try:
      return main(argv)
    except types.InputError as error:
      complain(error)
      return 2

  return told
