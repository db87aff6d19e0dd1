"""The curve by which lambda is chosen: validation figures of each candidate.

In: a `LambdaPoint` for every candidate that a stage was trained with. Out: the
candidate to go on with, and the table in the report.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from tract_jax import types
from tract_jax.evaluation import tables


@dataclasses.dataclass(frozen=True)
class LambdaPoint:
  """A stage trained with one lambda, on the validation rows.

  Attributes:
    method: under whose name the stage's artefacts lie.
    stage: its number, from 1.
    seed: of the run.
    lambda_value: the candidate.
    score_rmse: root mean squared error of the expected score, by which
      candidates are compared; None without validation rows.
    ce: mean cross-entropy per token, nats; None without tokens.
    loss: the objective, which holds lambda: not to be compared over candidates.
    chosen: whether the method goes on with it.
    reason: why figures above are None though there are rows; else None.
  """

  method: str
  stage: int
  seed: int
  lambda_value: float
  score_rmse: float | None
  ce: float | None
  loss: float | None
  chosen: bool = False
  reason: str | None = None


def with_choice(points: Sequence[LambdaPoint]) -> list[LambdaPoint]:
  """Marks the point with the smallest error, the smaller lambda on a tie.

  Args:
    points: the candidates of one stage, at least one.

  Returns:
    The points by ascending lambda; one of them is chosen, and none whose error
    is not finite.

  Raises:
    types.InputError: there are no validation rows, or no error is finite.
  """
  ordered = sorted(points, key=lambda point: point.lambda_value)
  errors = [point.score_rmse for point in ordered]
  known = [error for error in errors if error is not None]
  if any(p.score_rmse is None and not p.reason for p in ordered):
    raise types.InputError(
      'config.train.lambda_candidates: no validation rows to choose on; raise '
      'config.data.validation_fraction or give config.train.lambda_value'
    )
  if not known:
    raise types.InputError(
      'config.train.lambda_candidates: with none of them is the validation '
      'RMSE finite'
    )
  best = errors.index(min(known))
  return [
    dataclasses.replace(point, chosen=i == best)
    for i, point in enumerate(ordered)
  ]


def notes(points: Sequence[LambdaPoint]) -> list[str]:
  """A line for each point that lacks figures, with the reason."""
  return [
    f'{p.method} stage {p.stage}, seed {p.seed}, lambda {p.lambda_value:g}: '
    f'{p.reason}'
    for p in points
    if p.reason
  ]


def cells(points: Sequence[LambdaPoint]) -> tuple[list[str], list[list[Any]]]:
  """Header and lines of the curve's table, one line for each point."""
  header = ['method', 'stage', 'seed', 'lambda', 'score RMSE', 'CE', 'loss']
  lines = [
    [
      *(p.method, p.stage, p.seed, f'{p.lambda_value:g}'),
      *map(tables.number, (p.score_rmse, p.ce, p.loss)),
      'yes' if p.chosen else '',
    ]
    for p in points
  ]
  return [*header, 'chosen'], lines
