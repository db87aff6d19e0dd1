"""Which files of other systems' predictions stand beside ours in the report.

In: what was read. Out: their table in the report, which says that these rows
are not of this run and which bytes they were made from.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

MARK = '(other)'


@dataclasses.dataclass(frozen=True)
class OtherFile:
  """One file of predictions that this run did not make.

  Attributes:
    method: the name that its rows have in the report.
    benchmark: whose rows it predicts.
    seed: of these predictions; a file may have several.
    num_examples: rows.
    num_cots: CoTs of each; 0: none.
    form: how the file was read, and how its rows were found among ours.
    path: the file.
    sha256: of its bytes.
  """

  method: str
  benchmark: str
  seed: int
  num_examples: int
  num_cots: int
  form: str
  path: str
  sha256: str


def cells(files: Sequence[OtherFile]) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of the table, one line for each file and seed."""
  header = ['method', 'benchmark', 'seed', 'rows', 'CoTs', 'form', 'file']
  lines = [
    [f.method, f.benchmark, f.seed, f.num_examples, f.num_cots, f.form, f.path]
    for f in files
  ]
  return [*header, 'sha256'], [
    [*line, f.sha256[:12]] for line, f in zip(lines, files, strict=True)
  ]
