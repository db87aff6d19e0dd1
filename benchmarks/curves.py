"""How speed and memory change with sizes: training, sampling, data.

  make bench-curves [ARGS='--only=slots --slots=1,2 --sides=both ...']

A row of results is called figure.curve.size, as "tokens_per_sec.length.256".
docs/benchmarks.md says what is measured and how. Exit codes: 0 done, 2 no
model.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import tempfile

from benchmarks import job as job_lib
from benchmarks import options, pairs, results
from tract_jax.data import synthetic

# A number of a Measurement; None where that has none.
_Figure = Callable[[job_lib.Measurement], float | None]
_BOTH: dict[str, pairs.Figure] = {
  'tokens_per_sec': lambda m: m.tokens_per_sec,
  'peak_memory_bytes': lambda m: m.peak_memory_bytes,
}
_STEPS_OF_DATA = ('read', 'encode', 'cached', 'pack', 'order')


@pairs.refusing_bad_input
def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  args = options.parse_curves(argv, tuple(CURVES))
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(args.keep or scratch)
    runner = pairs.Pairs(args.results, folder)
    for name in (name for name in CURVES if name in args.only):
      CURVES[name](args, runner, folder)
  print(results.table([*runner.rows.values()]), flush=True)
  return 0


def length(args: argparse.Namespace, runner: pairs.Pairs, _) -> None:
  """Updates of LoRA on rows of more and more tokens."""
  job = options.training_jobs(args)['lora_prompts']
  for size in args.lengths:
    job = dataclasses.replace(
      job, length=size, num_targets=min(args.targets, size)
    )
    _compare(args, runner, 'training', job, f'length.{size}')


def batch(args: argparse.Namespace, runner: pairs.Pairs, _) -> None:
  """Updates of LoRA on more and more rows."""
  job = options.training_jobs(args)['lora_prompts']
  for size in args.batches:
    job = dataclasses.replace(job, num_rows=size)
    _compare(args, runner, 'training', job, f'batch.{size}')


def slots(
  args: argparse.Namespace, runner: pairs.Pairs, folder: pathlib.Path
) -> None:
  """CoTs sampled in more and more slots, one in each."""
  rows = synthetic.make_rows(max(args.slots), seed=0, split='test')
  path = folder / 'prompts.json'
  path.write_text(json.dumps(rows), encoding='utf-8')
  fields = {'data': str(path), 'num_prompts': len(rows)}
  fields |= {'min_tokens': 1, 'max_tokens': sys.maxsize}
  whole = options.make_job(argparse.Namespace(**vars(args) | fields))
  for size in args.slots:
    job = dataclasses.replace(
      whole,
      kind='sample',
      example_ids=whole.example_ids[:size],
      prompts=whole.prompts[:size],
      max_new_tokens=args.new_tokens,
      generate_rows=size,
      score_rows=size,
      settings={'sampling.slots': size, **whole.settings},
    )
    _compare(args, runner, 'sampling', job, f'slots.{size}')


def data(args: argparse.Namespace, runner: pairs.Pairs, _) -> None:
  """Steps before the first update, on more and more rows."""
  for size in args.data_rows:
    job = job_lib.DataJob(
      kind='data',
      model=options.model_folder(args),
      num_rows=size,
      num_threads=args.threads,
      platform=args.platform,
      settings=dict(args.ours),
    )
    figures: dict[str, _Figure] = {
      f'{step}_rows_per_sec': functools.partial(_rows_per_sec, size, step)
      for step in _STEPS_OF_DATA
    }
    figures['peak_memory_bytes'] = _BOTH['peak_memory_bytes']
    _measure(args, runner, 'data', job, figures, f'data.{size}')


def _rows_per_sec(
  num_rows: int, step: str, measured: job_lib.Measurement
) -> float | None:
  secs = measured.details.get(f'{step}_secs')
  return num_rows / secs if secs else None


def _compare(
  args: argparse.Namespace,
  runner: pairs.Pairs,
  side: str,
  job: job_lib.Job,
  point: str,
) -> None:
  """A point of both sides, or of ours alone."""
  if args.sides == 'both':
    figures = {f'{name}.{point}': get for name, get in _BOTH.items()}
    runner.run(side, job, args.runs, figures)
  else:
    _measure(args, runner, side, job, _BOTH, point)


def _measure(
  args: argparse.Namespace,
  runner: pairs.Pairs,
  side: str,
  job: job_lib.Job,
  figures: Mapping[str, _Figure],
  point: str,
) -> None:
  """A point of ours: medians over the processes."""
  found = [
    runner.start(f'{side}_jax', dataclasses.replace(job, seed=seed))
    for seed in range(args.runs)
  ]
  for name, get in figures.items():
    values = [v for v in map(get, found) if v is not None]
    if values:
      median = statistics.median(values)
      row = results.checked(
        f'{name}.{point}', median, len(values), found[-1].versions
      )
      runner.add(row, job, found)


CURVES: dict[
  str, Callable[[argparse.Namespace, pairs.Pairs, pathlib.Path], None]
] = {'length': length, 'batch': batch, 'slots': slots, 'data': data}

if __name__ == '__main__':
  sys.exit(main())
