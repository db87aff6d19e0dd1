"""What one run of a compiled program costs a device: time, memory, traffic.

In: the program of `hlo.parse`. Out: `Costs`, a list of what runs, with the
compiler's own estimate of cycles, the operations, and the bytes that go to and
from the chip's memory (HBM); then, for a chip, two estimates of seconds:

  compiler   cycles of each step / clock, times its runs
  roofline   the larger of operations / peak and bytes / bandwidth of each step,
             times its runs

To both are added, since the compiler estimates neither:

  kernels      written by hand (Pallas): their operations at `KERNEL_EFFICIENCY`
               of the peak
  collectives  their bytes on one ring of the torus, where nothing else is done
               meanwhile; those that go on beside other work take no time
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import re

from tract_jax.parallel import chips, hlo, hlo_bytes, hlo_flops, hlo_loops

# Of the peak; what splash attention reaches on v6e.
KERNEL_EFFICIENCY = 0.6

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# A product, and a part of a collective that goes on meanwhile.
_BESIDE = 'async_collective_fusion'
_KERNEL = 'custom_call_target="tpu_custom_call"'


@dataclasses.dataclass(frozen=True)
class Step:
  """One instruction that runs by itself.

  Attributes:
    name, opcode: in the program's text.
    source: the operation it was made of.
    times: how often it runs.
    cycles: the compiler's estimate for one run; None where it has none.
    flops: of its products, in one run.
    hbm_bytes: read and written in one run.
    is_kernel: whether it was written by hand (Pallas).
    is_async: whether it only starts what goes on beside other steps, or waits
      for that; it takes no time of its own.
  """

  name: str
  opcode: str
  source: str
  times: float
  cycles: int | None
  flops: float
  hbm_bytes: float
  is_kernel: bool
  is_async: bool


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one run of a program on one device.

  Attributes:
    steps: what runs and costs anything.
    collective_bytes: of each kind, the arrays that it gives (of a
      reduce-scatter: takes), times its runs.
    blocking_bytes: of these, what nothing else is done beside.
  """

  steps: tuple[Step, ...]
  collective_bytes: dict[str, float]
  blocking_bytes: dict[str, float]

  def total(self, value: Callable[[Step], float]) -> float:
    """The sum over all steps and their runs."""
    return sum(value(step) * step.times for step in self.steps)

  @property
  def flops(self) -> float:
    """Of all products but those in kernels."""
    return self.total(lambda step: step.flops)

  @property
  def hbm_bytes(self) -> float:
    """Read and written."""
    return self.total(lambda step: step.hbm_bytes)

  @property
  def copied_bytes(self) -> float:
    """The part of `hbm_bytes` that plain copies make."""
    return self.total(
      lambda step: step.hbm_bytes if step.opcode.startswith('copy') else 0
    )

  @property
  def kernels(self) -> tuple[Step, ...]:
    """The steps that were written by hand."""
    return tuple(step for step in self.steps if step.is_kernel)


def measure(module: hlo.Module, dynamic_trips: int = 1) -> Costs:
  """Adds up what a program does.

  Args:
    module: of `hlo.parse`.
    dynamic_trips: rounds of loops that only end as the data says.

  Returns:
    Its costs.
  """
  steps: list[Step] = []
  traffic: dict[tuple[str, str], tuple[float, bool]] = {}
  for visit in hlo_loops.visits(module, dynamic_trips):
    place, instruction = visit.computation, visit.instruction
    for kind, channel, num_bytes in _collectives(module, place, instruction):
      # Start and end of one collective may be fused with work apart.
      known, blocks = traffic.get((kind, channel), (0.0, True))
      blocks &= not _goes_on_beside(module, instruction)
      size = max(known, num_bytes * visit.times)
      traffic[kind, channel] = size, blocks
    step = _step(module, visit)
    if step.cycles or step.flops or step.hbm_bytes or step.is_kernel:
      steps.append(step)
  collective_bytes = dict.fromkeys(_COLLECTIVES, 0.0)
  blocking_bytes = dict.fromkeys(_COLLECTIVES, 0.0)
  for (kind, _), (num_bytes, blocks) in traffic.items():
    collective_bytes[kind] += num_bytes
    blocking_bytes[kind] += num_bytes * blocks
  return Costs(tuple(steps), collective_bytes, blocking_bytes)


def compiler_secs(costs: Costs, chip: chips.Chip) -> float:
  """Seconds by the compiler's own cycles, without kernels and collectives.

  Args:
    costs: of `measure`.
    chip: that runs the program.

  Returns:
    Seconds.
  """
  return costs.total(lambda step: step_secs(step, chip))


def step_secs(step: Step, chip: chips.Chip) -> float:
  """Seconds of one run of a step by the compiler's cycles.

  Args:
    step: of `measure`.
    chip: that runs it.

  Returns:
    Seconds; 0 for a kernel. What has no estimate counts as by the roofline.
  """
  if step.cycles is None:
    return roofline_step_secs(step, chip)
  return step.cycles / chip.clock_hz


def roofline_secs(costs: Costs, chip: chips.Chip) -> float:
  """Seconds by the roofline, without kernels and collectives.

  Args:
    costs: of `measure`.
    chip: that runs the program.

  Returns:
    Seconds.
  """
  return costs.total(lambda step: roofline_step_secs(step, chip))


def kernel_secs(flops: float, chip: chips.Chip) -> float:
  """Seconds of kernels with so many operations, at `KERNEL_EFFICIENCY`."""
  return flops / (KERNEL_EFFICIENCY * chip.peak_flops)


def traffic_secs(
  collective_bytes: Mapping[str, float], chip: chips.Chip
) -> float:
  """Seconds that bytes of collectives take on one ring of the torus.

  Args:
    collective_bytes: of each kind, as `Costs` has them.
    chip: that runs the program.

  Returns:
    Seconds. All-reduces go round twice.
  """
  weights = {'all-reduce': 2.0}
  total = sum(
    num_bytes * weights.get(kind, 1.0)
    for kind, num_bytes in collective_bytes.items()
  )
  return total / chip.ici_bytes_per_sec


def roofline_step_secs(step: Step, chip: chips.Chip) -> float:
  """Seconds of one run of a step by the roofline.

  Args:
    step: of `measure`.
    chip: that runs it.

  Returns:
    Seconds; 0 for a kernel, and for what goes on beside other steps.
  """
  if step.is_kernel or step.is_async:
    return 0.0
  return max(
    step.flops / chip.peak_flops, step.hbm_bytes / chip.hbm_bytes_per_sec
  )


def _step(module: hlo.Module, visit: hlo_loops.Visit) -> Step:
  place, instruction = visit.computation, visit.instruction
  cycles = _CYCLES.search(instruction.attributes)
  return Step(
    name=instruction.name,
    opcode=instruction.opcode,
    source=instruction.source,
    times=visit.times,
    # A zero stands where the compiler has made no estimate.
    cycles=(int(cycles[1]) or None) if cycles else None,
    flops=hlo_flops.matmul_flops(module, place, instruction),
    hbm_bytes=hlo_bytes.hbm_bytes(module, place, instruction),
    is_kernel=_KERNEL in instruction.attributes,
    is_async=instruction.opcode.endswith('-start')
    or hlo_bytes.is_end_of_gather(module, instruction),
  )


def _goes_on_beside(module: hlo.Module, instruction: hlo.Instruction) -> bool:
  """Whether other work is done while an instruction's collective goes on."""
  return (
    instruction.opcode.endswith('-start')
    or instruction.inside.startswith(_BESIDE)
    or hlo_bytes.is_end_of_gather(module, instruction)
  )


def _collectives(
  module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> Iterator[tuple[str, str, float]]:
  """(kind, channel, bytes) of the collectives in an instruction."""
  for place, inner in hlo.within(module, computation, instruction):
    kind = inner.opcode.removesuffix('-start')
    if kind not in _COLLECTIVES:
      continue
    # On a TPU a reduce-scatter is an all-reduce with a slice, fused.
    if kind == 'all-reduce' and 'reduce-scatter' in place.name:
      kind = 'reduce-scatter'
    channel = inner.attribute(r'channel_id=(\d+)') or inner.name
    yield kind, channel, _collective_bytes(place, inner, kind)


def _collective_bytes(
  computation: hlo.Computation, instruction: hlo.Instruction, kind: str
) -> float:
  if kind == 'reduce-scatter':
    operands = (computation[name] for name in instruction.operands)
    return sum(s.num_bytes for o in operands for s in o.shapes)
  shapes = [s for s in instruction.shapes if s.dims]
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    shapes = shapes[len(shapes) // 2 :]  # The first half are the operands.
  return sum(s.num_bytes for s in shapes)
