"""What was asked of speed and memory beside PyTorch, and whether it is met.

In: rows of results. Out: a Markdown table, a column for each machine.
"""

from collections.abc import Iterable
import dataclasses

from benchmarks import results


@dataclasses.dataclass(frozen=True)
class Target:
  """One thing that was asked.

  Attributes:
    text: what of.
    row: name of the row that tells.
    factor: times theirs: of a rate at least, of bytes at most.
  """

  text: str
  row: str
  factor: float

  @property
  def is_most(self) -> bool:
    """Whether less is better."""
    return 'bytes' in self.row

  @property
  def asked(self) -> str:
    """The factor in words."""
    return f'at {"most" if self.is_most else "least"} {self.factor:.2f}'

  def found(self, ratio: float) -> str:
    """What a row's ratio says, and whether that is enough.

    Args:
      ratio: above 1 where ours is better.
    """
    factor = 1 / ratio if self.is_most else ratio
    is_met = factor <= self.factor if self.is_most else factor >= self.factor
    return f'{factor:.2f}, {"met" if is_met else "**not met**"}'


TARGETS = (
  Target(
    'tokens/s, all weights, rows with prompts',
    'tokens_per_sec_full_prompts',
    1.25,
  ),
  Target(
    'tokens/s, all weights, all tokens targets', 'tokens_per_sec_full_all', 1.05
  ),
  Target(
    'tokens/s, adapters, rows with prompts', 'tokens_per_sec_lora_prompts', 1.15
  ),
  Target(
    'memory, all weights, rows with prompts',
    'peak_memory_bytes_full_prompts',
    0.6,
  ),
  Target(
    'memory, all weights, all tokens targets', 'peak_memory_bytes_full_all', 0.6
  ),
  Target('tokens/s of prediction', 'tokens_per_sec_prediction', 1.0),
  Target('whole job, one CoT', 'rows_per_sec_1_cot', 1.5),
  Target('whole job, four CoTs', 'rows_per_sec_4_cots', 2.5),
  Target('decoding, 16 rows', 'decode_tokens_per_sec_16_rows', 1.1),
)


def table(rows: Iterable[results.Row]) -> str:
  """The targets beside what was measured.

  Args:
    rows: of all results files.

  Returns:
    Lines of Markdown, a cell empty where a machine has no such row; "" where
    no row tells of a target.
  """
  by_machine = {
    machine: ratios
    for machine, of_machine in results.by_machine(rows).items()
    if (ratios := _ratios(of_machine))
  }
  if not by_machine:
    return ''
  header = ['times theirs', 'asked', *by_machine]
  cells = []
  for target in TARGETS:
    found = [
      target.found(ratios[target.row]) if target.row in ratios else ''
      for ratios in by_machine.values()
    ]
    cells.append([target.text, target.asked, *found])
  lines = [f'| {" | ".join(line)} |' for line in [header, *cells]]
  lines.insert(1, '|' + '---|' * len(header))
  return '\n'.join(['**Targets**:', '', *lines])


def _ratios(rows: Iterable[results.Row]) -> dict[str, float]:
  """{row: its ratio}, of rows that a target names and that have one."""
  names = {target.row for target in TARGETS}
  return {
    row.name: row.ratio_median
    for row in rows
    if row.name in names and row.ratio_median is not None
  }
