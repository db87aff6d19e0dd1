"""The same training on both sides, update by update: do the numbers agree?

  make parity [ARGS='--steps=50 --models=tiny,smollm2-135m-instruct ...']

prints a table and writes its curves as an SVG (--plot).

One seed model, one start of the adapters, one order of batches, float32 on both
sides. Ours is the step that a run maps on its mesh; theirs is
benchmarks/pytorch, which knows masks and weights of a method by itself. Then
both score the same CoTs. Exit codes: 0 they agree, 1 they do not, 2 bad
arguments, no such model, or more steps than a schedule has.
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib
import sys
import tempfile

import jax
import numpy as np
import safetensors.numpy

from benchmarks import (
  options,
  pairs,
  parity_cases,
  parity_jax,
  parity_plot,
  parity_torch,
)
from tract_jax import types
from tract_jax.models import peft_adapter
from tract_jax.pipeline import seed_model

# The largest differences that rounding explains.
MAX_LOSS_DIFFERENCE = 1e-4
MAX_ADAPTER_DISTANCE = 1e-3
MAX_PREDICTION_DIFFERENCE = 1e-4
_PARTS = ('loss', 'ce', 'score_mse', 'grad_norm')
_LIMITS = dict.fromkeys(('loss', 'ce', 'score_mse'), MAX_LOSS_DIFFERENCE)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How far both sides are apart.

  Attributes:
    name: of the case.
    ours, theirs: {part: [steps]}.
    adapter_distances: [steps], norm of the adapters' difference over that of
      ours.
    prediction_difference: largest difference of an expected score.
  """

  name: str
  ours: dict[str, np.ndarray]
  theirs: dict[str, np.ndarray]
  adapter_distances: np.ndarray
  prediction_difference: float

  def differences(self, part: str) -> np.ndarray:
    """[steps] relative differences of a part of the loss."""
    ours, theirs = self.ours[part], self.theirs[part]
    return np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-12)

  @property
  def problems(self) -> list[str]:
    """What is further apart than rounding, a line each."""
    found = [
      (f'{part} of step {int(self.differences(part).argmax())}', worst, limit)
      for part, limit in _LIMITS.items()
      if not (worst := float(self.differences(part).max())) <= limit
    ]
    figures = (
      ('adapters', float(self.adapter_distances[-1]), MAX_ADAPTER_DISTANCE),
      ('predictions', self.prediction_difference, MAX_PREDICTION_DIFFERENCE),
    )
    found += [figure for figure in figures if not figure[1] <= figure[2]]
    return [
      f'{self.name}: {what}: {value:.2e} apart, more than {limit}'
      for what, value, limit in found
    ]


@pairs.refusing_bad_input
def main(argv: Sequence[str] | None = None) -> int:
  """Runs the comparison.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  args = _parse(argv)
  _work_on(args.platform)
  # On a TPU ours works alone; PyTorch stays where it can.
  device = 'cuda' if args.platform == 'cuda' else 'cpu'
  problems = []
  curves: dict[str, list[parity_plot.Panel]] = {}
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    for case in _cases(args.models, folder / 'models'):
      adapters = folder / case.name.replace('/', '_')
      found = compare(case, args.steps, adapters, device)
      print(table(found, args.every), flush=True)
      problems += found.problems
      curves[found.name] = panels(found)
      args.plot.parent.mkdir(parents=True, exist_ok=True)
      args.plot.write_text(parity_plot.svg(curves), encoding='utf-8')
  pairs.complain(*problems)
  return 1 if problems else 0


def compare(
  case: parity_cases.Case,
  num_steps: int,
  folder: pathlib.Path,
  device: str = 'cpu',
) -> Comparison:
  """Trains on both sides, and scores the same rows.

  Args:
    case: what is trained.
    num_steps: updates, of a schedule that may be longer but not shorter.
    folder: for the adapters.
    device: of PyTorch.

  Returns:
    The figures of every step.

  Raises:
    types.InputError: no such model, or a shorter schedule.
  """
  side = parity_jax.Side(case, folder)
  if num_steps > side.num_steps:
    raise types.InputError(
      f'--steps: {num_steps}, but the schedule of {case.name} has'
      f' {side.num_steps}'
    )
  other = parity_torch.Side(case, side, device)
  ours, theirs, distances = [], [], []
  for update in side.updates(num_steps):
    ours.append(update)
    theirs.append(other.step(update.batch))
    distances.append(_distance(update.adapter, other.adapter()))
  grid = np.asarray(side.score_values)
  expected = other.score_probs(side.sequences) @ grid
  return Comparison(
    name=case.name,
    ours=_columns(ours),
    theirs=_columns(theirs),
    adapter_distances=np.array(distances),
    prediction_difference=float(
      np.abs(side.score_probs() @ grid - expected).max()
    ),
  )


def panels(found: Comparison) -> list[parity_plot.Panel]:
  """The curves of a comparison, by step."""
  sides = [
    parity_plot.Panel(
      part, {'ours': found.ours[part], 'theirs': found.theirs[part]}
    )
    for part in _PARTS
  ]
  apart = parity_plot.Panel(
    f'adapters apart, limit {MAX_ADAPTER_DISTANCE:g} at the end',
    {'apart': found.adapter_distances},
    is_log=True,
    limit=MAX_ADAPTER_DISTANCE,
  )
  return [*sides, apart]


def table(found: Comparison, every: int) -> str:
  """Some steps' figures, and the largest differences, as text."""
  lines = [
    f'{found.name}',
    f'{"step":>6}'
    + ''.join(f'{part:>12}{"theirs":>12}{"apart":>9}' for part in _PARTS)
    + f'{"adapters":>10}',
  ]
  num_steps = len(found.adapter_distances)
  for step in range(num_steps):
    if step % every and step != num_steps - 1:
      continue
    cells = [
      f'{found.ours[part][step]:12.6f}{found.theirs[part][step]:12.6f}'
      f'{found.differences(part)[step]:9.1e}'
      for part in _PARTS
    ]
    distance = found.adapter_distances[step]
    lines.append(f'{step:6}{"".join(cells)}{distance:10.1e}')
  worst = ', '.join(
    f'{part} {found.differences(part).max():.1e}' for part in _PARTS
  )
  lines.append(
    f'  most of {num_steps} steps: {worst}; predictions'
    f' {found.prediction_difference:.1e}'
  )
  return '\n'.join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='make parity', description='Trains here and with PyTorch.'
  )
  add = parser.add_argument
  add(
    '--models',
    type=lambda text: text.split(','),
    default=['tiny', 'smollm2-135m-instruct'],
    help='"tiny", folders or seed models, with commas',
  )
  add('--steps', type=options.positive, default=50)
  add(
    '--plot',
    type=pathlib.Path,
    default=pathlib.Path('parity.svg'),
    help='SVG file to write',
  )
  add(
    '--every',
    type=options.positive,
    default=10,
    help='steps between two lines',
  )
  options.add_platform(
    parser, 'where both sides work; for a TPU theirs stays on the CPU'
  )
  return parser.parse_args(argv)


def _work_on(platform: str) -> None:
  """Has JAX work there as in the processes of a benchmark (job.start)."""
  # PyTorch needs memory of the same GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  jax.config.update('jax_platforms', platform)
  if platform != 'cpu':
    jax.config.update('jax_default_matmul_precision', 'highest')


def _cases(
  models: Sequence[str], folder: pathlib.Path
) -> Iterator[parity_cases.Case]:
  for model in models:
    if model == 'tiny':
      yield from parity_cases.tiny_cases(folder)
    else:
      yield parity_cases.real_case(seed_model.seed_model_path(model))


def _distance(folder: pathlib.Path, theirs: dict[str, np.ndarray]) -> float:
  """Norm of the difference of two adapters over that of ours."""
  ours = safetensors.numpy.load_file(folder / peft_adapter.WEIGHTS_FILE)
  if ours.keys() != theirs.keys():
    raise ValueError(f'other matrices: {sorted(ours.keys() ^ theirs.keys())}')
  apart = sum(np.square(ours[name] - theirs[name]).sum() for name in ours)
  size = sum(np.square(matrix).sum() for matrix in ours.values())
  return float(np.sqrt(apart / size))


def _columns(figures: Sequence[object]) -> dict[str, np.ndarray]:
  return {
    part: np.array([getattr(of_step, part) for of_step in figures])
    for part in _PARTS
  }


if __name__ == '__main__':
  sys.exit(main())
