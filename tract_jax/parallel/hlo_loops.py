"""How often each instruction of a compiled program runs.

ENTRY main                    body of while.2, 32 rounds
  fusion.1      x 1             fusion.7   x 32
  while.2       x 1  ------->   copy.3     x 32
"""

from collections.abc import Iterator
import dataclasses
import math
import re

from tract_jax.parallel import hlo

_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
# Instructions that give their operand's value.
_SAME_VALUE = ('bitcast', 'copy', 'convert', 'reshape')


@dataclasses.dataclass(frozen=True)
class Visit:
  """An instruction that runs as a step of its own.

  Attributes:
    computation: where it stands.
    instruction: what runs.
    times: in one run of the program.
  """

  computation: hlo.Computation
  instruction: hlo.Instruction
  times: float


def visits(module: hlo.Module, dynamic_trips: int = 1) -> Iterator[Visit]:
  """Every instruction that runs by itself, with how often it does.

  Args:
    module: the program.
    dynamic_trips: of loops whose number of rounds is only known at run time.

  Yields:
    Each instruction of the entry, of the loops' bodies and of branches; of a
    conditional, each branch as if it were taken.
  """

  def run(name: str, times: float) -> Iterator[Visit]:
    computation = module.computations[name]
    for instruction in computation.values():
      yield Visit(computation, instruction, times)
      if instruction.opcode == 'while':
        trips = trip_count(module, computation, instruction)
        rounds = dynamic_trips if trips is None else trips
        yield from run(_called(instruction, 'body'), times * rounds)
      elif instruction.opcode == 'call':
        yield from run(_called(instruction, 'to_apply'), times)
      elif instruction.opcode == 'conditional':
        for branch in _branches(instruction):
          yield from run(branch, times)

  return run(module.entry, 1.0)


def trip_count(
  module: hlo.Module, computation: hlo.Computation, loop: hlo.Instruction
) -> int | None:
  """How many rounds a loop makes.

    trips = ceil((bound - first) / step)   for "while i < bound: i += step"

  Where other conditions stand beside that one, it is the most rounds.

  Args:
    module: the program.
    computation: where the loop stands.
    loop: a while.

  Returns:
    The compiler's own number where the text has it, else that of the formula;
    None where the bound is only known at run time.
  """
  if known := _KNOWN_TRIPS.search(loop.attributes):
    return int(known[1])
  condition = _Scope(module.computations[_called(loop, 'condition')])
  body = _Scope(module.computations[_called(loop, 'body')])
  for scope, compare in _compares(module, condition, condition.root.name):
    left, right = (_source(scope, name)[1] for name in compare.operands)
    bound = _integer(right)
    place = left.attribute(r'\bindex=(\d+)')
    if bound is None or not place or 'direction=LT' not in compare.attributes:
      continue
    first = _first(computation, loop, int(place))
    return math.ceil((bound - first) / _step(module, body, int(place)))
  return None


@dataclasses.dataclass(frozen=True)
class _Scope:
  """A computation, and whose inside it is, to follow values out of it."""

  computation: hlo.Computation
  caller: '_Scope | None' = None
  operands: tuple[str, ...] = ()

  @property
  def root(self) -> hlo.Instruction:
    return self.computation.root

  def into(self, module: hlo.Module, fusion: hlo.Instruction) -> '_Scope':
    return _Scope(module.computations[fusion.inside], self, fusion.operands)


def _source(scope: _Scope, name: str) -> tuple[_Scope, hlo.Instruction]:
  """What a name stands for, through copies and out of fusions."""
  instruction = scope.computation[name]
  if instruction.opcode in _SAME_VALUE:
    return _source(scope, instruction.operands[0])
  if instruction.opcode == 'parameter' and scope.caller is not None:
    return _source(scope.caller, scope.operands[int(instruction.literal)])
  return scope, instruction


def _compares(
  module: hlo.Module, scope: _Scope, name: str
) -> Iterator[tuple[_Scope, hlo.Instruction]]:
  """The comparisons that must all hold for a value to be true."""
  scope, instruction = _source(scope, name)
  if instruction.opcode == 'and':
    for operand in instruction.operands:
      yield from _compares(module, scope, operand)
  elif instruction.opcode == 'fusion':
    inner = scope.into(module, instruction)
    yield from _compares(module, inner, inner.root.name)
  elif instruction.opcode == 'compare':
    yield scope, instruction


def _first(
  computation: hlo.Computation, loop: hlo.Instruction, place: int
) -> int:
  """The loop's counter before the first round; 0 where that is not told."""
  scope = _Scope(computation)
  _, start = _source(scope, loop.operands[0])
  if start.opcode != 'tuple':
    return 0
  return _integer(_source(scope, start.operands[place])[1]) or 0


def _step(module: hlo.Module, body: _Scope, place: int) -> int:
  """By how much the loop's counter grows; 1 where that is not told."""
  if body.root.opcode != 'tuple':
    return 1
  scope, new = _source(body, body.root.operands[place])
  if new.opcode == 'fusion':
    scope = scope.into(module, new)
    scope, new = _source(scope, scope.root.name)
  if new.opcode != 'add':
    return 1
  numbers = [_integer(_source(scope, name)[1]) for name in new.operands]
  return next((number for number in numbers if number), 1)


def _integer(instruction: hlo.Instruction) -> int | None:
  if instruction.opcode != 'constant':
    return None
  return int(instruction.literal) if instruction.literal.isdigit() else None


def _called(instruction: hlo.Instruction, role: str) -> str:
  return instruction.attribute(rf'\b{role}=%?([\w.\-]+)')


def _branches(instruction: hlo.Instruction) -> list[str]:
  listed = instruction.attribute(r'\bbranch_computations=\{([^}]*)\}')
  if listed:
    return [name.strip().lstrip('%') for name in listed.split(',')]
  roles = ('true_computation', 'false_computation')
  return [name for role in roles if (name := _called(instruction, role))]
