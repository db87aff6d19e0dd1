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
import math
import pathlib
import sys
import tempfile

from benchmarks import job as job_lib
from benchmarks import options, pairs, results

# What rounding explains: of a probability, and of a loss, relative.
MAX_DIFFERENCE = 1e-4
_LOSSES = ('first_loss', 'last_loss')
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
    if job.lora_rank and job.has_pytorch:
      job = dataclasses.replace(job, adapter=str(runner.folder / name))
      runner.start('training_jax', dataclasses.replace(job, kind='start'))
    found = runner.run('training', job, args.pairs, _named(_RATE, name))
    versions = runner.rows[f'tokens_per_sec_{name}'].versions
    compiling = [m.details['compile_secs'] for m, _ in found]
    figures = {'compile_secs': sorted(compiling)[len(compiling) // 2]}
    both = [(ours.details, theirs.details) for ours, theirs in found if theirs]
    if both:
      figures |= _training_checks(runner, name, both)
    for figure, value in figures.items():
      row = results.checked(f'{figure}_{name}', value, len(found), versions)
      runner.add(row, job)


def _training_checks(
  runner: pairs.Pairs,
  name: str,
  both: Sequence[tuple[dict[str, float], dict[str, float]]],
) -> dict[str, float]:
  """Whether both sides trained the same, from the details of each pair."""
  figures = {}
  for what in _LOSSES:
    apart = job_lib.worst(
      abs(ours[what] / theirs[what] - 1) for ours, theirs in both
    )
    figures[f'check_{what}_difference'] = apart
    _compare(runner, f'{what} of {name}', apart)
  apart = max(
    abs(ours['num_trained'] - theirs['num_trained']) for ours, theirs in both
  )
  figures['check_trained_weights_difference'] = apart
  _compare(runner, f'trained weights of {name}', apart)
  moved = min(
    abs(side['last_loss'] / side['first_loss'] - 1)
    for pair in both
    for side in pair
  )
  if not moved > MAX_DIFFERENCE:
    runner.failures.append(
      f'losses of {name}: the last is {moved:.2e} from the first, so that'
      ' comparing it says nothing'
    )
  return figures


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
  worst = job_lib.worst(apart)
  runner.add(results.checked(name, worst, len(job.prompts), versions), job)
  _compare(runner, 'probabilities', worst)


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
  return job_lib.worst(
    abs(p - q) if p is not None and q is not None else math.nan
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
