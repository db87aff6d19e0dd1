"""Compiles a program for chips that are not there, and reads its figures.

The compiler refuses what does not fit as the chip would (RESOURCE_EXHAUSTED),
so that is a fact; so are bytes, operations and traffic. Seconds are estimates,
see parallel/hlo_cost.
"""

from collections.abc import Sequence
import dataclasses
import re
import time
from typing import Any

import jax

from tract_jax.parallel import chips, hlo, hlo_cost
from tract_jax.pipeline import plan_programs

_NUM_LARGEST = 8
_USED = re.compile(
  r'Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm'
  r'|required for HLO temporaries \(([\d.]+)([KMG])\)'
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}
# Products of queries with keys, or of probabilities with values, in each kernel
# of splash attention, by the part of its name. Without a kernel for dq, that of
# dkv makes it as well.
_PRODUCTS = {'_fwd': 2, '_dq': 3, '_dkv': 4}
_ALL_GRADIENTS = 5


@dataclasses.dataclass(frozen=True)
class Figures:
  """What the compiler says of a program; bytes and operations of one chip.

  Attributes:
    name: of the program.
    fits: whether it was compiled, and its peak and what else lies on a chip
      are within the memory.
    problem: why it was not compiled; "" where it was.
    peak_bytes: at most in use; None where even that is not told.
    resident_bytes: of what else lies on the chip meanwhile.
    argument_bytes, temporary_bytes, alias_bytes: of the peak; aliases are
      donated arguments, whose memory results take.
    flops, ideal_flops: of a step.
    moved_bytes: to and from the chip's memory, in a step.
    ideal_bytes: that must be read in a step; 0 where memory is not the bound.
    copied_bytes: of `moved_bytes`, by plain copies.
    collective_bytes: of each kind, in a step.
    compiler_secs, roofline_secs: of a step, with its kernels, and with its
      collectives beside which nothing else is done.
    traffic_secs: of all of a step's collectives.
    kernels: name of each kernel, and how often a step runs it.
    largest: what takes the most time by the compiler's estimate.
    num_rows, num_tokens: of a step, on all chips.
    num_chips: that share it.
    compile_secs: tracing included.
  """

  name: str
  fits: bool
  problem: str
  peak_bytes: float | None
  num_rows: int
  num_tokens: int
  num_chips: int
  ideal_flops: float
  ideal_bytes: float
  resident_bytes: float
  compile_secs: float
  argument_bytes: float = 0.0
  temporary_bytes: float = 0.0
  alias_bytes: float = 0.0
  flops: float = 0.0
  moved_bytes: float = 0.0
  copied_bytes: float = 0.0
  collective_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
  compiler_secs: float = 0.0
  roofline_secs: float = 0.0
  traffic_secs: float = 0.0
  kernels: dict[str, float] = dataclasses.field(default_factory=dict)
  largest: tuple[dict[str, Any], ...] = ()

  @property
  def step_secs(self) -> float | None:
    """The estimate: not less than all collectives take."""
    if self.problem:
      return None
    return max(self.compiler_secs, self.traffic_secs)

  @property
  def flops_ratio(self) -> float | None:
    """Operations of the program over those that it needs."""
    return None if self.problem else self.flops / self.ideal_flops

  @property
  def tokens_per_second_per_chip(self) -> float | None:
    """Tokens of a step, padding included."""
    if not self.step_secs:
      return None
    return self.num_tokens / self.step_secs / self.num_chips

  def mfu(self, chip: chips.Chip) -> float | None:
    """As chips.mfu, of the estimated seconds."""
    if not self.step_secs:
      return None
    return chips.mfu(self.ideal_flops, self.step_secs, chip)


def compile_program(
  program: plan_programs.Program, chip: chips.Chip
) -> Figures:
  """Compiles a program and reads what it will need.

  Args:
    program: with shapes on devices of the chip.
    chip: its numbers.

  Returns:
    The figures; a program that does not compile has a `problem`.
  """
  begin = time.perf_counter()
  known: dict[str, Any] = {
    'name': program.name,
    'num_rows': program.num_rows,
    'num_tokens': program.num_tokens,
    'num_chips': program.num_devices,
    'ideal_flops': program.ideal_flops / program.num_devices,
    'ideal_bytes': program.ideal_bytes,
    'resident_bytes': program.resident_bytes,
  }
  try:
    compiled = program.fn.lower(*program.args).compile()
  except jax.errors.JaxRuntimeError as error:
    # Whatever the compiler refuses is a result, too.
    text = str(error)
    return Figures(
      **known,
      fits=False,
      problem=_problem(text),
      peak_bytes=_used_bytes(text),
      compile_secs=time.perf_counter() - begin,
    )
  secs = time.perf_counter() - begin
  memory = compiled.memory_analysis()
  peak = memory.peak_memory_in_bytes
  return Figures(
    **known,
    fits=peak + program.resident_bytes <= chip.memory_bytes,
    problem='',
    peak_bytes=peak,
    compile_secs=secs,
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    alias_bytes=memory.alias_size_in_bytes,
    **_costs(program, compiled.as_text(), chip),
  )


def _costs(
  program: plan_programs.Program, text: str, chip: chips.Chip
) -> dict[str, Any]:
  """The figures that stand in the program's text, for one step."""
  costs = hlo_cost.measure(hlo.parse(text), program.dynamic_trips)
  kernel_flops = program.pair_flops * _num_products(costs.kernels)
  # What the compiler estimates neither way.
  more_secs = hlo_cost.kernel_secs(kernel_flops, chip) + hlo_cost.traffic_secs(
    costs.blocking_bytes, chip
  )
  steps = program.num_steps
  kernels: dict[str, float] = {}
  for kernel in costs.kernels:
    name = re.sub(r'[.\d]+$', '', kernel.name)
    kernels[name] = kernels.get(name, 0) + kernel.times / steps
  return {
    'flops': (costs.flops + kernel_flops) / steps,
    'moved_bytes': costs.hbm_bytes / steps,
    'copied_bytes': costs.copied_bytes / steps,
    'collective_bytes': {
      kind: size / steps for kind, size in costs.collective_bytes.items()
    },
    'compiler_secs': (hlo_cost.compiler_secs(costs, chip) + more_secs) / steps,
    'roofline_secs': (hlo_cost.roofline_secs(costs, chip) + more_secs) / steps,
    'traffic_secs': hlo_cost.traffic_secs(costs.collective_bytes, chip) / steps,
    'kernels': kernels,
    'largest': _largest(costs, chip, steps),
  }


def _largest(
  costs: hlo_cost.Costs, chip: chips.Chip, num_steps: int
) -> tuple[dict[str, Any], ...]:
  """What takes the most time, so that one sees where to look."""

  def secs(step: hlo_cost.Step) -> float:
    return hlo_cost.step_secs(step, chip) * step.times / num_steps

  return tuple(
    {
      'name': step.name,
      'source': step.source,
      'times': step.times / num_steps,
      'secs': secs(step),
      'bytes': step.hbm_bytes * step.times / num_steps,
    }
    for step in sorted(costs.steps, key=secs, reverse=True)[:_NUM_LARGEST]
  )


def _num_products(kernels: Sequence[hlo_cost.Step]) -> float:
  """Products that the kernels of splash attention make, by their names."""
  products = dict(_PRODUCTS)
  names = [f'{kernel.name} {kernel.source}' for kernel in kernels]
  if not any('splash' in name and '_dq' in name for name in names):
    products['_dkv'] = _ALL_GRADIENTS
  return sum(
    count * kernel.times
    for name, kernel in zip(names, kernels, strict=True)
    for part, count in products.items()
    if 'splash' in name and part in name
  )


def _problem(text: str) -> str:
  """The compiler's words, as far as they fit on a line."""
  return ' '.join(text.split())[:300]


def _used_bytes(text: str) -> float | None:
  used = _USED.search(text)
  if used is None:
    return None
  number, unit = (group for group in used.groups() if group)
  return float(number) * _UNITS[unit]
