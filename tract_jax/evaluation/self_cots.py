"""What became of the self-CoTs: how they ended, and how many are of use.

In: the counts of each dataset. Out: their table in the report, in which CoTs
that were cut by the length limit show.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class SelfCotCounts:
  """Counts of one self-CoT dataset.

  Attributes:
    method: under whose name it lies.
    seed: of the run.
    num_examples: rows that CoTs were sampled for.
    num_samples: their CoTs.
    finish_reasons: {how a CoT ended: number}.
    num_retries: attempts that were thrown away.
    num_unusable: CoTs that stage 2 is not trained on.
    num_without_usable: rows that have no other.
  """

  method: str
  seed: int
  num_examples: int
  num_samples: int
  finish_reasons: Mapping[str, int]
  num_retries: int
  num_unusable: int
  num_without_usable: int


def cells(
  datasets: Sequence[SelfCotCounts],
) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of the table, one line for each dataset."""
  reasons = list(dict.fromkeys(r for d in datasets for r in d.finish_reasons))
  header = ['method', 'seed', 'rows', 'CoTs', *reasons]
  lines = [
    [
      *(d.method, d.seed, d.num_examples, d.num_samples),
      *(d.finish_reasons.get(reason, 0) for reason in reasons),
      *(d.num_retries, d.num_unusable, d.num_without_usable),
    ]
    for d in datasets
  ]
  return [*header, 'retries', 'unusable', 'rows without'], lines
