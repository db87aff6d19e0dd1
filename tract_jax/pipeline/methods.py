"""Methods are data: which stages a method has, and how it predicts.

The rows of the paper's results table (arXiv:2503.04381, tables 1 and 2). One
function, `finetune`, runs every stage; methods that share their first stages
share the artefacts of them.
"""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
  """One fine-tuning run.

  Attributes:
    objective: "ce", "raft" or "cot_raft".
    cot_source: "none", "annotator", "self" (CoTs sampled from the first
      stage) or "mixed" (annotator and self together).
    start: "seed" for the seed model, "previous" for the stage before.
  """

  objective: str
  cot_source: str
  start: str = 'seed'

  def examples_per_input(self, num_self_cots: int) -> int:
    """How often it is trained on an input in an epoch.

    Args:
      num_self_cots: of each input, all of them usable.

    Returns:
      Once for each CoT, or once without any.
    """
    return {
      'none': 1,
      'annotator': 1,
      'self': num_self_cots,
      'mixed': 1 + num_self_cots,
    }[self.cot_source]


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of the results table.

  Attributes:
    stages: in order; none for a model that is judged as it is.
    predictor: the method's own, used where a single prediction is asked for.
    with_cot: whether it predicts after a sampled CoT.
  """

  stages: tuple[Stage, ...]
  predictor: str
  with_cot: bool


_STAGE_1 = Stage('cot_raft', 'annotator')

METHODS = {
  'zero_shot': Method((), 'rail', True),
  # config.model.path as its authors released it, such as Prometheus-2, with
  # the words before its score in config.score.marker.
  'released': Method((), 'decode', True),
  'ce': Method((Stage('ce', 'none'),), 'decode', False),
  'ce_cot': Method((Stage('ce', 'annotator'),), 'decode', True),
  'raft': Method((Stage('raft', 'none'),), 'rail', False),
  'cot_raft': Method((_STAGE_1,), 'rail', True),
  'tract': Method((_STAGE_1, Stage('cot_raft', 'self')), 'rail', True),
  'tract_ce': Method((_STAGE_1, Stage('ce', 'self')), 'rail', True),
  'tract_warm': Method(
    (_STAGE_1, Stage('cot_raft', 'self', 'previous')), 'rail', True
  ),
  'tract_mixed': Method((_STAGE_1, Stage('cot_raft', 'mixed')), 'rail', True),
}


def trained_with(expectation: str) -> dict[str, Method]:
  """The table, where each method predicts as it was trained.

  Args:
    expectation: `train.expectation`. With "grid" nothing keeps a model on the
      score grid, and RAIL would take what is off it for a score of 0: RAIL on
      the grid is the own predictor then.

  Returns:
    {name: method}.
  """
  if expectation != 'grid':
    return METHODS
  return {
    name: dataclasses.replace(method, predictor='rail_normalized')
    if method.stages and method.predictor == 'rail'
    else method
    for name, method in METHODS.items()
  }


def known(names: Sequence[object]) -> list[Method]:
  """The methods of the table among the names, whatever else is among these."""
  return [METHODS[n] for n in names if isinstance(n, str) and n in METHODS]


def untrained(names: Sequence[str]) -> tuple[str, ...]:
  """Those of the names whose method trains nothing."""
  return tuple(n for n in names if n in METHODS and not METHODS[n].stages)


def any_with_cot(names: Sequence[str]) -> bool:
  """Whether any of the methods writes or learns CoTs.

  Args:
    names: of methods; a name that is not in the table has none.
  """
  methods = [method for name, method in METHODS.items() if name in names]
  return any(
    m.with_cot or any(s.cot_source != 'none' for s in m.stages) for m in methods
  )


def uses_self_cots(method: str) -> bool:
  """Whether a stage of the method is trained on self-CoTs."""
  stages = METHODS[method].stages
  return any(stage.cot_source in ('self', 'mixed') for stage in stages)


def stage_owner(method: str, stage_index: int) -> str:
  """The method under whose name a stage's artefacts lie.

  It is the first method of the table that has the same stages up to and with
  this one, whatever methods a run covers: tract's stage 1 is cot_raft's.

  Args:
    method: a name of METHODS.
    stage_index: from 0.

  Returns:
    A name of METHODS.
  """
  path = METHODS[method].stages[: stage_index + 1]
  return next(
    name
    for name, other in METHODS.items()
    if other.stages[: stage_index + 1] == path
  )


def self_cot_owner(method: str) -> str:
  """The method under whose name the self-CoTs of `method` lie.

  All methods with one first stage train on the same self-CoTs.
  """
  first = METHODS[method].stages[0]
  return next(
    name
    for name, other in METHODS.items()
    if other.stages and other.stages[0] == first and uses_self_cots(name)
  )
