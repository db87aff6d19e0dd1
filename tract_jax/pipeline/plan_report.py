"""A plan as JSON, and as text for a person."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
from typing import Any

import ml_collections

from tract_jax.parallel import chips, hlo_cost
from tract_jax.pipeline import plan_figures, plan_programs, plan_trials

_GIB = 2**30
# What compiling ahead of time cannot see.
_NOT_SEEN = (
  'seconds are estimates for comparing programs that were compiled alike, not '
  'promises: +-15 % where products rule, up to 2 times too slow where memory '
  'rules',
  'collectives are taken to go at the speed of one ring, in no time where '
  'other work is done beside them',
  f'kernels are taken to reach {hlo_cost.KERNEL_EFFICIENCY:.0%} of the peak',
  'loops that end as the data says are counted for slots of the assumed '
  'lengths',
  "the host's work, start, compilation, checkpoints, waiting for data, slots "
  'without work, validation rows and predictions are not counted',
  'memory beside the program: fragmentation, and what the run keeps from one '
  'program to the next; leave 1 GiB',
)
_LABEL_WIDTH, _WIDTH = 24, 15


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A program as asked for and, where that does not fit, what was tried.

  Attributes:
    figures: of the program.
    tried: (changes, figures) of lighter programs; the last one fits, or none.
  """

  figures: plan_figures.Figures
  tried: tuple[tuple[plan_trials.Changes, plan_figures.Figures], ...]

  @property
  def fitting(
    self,
  ) -> tuple[plan_trials.Changes, plan_figures.Figures] | None:
    """The lighter program that fits; None where none was found or needed."""
    return self.tried[-1] if self.tried and self.tried[-1][1].fits else None

  @property
  def best(self) -> plan_figures.Figures | None:
    """What is planned with: the program itself, or the one that fits."""
    if self.figures.fits:
      return self.figures
    return self.fitting[1] if self.fitting else None


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a plan is about.

  Attributes:
    config: that is planned.
    asked: as it was given, before its batch was made one that can be planned.
    refusal: why a run of `asked` is refused on the slice; None where it is not.
    topology: of the slice.
    method: whose programs these are.
    num_hosts: of the slice.
    hours: of plan_hours.
  """

  config: ml_collections.ConfigDict
  asked: ml_collections.ConfigDict
  refusal: str | None
  topology: chips.Topology
  method: str
  num_hosts: int
  hours: dict[str, float | None]


def as_json(facts: Facts, outcomes: Sequence[Outcome]) -> dict[str, Any]:
  """The content of plan.json.

  Args:
    facts: of the plan.
    outcomes: of its programs.

  Returns:
    What json can write; a number that does not exist is None.
  """
  chip = facts.topology.chip
  return {
    'topology': facts.topology.name,
    'chip_bytes': chip.memory_bytes,
    'num_chips': facts.topology.num_chips,
    'num_hosts': facts.num_hosts,
    'model': facts.config.model.path or 'from scratch',
    'lora_rank': facts.config.model.lora_rank,
    'method': facts.method,
    'refused': facts.refusal,
    'asked_batch_size': facts.asked.train.batch_size,
    'asked_micro_batch_size': facts.asked.train.micro_batch_size,
    'batch_size': facts.config.train.batch_size,
    'micro_batch_size': facts.config.train.micro_batch_size,
    'programs': [_program(outcome, chip) for outcome in outcomes],
    'hours_100k_rows': facts.hours['total'],
    'hours': facts.hours,
    'assumptions': _assumptions(facts),
    'not_seen': list(_NOT_SEEN),
  }


def as_text(facts: Facts, outcomes: Sequence[Outcome]) -> str:
  """The plan for a person.

  Args:
    facts: of the plan.
    outcomes: of its programs.

  Returns:
    Lines of text.
  """
  return '\n'.join(_lines(facts, outcomes)) + '\n'


def one_line(figures: plan_figures.Figures) -> str:
  """A program's outcome in one line.

  Args:
    figures: of the program.

  Returns:
    Whether it fits, its peak and its estimate.
  """
  peak = f'{_gib(figures.peak_bytes)} GiB of a chip at most'
  if figures.problem:
    return f'{figures.name} does not compile ({peak}): {figures.problem}'
  fits = 'fits' if figures.fits else 'does not fit'
  return (
    f'{figures.name} {fits}: {peak}, {figures.step_secs:.4g} s a step,'
    f' compiled in {figures.compile_secs:.0f} s'
  )


def _program(outcome: Outcome, chip: chips.Chip) -> dict[str, Any]:
  figures = outcome.figures
  fitting = outcome.fitting
  return {
    **_figures(figures, chip),
    'does_not_fit': [
      {'changes': changes, 'peak_bytes_per_chip': tried.peak_bytes}
      for changes, tried in outcome.tried
      if not tried.fits
    ],
    'would_fit': fitting
    and {'changes': fitting[0], **_figures(fitting[1], chip)},
  }


def _figures(figures: plan_figures.Figures, chip: chips.Chip) -> dict[str, Any]:
  """A program's figures as plan.json names them."""
  known = figures.problem == ''

  def of_compiled(value):
    return value if known else None

  return {
    'name': figures.name,
    'fits': figures.fits,
    'problem': figures.problem or None,
    'peak_bytes_per_chip': figures.peak_bytes,
    'argument_bytes_per_chip': of_compiled(figures.argument_bytes),
    'temporary_bytes_per_chip': of_compiled(figures.temporary_bytes),
    'alias_bytes_per_chip': of_compiled(figures.alias_bytes),
    'resident_bytes_per_chip': figures.resident_bytes,
    'num_rows': figures.num_rows,
    'num_tokens': figures.num_tokens,
    'num_chips': figures.num_chips,
    'flops_per_chip': of_compiled(figures.flops),
    'ideal_flops_per_chip': figures.ideal_flops,
    'flops_ratio': figures.flops_ratio,
    'moved_bytes_per_chip': of_compiled(figures.moved_bytes),
    'ideal_bytes_per_chip': figures.ideal_bytes or None,
    'copied_bytes_per_chip': of_compiled(figures.copied_bytes),
    'collective_bytes': figures.collective_bytes,
    'estimated_step_secs': figures.step_secs,
    'compiler_secs': of_compiled(figures.compiler_secs),
    'roofline_secs': of_compiled(figures.roofline_secs),
    'collective_secs': of_compiled(figures.traffic_secs),
    'estimated_mfu': figures.mfu(chip),
    'tokens_per_second_per_chip': figures.tokens_per_second_per_chip,
    'kernels': figures.kernels,
    'largest': list(figures.largest),
    'compile_secs': figures.compile_secs,
  }


def _assumptions(facts: Facts) -> dict[str, Any]:
  config = facts.config
  return {
    'prompt_tokens': config.plan.prompt_tokens,
    'cot_tokens': config.plan.cot_tokens,
    'row_tokens': plan_programs.row_length(config),
    'examples_per_row': plan_programs.examples_per_row(config),
    'num_self_cots': config.sampling.num_self_cots,
    'num_epochs': config.train.num_epochs,
    'lambda_candidates': list(config.train.lambda_candidates),
    'xla_flags': os.environ.get('LIBTPU_INIT_ARGS', ''),
    'score_tokens': 'placeholders: no tokenizer is read',
  }


def _lines(facts: Facts, outcomes: Sequence[Outcome]) -> Iterator[str]:
  topology, config = facts.topology, facts.config
  how = f'LoRA {config.model.lora_rank}' if config.model.lora_rank else 'full'
  yield (
    f'plan: {config.model.path or "model from scratch"}, {how}, {facts.method},'
    f' on {topology.name}: {topology.num_chips} chips of'
    f' {_gib(topology.chip.memory_bytes)} GiB, {facts.num_hosts} hosts'
  )
  train = config.train
  micro = train.micro_batch_size or train.batch_size
  yield (
    f'an update: {train.batch_size} rows of {plan_programs.row_length(config)}'
    f' tokens, {micro} at a time'
  )
  if facts.refusal:
    yield (
      f'a run of config.train.batch_size={facts.asked.train.batch_size} is'
      f' refused: {facts.refusal}; planned with {train.batch_size}'
    )
  yield ''
  yield from _table(outcomes, topology.chip)
  yield ''
  for outcome in outcomes:
    yield from _notes(outcome)
  for part, value in facts.hours.items():
    shown = 'unknown' if value is None else f'{value:,.1f} hours'
    yield f'100,000 rows, {part}: {shown}'
  yield ''
  yield 'assumed: ' + ', '.join(
    f'{name} {value}' for name, value in _assumptions(facts).items() if value
  )
  for line in _NOT_SEEN:
    yield f'not seen: {line}'


def _notes(outcome: Outcome) -> Iterator[str]:
  figures = outcome.figures
  name = figures.name
  if figures.problem:
    yield f'{name}: {figures.problem}'
  for changes, tried in outcome.tried:
    yield (
      f'{name}: {"fits" if tried.fits else "does not fit"} with'
      f' {_shown(changes)}: {_gib(tried.peak_bytes)} GiB'
    )
  if outcome.tried and not outcome.fitting:
    yield f'{name}: nothing that was tried fits'


def _table(outcomes: Sequence[Outcome], chip: chips.Chip) -> Iterator[str]:
  """A column for each program, and beside it one for what would fit."""
  columns: list[tuple[str, plan_figures.Figures]] = []
  for outcome in outcomes:
    columns.append((outcome.figures.name, outcome.figures))
    if outcome.fitting:
      columns.append(('would fit', outcome.fitting[1]))

  def row(label: str, cell: Callable[[plan_figures.Figures], str]) -> str:
    cells = [cell(figures) for _, figures in columns]
    return f'{label:<{_LABEL_WIDTH}}' + ''.join(f'{c:>{_WIDTH}}' for c in cells)

  def compiled(label: str, cell: Callable[[plan_figures.Figures], str]) -> str:
    return row(label, lambda f: '-' if f.problem else cell(f))

  headings = ''.join(f'{name:>{_WIDTH}}' for name, _ in columns)
  yield ' ' * _LABEL_WIDTH + headings
  yield row('rows', lambda f: f'{f.num_rows:,}')
  yield row('fits', lambda f: 'yes' if f.fits else 'no')
  yield row('peak GiB', lambda f: _gib(f.peak_bytes))
  yield row('  beside it GiB', lambda f: _gib(f.resident_bytes))
  yield compiled('  arguments GiB', lambda f: _gib(f.argument_bytes))
  yield compiled('  temporary GiB', lambda f: _gib(f.temporary_bytes))
  yield compiled('  aliased GiB', lambda f: _gib(f.alias_bytes))
  yield compiled('TFLOP', lambda f: f'{f.flops / 1e12:.4g}')
  yield row('TFLOP needed', lambda f: f'{f.ideal_flops / 1e12:.4g}')
  yield compiled('  ratio', lambda f: f'{f.flops_ratio:.2f}')
  yield compiled('moved GiB', lambda f: _gib(f.moved_bytes))
  yield compiled('  by copies', lambda f: _gib(f.copied_bytes))
  yield compiled(
    'collectives GiB', lambda f: _gib(sum(f.collective_bytes.values()))
  )
  yield compiled('step seconds', lambda f: f'{f.step_secs:.4g}')
  yield compiled('  roofline', lambda f: f'{f.roofline_secs:.4g}')
  yield compiled('  collectives', lambda f: f'{f.traffic_secs:.4g}')
  yield compiled('MFU', lambda f: f'{f.mfu(chip):.1%}')
  yield compiled(
    'tokens/s/chip', lambda f: f'{f.tokens_per_second_per_chip:,.0f}'
  )
  yield row('compiled in seconds', lambda f: f'{f.compile_secs:.0f}')


def _shown(changes: plan_trials.Changes) -> str:
  return ', '.join(f'config.{k}={v}' for k, v in changes.items())


def _gib(num_bytes: float | None) -> str:
  return '?' if num_bytes is None else f'{num_bytes / _GIB:.2f}'
