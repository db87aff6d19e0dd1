"""What the sampling benchmark is asked: options, and the job made of them."""

import argparse
import ast
from collections.abc import Sequence
import pathlib

from benchmarks import job as job_lib
from tract_jax import types
from tract_jax.data import records
from tract_jax.pipeline import build, data_source, row_settings, seed_model
from tract_jax.pipeline import config as config_lib

PARTS = ('one_cot', 'four_cots', 'decode', 'checks')
_RESULTS = pathlib.Path(__file__).resolve().parent / 'results' / 'sampling.json'


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the arguments.

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
  add('--data', default='../shared/data/mt_bench_eval.json', help='rows')
  add('--model', default='smollm2-135m-instruct', help='folder, or seed model')
  add(
    '--results',
    type=pathlib.Path,
    help='file to write',
    default=_RESULTS,
  )
  add('--parts', type=_parts, default=PARTS, help=','.join(PARTS))
  add('--num-prompts', type=int, default=64)
  add('--min-tokens', type=int, default=700, help='of a prompt')
  add('--max-tokens', type=int, default=1500, help='of a prompt')
  add('--max-new-tokens', type=int, default=128)
  _add_sides(parser)
  add('--decode-rows', type=int, default=16)
  add('--decode-steps', type=int, default=64)
  add('--check-rows', type=int, default=64)
  add('--greedy-prompts', type=int, default=32)
  add('--threads', type=int, default=2)
  add('--keep', default='', help="folder for the processes' files")
  return parser.parse_args(argv)


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
  add(
    '--ours',
    type=_setting,
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='a key of our configuration',
  )


def _parts(text: str) -> list[str]:
  parts = text.split(',')
  if unknown := set(parts) - set(PARTS):
    raise argparse.ArgumentTypeError(f'{unknown}: not of {", ".join(PARTS)}')
  return parts


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(',')]


def _setting(text: str) -> tuple[str, object]:
  key, _, value = text.partition('=')
  try:
    return key, ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return key, value


def make_job(args: argparse.Namespace) -> job_lib.Job:
  """Renders the prompts and finds the score tokens, for both sides.

  Args:
    args: of the command line.

  Returns:
    A Job of no kind.

  Raises:
    types.InputError: no model, no data, or too few prompts of these lengths.
  """
  folder = seed_model.seed_model_path(args.model)
  config = config_lib.merge({'name': 'benchmark', 'model.path': str(folder)})
  setup = build.build(config, as_judge=True)
  examples, _ = records.read_examples(
    data_source.find(args.data),
    setup.grid,
    role='judge',
    marker=config.score.marker,
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
  return job_lib.Job(
    kind='',
    model=str(folder),
    example_ids=names,
    prompts=[fitting[name] for name in names],
    marker=scores.marker,
    lead_ids=list(scores.lead_ids),
    prefix_ids=list(scores.prefix_ids),
    score_ids=list(scores.ids),
    eos_id=setup.tokenizer.eos_id,
    pad_id=setup.tokenizer.pad_id,
    max_new_tokens=args.max_new_tokens,
    num_threads=args.threads,
    sweep_rows=args.sweep,
    settings={'sampling.slots': args.slots, **dict(args.ours)},
    max_checks=args.check_rows,
  )
