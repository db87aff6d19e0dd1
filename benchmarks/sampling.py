"""Side by side with PyTorch: sampled CoTs and their score distributions.

  make bench-sampling [ARGS='--parts=one_cot,checks --num-prompts=4 ...']

docs/benchmarks.md says what is measured and how. Exit codes: 0 done, 1 a check
of our samples failed, 2 no model or no data.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
import sys
import tempfile

from benchmarks import job as job_lib
from benchmarks import options, pairs, results

# Distributions may differ by rounding alone.
MAX_DIFFERENCE = 1e-4


@pairs.refusing_bad_input
def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  args = options.parse(argv)
  job = options.sampling_job(args)
  lengths = [len(prompt) for prompt in job.prompts]
  pairs.say(
    f'{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens,'
    f' {sum(lengths):,} in all; {job.num_threads} threads'
  )
  with tempfile.TemporaryDirectory() as scratch:
    bench = Benchmark(args, job, pathlib.Path(args.keep or scratch))
    for part in args.parts:
      getattr(bench, part)()
  print(results.table([*bench.rows.values()]))
  pairs.complain(*bench.failures)
  return 1 if bench.failures else 0


class Benchmark:
  """The parts of the benchmark; each writes its rows as it goes."""

  def __init__(
    self,
    args: argparse.Namespace,
    job: job_lib.SamplingJob,
    folder: pathlib.Path,
  ):
    self._pairs = pairs.Pairs(args.results, folder)
    self._args = args
    self._job = job
    self._sampled: dict[str, str] = {}

  @property
  def rows(self) -> dict[str, results.Row]:
    """{name: row} of all parts so far."""
    return self._pairs.rows

  @property
  def failures(self) -> list[str]:
    """Of the checks, for the reader."""
    return self._pairs.failures

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
    self._pairs.run(
      'sampling', job, self._args.runs, {name: lambda m: m.tokens_per_sec}
    )

  def checks(self) -> None:
    """Distributions and greedy texts against PyTorch."""
    if not self._sampled:
      self._pairs.start(
        'sampling_jax', dataclasses.replace(self._job, kind='sample')
      )
      self._sampled['1_cot'] = self._pairs.last_answer()
    for suffix, path in self._sampled.items():
      job = dataclasses.replace(self._job, kind='check', ours=path)
      measured = self._pairs.start('checks_torch', job)
      versions = _versions(path, measured)
      largest = measured.details['max_difference']
      num_rows = int(measured.details['num_rows'])
      name = f'check_max_difference_{suffix}'
      row = results.checked(name, largest, num_rows, versions)
      self._pairs.add(row, job)
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
    self._pairs.start('sampling_jax', job)
    path = self._pairs.last_answer()
    measured = self._pairs.start(
      'checks_torch', dataclasses.replace(job, ours=path)
    )
    for line in measured.lines:
      pairs.say(f'  greedy: {line}')
    for kind, number in measured.details.items():
      name = f'check_greedy_texts_{kind.removeprefix("num_")}'
      versions = _versions(path, measured)
      row = results.checked(name, number, len(job.prompts), versions)
      self._pairs.add(row, job)
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
    elif job.has_pytorch:
      job = self._with_best_rows(job)
    figures = {
      'rows_per_sec': lambda m: m.rows_per_sec,
      'tokens_per_sec': lambda m: m.tokens_per_sec,
      'peak_memory_bytes': lambda m: m.peak_memory_bytes,
    }
    self._pairs.run(
      'sampling',
      job,
      num_pairs,
      {f'{k}_{suffix}': get for k, get in figures.items()},
    )
    self._sampled[suffix] = self._pairs.last_answer()

  def _with_best_rows(self, job: job_lib.SamplingJob) -> job_lib.SamplingJob:
    best = self._pairs.start(
      'sampling_torch', dataclasses.replace(job, kind='sweep')
    ).details
    job = dataclasses.replace(
      job,
      generate_rows=int(best['best_generate_rows']),
      score_rows=int(best['best_score_rows']),
    )
    pairs.say(
      f'  their best: {job.generate_rows} rows to generate,'
      f' {job.score_rows} for the forward pass'
    )
    return job


def _versions(path: str, check: job_lib.Measurement) -> dict[str, str]:
  """Of our Measurement's file, and of what checked it."""
  return check.versions | job_lib.read_measurement(path).versions


if __name__ == '__main__':
  sys.exit(main())
