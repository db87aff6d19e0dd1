"""What the benchmarks are asked: options, and the jobs made of them."""

import argparse
import ast
from collections.abc import Callable, Sequence
import dataclasses
import pathlib

import jax

from benchmarks import job as job_lib
from tract_jax import types
from tract_jax.data import records
from tract_jax.pipeline import build, data_source, row_settings, seed_model
from tract_jax.pipeline import config as config_lib

PARTS = ('one_cot', 'four_cots', 'decode', 'checks')
RESULTS = pathlib.Path(__file__).resolve().parent / 'results'
# Adapters of the training benchmark, as in the paper.
_LORA_RANK = 8
# What moves the loss within a few updates, and rounding apart little.
_LR = {'full': 1e-5, 'lora': 1e-4}
# Of the curves, by option.
_SIZES = {
  'lengths': [256, 512, 1024, 2048, 4096],
  'batches': [1, 2, 4, 8, 16],
  'slots': [1, 2, 4, 8, 16, 32, 64],
  'data-rows': [1000, 3000, 10_000, 30_000, 100_000],
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the arguments of the sampling benchmark.

  Args:
    argv: without the program's name; those of the process if None.

  Returns:
    The options.

  Raises:
    SystemExit: an unknown option or a bad value, which is told.
  """
  parser = argparse.ArgumentParser(
    prog='make bench-sampling',
    description='Samples CoTs here and with PyTorch.',
  )
  add = parser.add_argument
  _add_prompts(parser, num_prompts=64)
  add(
    '--results',
    type=pathlib.Path,
    help='file to write',
    default=RESULTS / 'sampling.json',
  )
  add('--parts', type=names_of(PARTS), default=PARTS, help=','.join(PARTS))
  add('--max-new-tokens', type=int, default=128)
  _add_sides(parser)
  add('--decode-rows', type=int, default=16)
  add('--decode-steps', type=int, default=64)
  add('--check-rows', type=int, default=64)
  add('--greedy-prompts', type=int, default=32)
  return _parsed(parser, argv, free=('parts', 'runs', 'runs_4_cots'))


def parse_bench(
  argv: Sequence[str] | None, parts: Sequence[str]
) -> argparse.Namespace:
  """Reads the arguments of `make bench`.

  Args:
    argv: without the program's name; those of the process if None.
    parts: that there are.

  Returns:
    The options.

  Raises:
    SystemExit: an unknown option or a bad value, which is told.
  """
  parser = argparse.ArgumentParser(
    prog='make bench',
    description='Trains, predicts, loads and saves here and with PyTorch.',
  )
  add = parser.add_argument
  _add_prompts(parser, num_prompts=32)
  add('--only', type=names_of(parts), default=parts, help=','.join(parts))
  add(
    '--results',
    type=pathlib.Path,
    help='folder to write to, a file for each part',
    default=RESULTS,
  )
  add('--pairs', type=int, default=3, help='of processes')
  add('--steps', type=int, default=5, help='updates that are timed')
  add('--rows', type=int, default=4, help='of an update')
  add('--length', type=int, default=512, help='tokens of a row')
  add('--targets', type=int, default=128, help='of a row with a prompt')
  add(
    '--their-rows',
    type=_numbers,
    default=[4, 8, 16],
    help='batch sizes of prediction to try on their side',
  )
  return _parsed(parser, argv, free=('only', 'pairs'))


def parse_curves(
  argv: Sequence[str] | None, curves: Sequence[str]
) -> argparse.Namespace:
  """Reads the arguments of `make bench-curves`.

  Args:
    argv: without the program's name; those of the process if None.
    curves: that there are.

  Returns:
    The options.

  Raises:
    SystemExit: an unknown option or a bad value, which is told.
  """
  parser = argparse.ArgumentParser(
    prog='make bench-curves',
    description='Measures how speed and memory change with sizes.',
  )
  add = parser.add_argument
  _add_processes(parser)
  add('--only', type=names_of(curves), default=curves, help=','.join(curves))
  add(
    '--results',
    type=pathlib.Path,
    help='file to write',
    default=RESULTS / 'curves.json',
  )
  add('--sides', choices=('ours', 'both'), default='ours')
  add('--runs', type=int, default=1, help='processes of each point')
  add('--steps', type=int, default=3, help='updates that are timed')
  add('--rows', type=int, default=1, help='of an update, where lengths vary')
  add('--length', type=int, default=256, help='of a row, where rows vary')
  add('--targets', type=int, default=128, help='of a row')
  add('--new-tokens', type=int, default=64, help='of a CoT')
  for name, sizes in _SIZES.items():
    add(f'--{name}', type=_numbers, default=sizes, metavar='N,N')
  # Which sizes there are is no change to the work of each.
  names = [name.replace('-', '_') for name in _SIZES]
  return _parsed(parser, argv, free=('only', 'sides', 'runs', *names))


def _parsed(
  parser: argparse.ArgumentParser,
  argv: Sequence[str] | None,
  free: Sequence[str],
) -> argparse.Namespace:
  """The options, unless other work than the published would take its place.

  Args:
    parser: has --results.
    argv: as for `parse`.
    free: options that do not change the work of a row, besides those of all
      benchmarks.
  """
  args = parser.parse_args(argv)
  changed = [
    f'--{name.replace("_", "-")}'
    for name, value in vars(args).items()
    if name not in {*free, 'results', 'keep', 'platform'}
    and _work(name, value) != _work(name, parser.get_default(name))
  ]
  if changed and args.results.resolve() == parser.get_default('results'):
    parser.error(
      f'{", ".join(changed)}: other work than that of the published results,'
      f' {args.results}; say by --results where its rows should go'
    )
  return args


def _work(name: str, value: object) -> object:
  """What an option says of the work: of data the file, not where it lies."""
  return pathlib.PurePath(str(value)).name if name == 'data' else value


def _add_prompts(parser: argparse.ArgumentParser, num_prompts: int) -> None:
  """The model, the prompts, and how processes run."""
  add = parser.add_argument
  add('--data', default='../shared/data/mt_bench_eval.json', help='rows')
  add('--num-prompts', type=int, default=num_prompts)
  add('--min-tokens', type=int, default=700, help='of a prompt')
  add('--max-tokens', type=int, default=1500, help='of a prompt')
  _add_processes(parser)


def _add_processes(parser: argparse.ArgumentParser) -> None:
  """The model, and how processes run."""
  add = parser.add_argument
  add('--model', default='smollm2-135m-instruct', help='folder, or seed model')
  add('--threads', type=int, default=2)
  add_platform(parser, 'where both sides work; on a TPU ours does alone')
  add('--keep', default='', help="folder for the processes' files")
  add_ours(parser)


def add_platform(parser: argparse.ArgumentParser, text: str) -> None:
  """Where both sides work, with its help."""
  parser.add_argument(
    '--platform', choices=job_lib.PLATFORMS, default='cpu', help=text
  )


def add_ours(parser: argparse.ArgumentParser) -> None:
  """Keys of our configuration."""
  parser.add_argument(
    '--ours',
    type=_setting,
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='a key of our configuration',
  )


def _add_sides(parser: argparse.ArgumentParser) -> None:
  """How often both sides run, and how each does."""
  add = parser.add_argument
  add('--runs', type=int, default=3, help='pairs')
  add('--runs-4-cots', type=int, default=1, help='pairs with four CoTs')
  add(
    '--their-batch',
    type=_numbers,
    default=[],
    metavar='GENERATE[,SCORE]',
    help='rows; skips the sweep',
  )
  add(
    '--sweep',
    type=_numbers,
    default=[1, 2, 4, 8, 16, 32],
    help='batch sizes to try on their side',
  )
  add('--slots', type=int, default=12, help='of our engine')
  add('--slots-4-cots', type=int, default=14, help='with four CoTs')


def names_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
  """The type of an option that takes some of these names, with commas."""

  def parse_names(text: str) -> list[str]:
    names = text.split(',')
    if unknown := set(names) - set(allowed):
      raise argparse.ArgumentTypeError(
        f'{unknown}: not of {", ".join(allowed)}'
      )
    return names

  return parse_names


def positive(text: str) -> int:
  """The type of an option that takes a number from 1 on."""
  if (number := int(text)) < 1:
    raise argparse.ArgumentTypeError(f'{number} is below 1')
  return number


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(',')]


def _setting(text: str) -> tuple[str, object]:
  key, _, value = text.partition('=')
  try:
    return key, ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return key, value


def sampling_job(args: argparse.Namespace) -> job_lib.SamplingJob:
  """The job of the sampling benchmark; arguments as for `make_job`."""
  job = make_job(args)
  return dataclasses.replace(
    job,
    max_new_tokens=args.max_new_tokens,
    sweep_rows=args.sweep,
    settings={'sampling.slots': args.slots, **job.settings},
    max_checks=args.check_rows,
  )


def make_job(args: argparse.Namespace) -> job_lib.SamplingJob:
  """Renders the prompts and finds the score tokens, for both sides.

  Args:
    args: of the command line.

  Returns:
    A job of no kind.

  Raises:
    types.InputError: no model, no data, or too few prompts of these lengths.
  """
  setup, folder = _setup(args)
  examples, _ = records.read_examples(
    data_source.find(args.data),
    setup.grid,
    role='judge',
    marker=setup.config.score.marker,
    row_format=row_settings.row_format(setup.config),
    name=args.data,
  )
  prompts = {
    e.example_id: setup.tokenizer.prompt_ids(e.prompt) for e in examples
  }
  fitting = {
    name: ids.tolist()
    for name, ids in prompts.items()
    if args.min_tokens <= len(ids) <= args.max_tokens
  }
  if len(fitting) < args.num_prompts:
    raise types.InputError(
      f'{args.data}: {len(fitting)} prompts have {args.min_tokens} to'
      f' {args.max_tokens} tokens, fewer than --num-prompts={args.num_prompts}'
    )
  names = list(fitting)[: args.num_prompts]
  scores = setup.cot_scores
  return job_lib.SamplingJob(
    kind='',
    model=folder,
    example_ids=names,
    prompts=[fitting[name] for name in names],
    marker=scores.marker,
    lead_ids=list(scores.lead_ids),
    prefix_ids=list(scores.prefix_ids),
    score_ids=list(scores.ids),
    eos_id=setup.tokenizer.eos_id,
    pad_id=setup.tokenizer.pad_id,
    num_threads=args.threads,
    platform=args.platform,
    settings=dict(args.ours),
  )


def training_jobs(args: argparse.Namespace) -> dict[str, job_lib.TrainingJob]:
  """Updates of full and LoRA training, with prompts and without.

  Args:
    args: of the command line.

  Returns:
    {name: job of kind "train"}.

  Raises:
    types.InputError: no model.
  """
  setup, folder = _setup(args)
  return {
    f'{training}_{rows}': job_lib.TrainingJob(
      kind='train',
      model=folder,
      num_rows=args.rows,
      length=args.length,
      num_targets=num_targets,
      lora_rank=lora_rank,
      num_steps=args.steps,
      vocab_size=setup.tokenizer.vocab_size,
      score_ids=list(setup.cot_scores.ids),
      score_values=list(setup.grid.values),
      lr=_LR[training],
      num_threads=args.threads,
      platform=args.platform,
      settings=dict(args.ours),
    )
    for training, lora_rank in (('full', 0), ('lora', _LORA_RANK))
    for rows, num_targets in (('prompts', args.targets), ('all', args.length))
  }


def model_folder(args: argparse.Namespace) -> str:
  """The Hugging Face folder of the model.

  Raises:
    types.InputError: there is none.
  """
  return str(seed_model.seed_model_path(args.model))


def stay_on_cpu() -> None:
  """Leaves accelerators to the processes that are measured."""
  jax.config.update('jax_platforms', 'cpu')


def _setup(args: argparse.Namespace) -> tuple[build.Setup, str]:
  """Tokenizer and scores of the model, and its folder."""
  stay_on_cpu()
  folder = model_folder(args)
  config = config_lib.merge({'name': 'benchmark', 'model.path': folder})
  return build.build(config, as_judge=True), folder
