"""Reads the scores behind the CoTs of a prediction file anew, with PyTorch.

  python -m benchmarks.rescore --model=FOLDER --benchmark=mt_bench.json \
    --predictions=RUN/predictions/tract/mt_bench.jsonl --out=theirs.jsonl

For each text of the file, tokenised again, `benchmarks/pytorch` gives the
distribution over the scores (CoT-RAIL, TRACT's eq. 3). What is written are rows
of the same form, which --config.evaluation.others=pytorch/mt_bench=theirs.jsonl
puts beside ours (docs/formats.md). Exit codes: 0 done, 2 bad arguments or data.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import json
import sys

from etils import epath
import numpy as np
import torch

from benchmarks import options, pairs
from benchmarks.pytorch import judge
from tract_jax import types
from tract_jax.pipeline import (
  build,
  prediction_files,
  read_data,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.text import score_tokens
from tract_jax.text import tokenizer as tokenizer_lib


@pairs.refusing_bad_input
def main(argv: Sequence[str] | None = None) -> int:
  """Writes the file.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  args = _parse(argv)
  options.stay_on_cpu()
  settings = {
    'name': 'rescore',
    'model.path': args.model,
    'data.benchmarks': f'rows={args.benchmark}',
    **dict(args.ours),
  }
  if args.adapter and not epath.Path(args.adapter).is_dir():
    raise types.InputError(f'--adapter: {args.adapter}: no such folder')
  setup = build.build(config_lib.merge(settings), as_judge=True)
  data = read_data.read_data(setup, as_judge=True)
  examples = {e.example_id: e for e in data.benchmarks['rows']}
  rows = _of_seed(args.predictions, args.seed)
  with_cot = any(any(row.cots) for row in rows)
  scores = setup.cot_scores if with_cot else setup.bare_scores
  if any(len(ids) > 1 for ids in scores.sequences):
    raise types.InputError('scores of several tokens are not read here')
  sequences = [_sequences(setup, examples, row, scores) for row in rows]
  model = judge.load(args.model, args.adapter or None, args.device)
  grid = np.array(setup.grid.values)
  lines = []
  for row, of_row in zip(rows, sequences, strict=True):
    probs = _probs(model, of_row, scores.ids)
    fields = dataclasses.asdict(_rescored(row, probs, grid))
    lines.append(json.dumps(fields, ensure_ascii=False, allow_nan=False) + '\n')
  epath.Path(args.out).write_text(''.join(lines))
  pairs.say(f'{args.out}: {len(rows)} rows')
  return 0


def _of_seed(path: str, seed: int | None) -> list[types.Prediction]:
  """The file's rows of one seed: each seed has trained a model of its own."""
  rows = prediction_files.read_predictions(epath.Path(path))
  seeds = sorted({row.seed for row in rows})
  names = ', '.join(map(str, seeds))
  if seed is None and len(seeds) > 1:
    raise types.InputError(
      f'{path}: has rows of seeds {names}, and the model is that of one: say'
      ' which by --seed'
    )
  if seed is not None and seed not in seeds:
    raise types.InputError(f'--seed: {path} has seeds {names}, not {seed}')
  return [row for row in rows if seed in (None, row.seed)]


def _sequences(
  setup: build.Setup,
  examples: Mapping[str, types.Example],
  row: types.Prediction,
  scores: score_tokens.ScoreTokens,
) -> list[np.ndarray | None]:
  """Tokens up to the score, for each CoT; None where ours has no score."""
  if row.example_id not in examples:
    raise types.InputError(
      f'example {row.example_id!r} is not a row of the benchmark'
    )
  prompt = setup.tokenizer.prompt_ids(examples[row.example_id].prompt)
  return [
    None
    if ours is None
    else np.concatenate([prompt, before_score(setup.tokenizer, text, scores)])
    for text, ours in zip(row.cots, row.distributions, strict=True)
  ]


def before_score(
  tokenizer: tokenizer_lib.Tokenizer,
  text: str,
  scores: score_tokens.ScoreTokens,
) -> np.ndarray:
  """Tokens between a prompt and the score.

  Args:
    tokenizer: the tokenizer.
    text: a CoT that the fixed words end; "" for bare scores.
    scores: the score tokens.

  Returns:
    [l] int32.

  Raises:
    types.InputError: a text without the fixed words.
  """
  if not scores.marker:
    return np.array(scores.lead_ids, np.int32)
  cot, marker, _ = text.partition(scores.marker)
  if not marker:
    raise types.InputError(f'a CoT without {scores.marker!r}: {text[-60:]!r}')
  words = tokenizer.encode(cot + marker)[0]
  return np.concatenate([words, scores.prefix_ids]).astype(np.int32)


def _probs(
  model: torch.nn.Module,
  sequences: Sequence[np.ndarray | None],
  score_ids: Sequence[int],
) -> list[list[float] | None]:
  return [
    None
    if tokens is None
    else judge.score_probs(model, [tokens], score_ids)[0].tolist()
    for tokens in sequences
  ]


def _rescored(
  row: types.Prediction, probs: list[list[float] | None], grid: np.ndarray
) -> types.Prediction:
  """The row with these distributions, and what they make of it."""
  known = [p for p in probs if p is not None]
  mean = float(np.mean(known, axis=0) @ grid) if known else None
  return dataclasses.replace(
    row,
    distributions=probs,
    # Which number PyTorch would write is not asked.
    decoded=[],
    prediction=mean,
    invalid_reason=None if known else row.invalid_reason or 'no score',
  )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.rescore',
    description="Reads a prediction file's scores anew, with PyTorch.",
  )
  add = parser.add_argument
  add('--model', required=True, help='Hugging Face folder')
  add('--adapter', default='', help='PEFT folder of an adapter on it')
  add('--benchmark', required=True, help='the rows that were predicted')
  add('--predictions', required=True, help='predictions/METHOD/NAME.jsonl')
  add('--seed', type=int, help='whose rows, where a file has several seeds')
  add('--out', required=True, help='file to write')
  add('--device', choices=('cpu', 'cuda'), default='cpu')
  options.add_ours(parser)
  return parser.parse_args(argv)


if __name__ == '__main__':
  sys.exit(main())
