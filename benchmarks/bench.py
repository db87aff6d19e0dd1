"""Side by side with PyTorch: training steps, prediction, start-up, files.

  make bench [ARGS='--only=training,prediction --pairs=1 ...']

docs/benchmarks.md says what is measured and how; sampling has a benchmark of
its own. Exit codes: 0 done, 1 both sides did not do the same, 2 no model or no
data.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
import sys
import tempfile

from benchmarks import job as job_lib
from benchmarks import options, pairs, results

# What rounding explains: of a probability, and of a loss, relative.
MAX_DIFFERENCE = 1e-4
_RATE: dict[str, pairs.Figure] = {
  'tokens_per_sec': lambda m: m.tokens_per_sec,
  'peak_memory_bytes': lambda m: m.peak_memory_bytes,
  'start_up_secs': lambda m: m.details['start_up_secs'],
}
_FILES = ('load_secs', 'export_secs', 'save_state_secs', 'restore_state_secs')


@pairs.refusing_bad_input
def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  args = options.parse_bench(argv, tuple(PARTS))
  failures = []
  with tempfile.TemporaryDirectory() as scratch:
    for part in (name for name in PARTS if name in args.only):
      folder = pathlib.Path(args.keep or scratch) / part
      runner = pairs.Pairs(args.results / f'{part}.json', folder)
      PARTS[part](args, runner)
      print(results.table([*runner.rows.values()]), flush=True)
      failures += runner.failures
  pairs.complain(*failures)
  return 1 if failures else 0


def training(args: argparse.Namespace, runner: pairs.Pairs) -> None:
  """Updates: full and LoRA, on rows with prompts and all of targets."""
  for name, job in options.training_jobs(args).items():
    found = runner.run('training', job, args.pairs, _named(_RATE, name))
    versions = runner.rows[f'tokens_per_sec_{name}'].versions
    compiling = [m.details['compile_secs'] for m, _ in found]
    figures = {'compile_secs': sorted(compiling)[len(compiling) // 2]}
    losses = [
      (ours.details['first_loss'], theirs.details['first_loss'])
      for ours, theirs in found
      if theirs
    ]
    if losses:
      apart = max(abs(a / b - 1) for a, b in losses)
      figures['check_first_loss_difference'] = apart
      _compare(runner, f'first loss of {name}', apart)
    for figure, value in figures.items():
      row = results.checked(f'{figure}_{name}', value, len(found), versions)
      runner.add(row)


def prediction(args: argparse.Namespace, runner: pairs.Pairs) -> None:
  """The score's distribution behind given tokens."""
  job = dataclasses.replace(options.make_job(args), kind='score')
  if job.has_pytorch:
    trials = {
      rows: runner.start(
        'sampling_torch', dataclasses.replace(job, score_rows=rows)
      ).tokens_per_sec
      for rows in args.their_rows
    }
    best = max(trials, key=lambda rows: trials[rows])
    pairs.say(f'  their best: {best} rows')
    job = dataclasses.replace(job, score_rows=best)
  found = runner.run('sampling', job, args.pairs, _named(_RATE, 'prediction'))
  apart = [
    _largest_difference(ours, theirs) for ours, theirs in found if theirs
  ]
  if not apart:
    return
  name = 'check_max_difference_prediction'
  versions = runner.rows['tokens_per_sec_prediction'].versions
  runner.add(results.checked(name, max(apart), len(job.prompts), versions))
  _compare(runner, 'probabilities', max(apart))


def files(args: argparse.Namespace, runner: pairs.Pairs) -> None:
  """Weights and train states, read and written."""
  job = job_lib.Job(
    kind='files',
    model=options.model_folder(args),
    num_threads=args.threads,
    platform=args.platform,
    settings=dict(args.ours),
  )
  figures = {name: functools.partial(_detail, name) for name in _FILES}
  runner.run('files', job, args.pairs, figures)


def _detail(name: str, measured: job_lib.Measurement) -> float:
  return measured.details[name]


def _named(
  figures: dict[str, pairs.Figure], suffix: str
) -> dict[str, pairs.Figure]:
  return {f'{name}_{suffix}': get for name, get in figures.items()}


def _largest_difference(
  ours: job_lib.Measurement, theirs: job_lib.Measurement
) -> float:
  """Of the probabilities; 1 where one is missing."""
  mine, others = (
    {cot.prompt: cot.score_probs for cot in side.cots}
    for side in (ours, theirs)
  )
  return max(
    abs(p - q) if p is not None and q is not None else 1.0
    for prompt, probs in mine.items()
    for p, q in zip(probs, others[prompt], strict=True)
  )


def _compare(runner: pairs.Pairs, what: str, apart: float) -> None:
  if not apart <= MAX_DIFFERENCE:
    runner.failures.append(
      f'{what}: {apart:.2e} apart; at most {MAX_DIFFERENCE} is expected'
    )


# In this order: the one that needs data comes first, so that it is told at once
# where there are none.
PARTS: dict[str, Callable[[argparse.Namespace, pairs.Pairs], None]] = {
  'prediction': prediction,
  'training': training,
  'files': files,
}

if __name__ == '__main__':
  sys.exit(main())
