"""Bytes that an instruction moves to and from the chip's memory (HBM).

Its operands are read and its results written once, but for

  buffers on the chip itself (VMEM)   cost nothing
  an operand that is only sliced      its slices are read: a layer's weights out
                                      of the stacked ones
  an operand that is updated in place only what is put into it is written
  an operand that is passed through    costs nothing: a gather that goes on
                                      while a product is computed; int8 weights
                                      that a fusion sees in other tiles
"""

import re

from tract_jax.parallel import hlo

# These name, pass on or wait for what others have made.
_FREE = frozenset((
    'add-dependency', 'after-all', 'async-done', 'async-update', 'bitcast',
    'call', 'conditional', 'constant', 'copy-done', 'get-tuple-element',
    'opt-barrier', 'optimization-barrier', 'parameter', 'partition-id',
    'replica-id', 'tuple', 'while',
))  # fmt: skip
# The start and the end of a gather, beside which other work is done.
_ENDS = ('AsyncCollectiveStart', 'AsyncCollectiveDone')
_ALIASES = re.compile(r'\{(\d*)\}: \((\d+), \{')
_SLICES = ('dynamic-slice', 'slice', 'gather')
_UPDATES = ('dynamic-update-slice', 'scatter')


def hbm_bytes(
  module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
  """Bytes of one run of an instruction.

  Args:
    module: the program.
    computation: where the instruction stands.
    instruction: that runs by itself, or only names something.

  Returns:
    Bytes.
  """
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith('-done'):
    return 0.0
  if opcode == 'custom-call' and not instruction.operands:
    return 0.0  # It only names a buffer.
  if is_end_of_gather(module, instruction):
    return 0.0
  if opcode == 'async-start':
    inside = module.computations.get(instruction.inside)
    # A slice or a collective: it reads as much as it gives.
    return _bytes(inside.root) + _size(inside.root) if inside else 0.0
  if opcode.endswith('-start'):
    return sum(_in_hbm(shape) for shape in instruction.shapes)
  read = sum(
    _read(module, computation, instruction, place, name)
    for place, name in enumerate(instruction.operands)
    if name in computation
  )
  return read + _written(module, computation, instruction)


def is_end_of_gather(module: hlo.Module, instruction: hlo.Instruction) -> bool:
  """Whether it only starts or ends a gather that goes on beside other work.

  Args:
    module: the program.
    instruction: any.
  """
  inside = module.computations.get(instruction.inside)
  return inside is not None and any(
    target in inner.attributes
    for inner in inside.values()
    if inner.opcode == 'custom-call'
    for target in _ENDS
  )


def _aliases(instruction: hlo.Instruction) -> dict[int, int]:
  """Results that are operands, by number."""
  _, _, text = instruction.attributes.partition('output_to_operand_aliasing=')
  text = text.partition('}}')[0]
  return {int(i or 0): int(j) for i, j in _ALIASES.findall(text)}


def _read(
  module: hlo.Module,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
  place: int,
  name: str,
) -> float:
  """What an instruction reads of one operand."""
  whole = _size(computation[name])
  if not whole or place in _aliases(instruction).values():
    return 0.0
  opcode = instruction.opcode
  if opcode in _SLICES and place == 0:
    return min(whole, _bytes(instruction))
  if opcode in _UPDATES and place == 0:
    return 0.0
  inside = module.computations.get(instruction.inside)
  if inside is None:
    return whole
  return min(whole, _read_inside(module, inside, place))


def _read_inside(
  module: hlo.Module, inside: hlo.Computation, number: int
) -> float:
  """What a fusion reads of its parameter of this number; inf for all."""
  parameter = inside.parameters.get(number)
  return _read_of(module, inside, parameter.name) if parameter else 0.0


def _read_of(module: hlo.Module, inside: hlo.Computation, name: str) -> float:
  total = 0.0
  for user in inside.users[name]:
    for place in [i for i, other in enumerate(user.operands) if other == name]:
      if user.opcode == 'bitcast' or place in _aliases(user).values():
        total += _read_of(module, inside, user.name)
      elif user.opcode in _SLICES and place == 0:
        total += _bytes(user)
      elif user.opcode in _UPDATES and place == 0:
        pass
      elif user.opcode == 'fusion' and user.inside in module.computations:
        nested = module.computations[user.inside]
        total += _read_inside(module, nested, place)
      else:
        return float('inf')
  return total


def _written(
  module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
  """What an instruction writes; where it updates in place, the update."""
  if not any(_in_hbm(shape) for shape in instruction.shapes):
    return 0.0
  if instruction.opcode in _UPDATES:
    return _update(computation, instruction)
  inside = module.computations.get(instruction.inside)
  if inside is None:
    return _size(instruction)
  root = inside.root
  parts = (
    [inside[name] for name in root.operands]
    if root.opcode == 'tuple'
    else [root]
  )
  aliases = _aliases(instruction)
  total = 0.0
  for i, shape in enumerate(instruction.shapes[: len(parts)]):
    if not _in_hbm(shape):
      continue
    place, maker = _maker(module, inside, parts[i])
    if maker.opcode in _UPDATES:
      total += _update(place, maker)
    elif i not in aliases:
      total += shape.num_bytes
  return total


def _maker(
  module: hlo.Module, inside: hlo.Computation, part: hlo.Instruction
) -> tuple[hlo.Computation, hlo.Instruction]:
  """What makes a result, behind bitcasts and nested fusions."""
  if part.opcode == 'bitcast':
    return _maker(module, inside, inside[part.operands[0]])
  if part.opcode == 'fusion' and part.inside in module.computations:
    nested = module.computations[part.inside]
    return _maker(module, nested, nested.root)
  return inside, part


def _update(computation: hlo.Computation, update: hlo.Instruction) -> float:
  """Bytes that are put into an array."""
  # dynamic-update-slice(array, update, ..), scatter(array, places, update)
  place = 1 if update.opcode == 'dynamic-update-slice' else -1
  return _bytes(computation[update.operands[place]])


def _bytes(instruction: hlo.Instruction) -> float:
  return sum(shape.num_bytes for shape in instruction.shapes)


def _size(instruction: hlo.Instruction) -> float:
  return sum(_in_hbm(shape) for shape in instruction.shapes)


def _in_hbm(shape: hlo.Shape) -> float:
  return 0.0 if shape.space else shape.num_bytes
