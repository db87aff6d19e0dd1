"""The text of a compiled program as records.

In: optimised HLO text, as `compiled.as_text()` gives it. Out: computations of
instructions. Nothing here knows a model or a chip.

A computation that a fusion or an asynchronous call names is that instruction's
inside: it is no step of its own.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

_SHAPE = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = ')
_OPERAND = re.compile(r'%([\w.\-]+)')
_SPACE = re.compile(r'S\((\d+)\)')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array's shape.

  Attributes:
    dtype: as HLO spells it: "bf16", "s32", "pred".
    dims: its sizes.
    space: where it lies; 0 is the chip's memory (HBM), anything else is on the
      chip itself.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def num_bytes(self) -> int:
    """Its size without the padding of tiles."""
    bits = re.search(r'\d+', self.dtype)
    size = 8 if self.dtype == 'pred' else int(bits[0]) if bits else 0
    return math.prod(self.dims) * size // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: unique in its computation.
    opcode: "fusion", "while", "all-gather-start", ...
    shapes: of its result; several for a tuple, nested ones flattened.
    operands: names.
    literal: the text between its parentheses: a constant's value, a
      parameter's number.
    attributes: the text behind them.
    is_root: whether its result is the computation's.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  literal: str
  attributes: str
  is_root: bool = False

  def attribute(self, pattern: str) -> str:
    """The first group of a pattern in the attributes; "" where it is not."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else ''

  @property
  def inside(self) -> str:
    """The computation that is computed within it; "" for none."""
    if self.opcode not in ('fusion', 'async-start'):
      return ''
    return self.attribute(r'\bcalls=%?([\w.\-]+)')

  @property
  def source(self) -> str:
    """The operation of the program that it was made of."""
    return self.attribute(r'op_name="([^"]*)"')


class Computation(Mapping[str, Instruction]):
  """Instructions by name, in the order in which they run."""

  def __init__(self, name: str, instructions: list[Instruction]):
    self.name = name
    self._instructions = {i.name: i for i in instructions}

  def __getitem__(self, name: str) -> Instruction:
    return self._instructions[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._instructions)

  def __len__(self) -> int:
    return len(self._instructions)

  @functools.cached_property
  def root(self) -> Instruction:
    """The instruction whose result is the computation's."""
    roots = [i for i in self.values() if i.is_root]
    return roots[0] if roots else list(self.values())[-1]

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """What it is given, by number."""
    return {int(i.literal): i for i in self.values() if i.opcode == 'parameter'}

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """The instructions that have each one as an operand."""
    found: dict[str, list[Instruction]] = {name: [] for name in self}
    for instruction in self.values():
      for operand in dict.fromkeys(instruction.operands):
        if operand in found:
          found[operand].append(instruction)
    return found


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: the name of the one that runs first.
  """

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Reads the text of a program.

  Args:
    text: optimised HLO.

  Returns:
    The program.

  Raises:
    ValueError: there is no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry, name = '', ''
  lines: list[str] = []
  for line in text.splitlines():
    if name:
      if line == '}':
        computations[name] = Computation(name, [_instruction(x) for x in lines])
        name, lines = '', []
      elif _INSTRUCTION.match(line):
        lines.append(line)
      elif lines:  # Attributes of a kernel may go over several lines.
        lines[-1] += line
    elif match := _COMPUTATION.match(line):
      name = match[2]
      entry = name if match[1] else entry
  if not entry:
    raise ValueError('HLO text without an ENTRY computation')
  return Module(computations, entry)


def within(
  module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
  """An instruction and, where it is a fusion, all that is computed within it.

  Args:
    module: the program.
    computation: where the instruction stands.
    instruction: any.

  Yields:
    (computation, instruction) of it and of its inside, at any depth.
  """
  yield computation, instruction
  inside = module.computations.get(instruction.inside)
  if inside is not None:
    for inner in inside.values():
      yield from within(module, inside, inner)


def _instruction(line: str) -> Instruction:
  head = _INSTRUCTION.match(line)
  assert head
  rest = line[head.end() :]
  if rest.startswith('('):
    type_text, rest = _balanced(rest[1:])
  else:
    type_text, _, rest = rest.partition(' ')
  opcode, _, rest = rest.strip().partition('(')
  literal, attributes = _balanced(rest)
  return Instruction(
    name=head[2],
    opcode=opcode,
    shapes=tuple(_shape(match) for match in _SHAPE.finditer(type_text)),
    operands=tuple(_OPERAND.findall(literal)),
    literal=literal,
    attributes=attributes,
    is_root=bool(head[1]),
  )


def _balanced(text: str) -> tuple[str, str]:
  """What stands before the parenthesis that closes, and what behind it."""
  depth = 1
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return text[: match.start()], text[match.end() :]
  return text, ''


def _shape(match: re.Match[str]) -> Shape:
  dims = match[2].replace('<=', '')
  space = _SPACE.search(match[3] or '')
  return Shape(
    match[1],
    tuple(int(size) for size in dims.split(',') if size),
    int(space[1]) if space else 0,
  )
