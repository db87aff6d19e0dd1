"""Side by side with PyTorch: sampled CoTs and their score distributions.

  make bench-sampling [ARGS='--parts=one_cot,checks --num-prompts=4 ...']

docs/benchmarks.md says what is measured and how. Exit codes: 0 done, 1 a check
of our samples failed, 2 no model or no data.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import sys
import tempfile

from benchmarks import job as job_lib
from benchmarks import options, results
from tract_jax import types

# Distributions may differ by rounding alone.
MAX_DIFFERENCE = 1e-4


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  args = options.parse(argv)
  try:
    job = options.make_job(args)
  except types.InputError as error:
    for line in str(error).splitlines():
      print(f'error: {line}', file=sys.stderr)
    return 2
  lengths = [len(prompt) for prompt in job.prompts]
  _say(
    f'{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens,'
    f' {sum(lengths):,} in all; {job.num_threads} threads'
  )
  with tempfile.TemporaryDirectory() as scratch:
    bench = Benchmark(args, job, pathlib.Path(args.keep or scratch))
    for part in args.parts:
      getattr(bench, part)()
  print(results.table(bench.rows.values()))
  for failure in bench.failures:
    print(f'error: {failure}', file=sys.stderr)
  return 1 if bench.failures else 0


class Benchmark:
  """The parts of the benchmark; each writes its rows as it goes.

  Attributes:
    rows: {name: row} of all parts so far.
    failures: of the checks, for the reader.
  """

  def __init__(
    self, args: argparse.Namespace, job: job_lib.Job, folder: pathlib.Path
  ):
    self.rows: dict[str, results.Row] = {}
    self.failures: list[str] = []
    self._args = args
    self._job = job
    self._folder = folder
    self._sampled: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)

  def one_cot(self) -> None:
    """The job with one CoT per prompt."""
    self._whole_job(1, self._args.slots, self._args.runs, '1_cot')

  def four_cots(self) -> None:
    """The job with four CoTs per prompt."""
    args = self._args
    self._whole_job(4, args.slots_4_cots, args.runs_4_cots, '4_cots')

  def decode(self) -> None:
    """Decoding steps alone, at equal batch."""
    num_rows = self._args.decode_rows
    order = sorted(
      range(len(self._job.prompts)),
      key=lambda i: abs(len(self._job.prompts[i]) - 1000),
    )[:num_rows]
    job = dataclasses.replace(
      self._job,
      kind='decode',
      example_ids=[self._job.example_ids[i] for i in order],
      prompts=[self._job.prompts[i] for i in order],
      max_new_tokens=self._args.decode_steps,
      settings={**self._job.settings, 'sampling.slots': len(order)},
    )
    name = f'decode_tokens_per_sec_{len(order)}_rows'
    self._pairs(job, self._args.runs, {name: lambda m: m.tokens_per_sec})

  def checks(self) -> None:
    """Distributions and greedy texts against PyTorch."""
    if not self._sampled:
      self._start('sampling_jax', dataclasses.replace(self._job, kind='sample'))
      self._sampled['1_cot'] = job_lib.last_answer(self._folder)
    for suffix, path in self._sampled.items():
      job = dataclasses.replace(self._job, kind='check', ours=path)
      measured = self._start('checks_torch', job)
      largest = measured.details['max_difference']
      num_rows = int(measured.details['num_rows'])
      name = f'check_max_difference_{suffix}'
      self._add(results.checked(name, largest, num_rows, measured.versions))
      if not largest < MAX_DIFFERENCE:
        self.failures.append(
          f'{name}: {largest:.2e} in {num_rows} rows; less than'
          f' {MAX_DIFFERENCE} is expected'
        )
    self._check_greedy()

  def _check_greedy(self) -> None:
    num_prompts = self._args.greedy_prompts
    job = dataclasses.replace(
      self._job,
      kind='greedy',
      example_ids=self._job.example_ids[:num_prompts],
      prompts=self._job.prompts[:num_prompts],
      temperature=0.0,
      top_p=1.0,
      repetition_penalty=1.0,
    )
    self._start('sampling_jax', job)
    path = job_lib.last_answer(self._folder)
    measured = self._start('checks_torch', dataclasses.replace(job, ours=path))
    for line in measured.lines:
      _say(f'  greedy: {line}')
    for kind, number in measured.details.items():
      name = f'check_greedy_texts_{kind.removeprefix("num_")}'
      row = results.checked(name, number, len(job.prompts), measured.versions)
      self._add(row)
    if measured.details['num_differing']:
      self.failures.append('greedy texts differ from those of transformers')

  def _whole_job(
    self, num_cots: int, slots: int, num_pairs: int, suffix: str
  ) -> None:
    settings = {**self._job.settings, 'sampling.slots': slots}
    job = dataclasses.replace(
      self._job, kind='sample', num_cots=num_cots, settings=settings
    )
    rows = self._args.their_batch
    if rows:
      job = dataclasses.replace(job, generate_rows=rows[0], score_rows=rows[-1])
    else:
      job = self._with_best_rows(job)
    figures = {
      'rows_per_sec': lambda m: m.rows_per_sec,
      'tokens_per_sec': lambda m: m.tokens_per_sec,
      'peak_memory_bytes': lambda m: m.peak_memory_bytes,
    }
    self._pairs(
      job, num_pairs, {f'{k}_{suffix}': get for k, get in figures.items()}
    )
    self._sampled[suffix] = job_lib.last_answer(self._folder)

  def _with_best_rows(self, job: job_lib.Job) -> job_lib.Job:
    best = self._start(
      'sampling_torch', dataclasses.replace(job, kind='sweep')
    ).details
    job = dataclasses.replace(
      job,
      generate_rows=int(best['best_generate_rows']),
      score_rows=int(best['best_score_rows']),
    )
    _say(
      f'  their best: {job.generate_rows} rows to generate,'
      f' {job.score_rows} for the forward pass'
    )
    return job

  def _pairs(
    self,
    job: job_lib.Job,
    num_pairs: int,
    figures: dict[str, Callable[[job_lib.Measurement], float]],
  ) -> None:
    """Runs both sides in turn, and writes the rows after each pair."""
    pairs = []
    for seed in range(num_pairs):
      job = dataclasses.replace(job, seed=seed)
      theirs = self._start('sampling_torch', job)
      ours = self._start('sampling_jax', job)
      pairs.append((ours, theirs))
      versions = {**theirs.versions, **ours.versions}
      for name, get in figures.items():
        mine, others = zip(*[(get(o), get(t)) for o, t in pairs], strict=True)
        self._add(results.compared(name, mine, others, versions))

  def _start(self, module: str, job: job_lib.Job) -> job_lib.Measurement:
    _say(f'{module}: {job.kind}, {job.num_cots} CoTs, seed {job.seed}')
    measured = job_lib.start(module, job, self._folder)
    if measured.secs:
      details = [
        f'{name} {value:,.1f}' for name, value in measured.details.items()
      ]
      _say(
        f'  {measured.secs:.1f} s for {len(measured.cots)} rows,'
        f' {measured.num_tokens:,} tokens; warm-up'
        f' {measured.warm_up_secs:.1f} s;'
        f' peak {measured.peak_memory_bytes / 1e9:.2f} GB; {", ".join(details)}'
      )
    return measured

  def _add(self, row: results.Row) -> None:
    self.rows[row.name] = row
    results.write_results(self._args.results, self.rows.values())


def _say(line: str) -> None:
  print(line, flush=True)


if __name__ == '__main__':
  sys.exit(main())
