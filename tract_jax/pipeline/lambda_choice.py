"""Trains a stage with each candidate lambda and goes on with the best.

Candidates lie side by side under the stage's folder, `lambda/<value>`; each is
a whole stage of its own, finished, resumed and skipped like any other. What is
chosen follows from their validation figures alone, so it is written nowhere
else, and a candidate may be added later.
"""

from collections.abc import Callable
import dataclasses

from etils import epath
import ml_collections

from tract_jax.data import manifest
from tract_jax.evaluation import lambda_curve
from tract_jax.pipeline import finetune, objective, progress
from tract_jax.pipeline import methods as methods_lib


def candidates_of(
  config: ml_collections.ConfigDict, objective_name: str
) -> tuple[float, ...]:
  """The lambdas that a stage is trained with, each on its own.

  Args:
    config: of the run.
    objective_name: the stage's; only CoT-RAFT has a lambda.

  Returns:
    config.train.lambda_candidates; () where the stage is trained once.
  """
  return config.train.lambda_candidates if objective_name == 'cot_raft' else ()


def is_trained(
  config: ml_collections.ConfigDict, objective_name: str, folder: epath.Path
) -> bool:
  """Whether a stage is finished: for each candidate, where there are any.

  Args:
    config: of the run.
    objective_name: the stage's.
    folder: of the stage.
  """
  values = candidates_of(config, objective_name)
  folders = [_folder(folder, value) for value in values] or [folder]
  return all(map(manifest.is_finished, folders))


def trained(
  config: ml_collections.ConfigDict,
  objective_name: str,
  run: finetune.StageRun,
  train: Callable[[finetune.StageRun], None],
) -> finetune.StageRun:
  """A finished stage: with config's lambda, or with the best candidate.

  Args:
    config: of the run.
    objective_name: the stage's.
    run: the stage with config.train.lambda_value.
    train: trains a stage, where that is not done.

  Returns:
    `run` itself, or the run of the candidate with the smallest validation RMSE
    of the expected score.

  Raises:
    types.InputError: there are no validation rows to choose on.
  """
  candidates = candidates_of(config, objective_name)
  if not candidates:
    train(run)
    return run
  runs = {value: _with_lambda(config, run, value) for value in candidates}
  for candidate in runs.values():
    train(candidate)
  points = read_points(config, run.folder, '', 0, run.seed)
  chosen = next(point for point in points if point.chosen)
  progress.say(
    f'{run.label}: lambda {chosen.lambda_value:g} has the smallest validation '
    f'RMSE, {chosen.score_rmse:.4f}, of {len(points)} candidates'
  )
  return runs[chosen.lambda_value]


def read_points(
  config: ml_collections.ConfigDict,
  folder: epath.Path,
  method: str,
  stage: int,
  seed: int,
) -> list[lambda_curve.LambdaPoint]:
  """The curve of a stage.

  Args:
    config: of the run.
    folder: of the stage.
    method: of the stage, for the points.
    stage: its number, from 1.
    seed: of the run.

  Returns:
    A point for each candidate that is trained, by ascending lambda; one is
    chosen once all are trained. Empty for a stage without candidates.
  """
  points = []
  candidates = config.train.lambda_candidates
  for value in candidates:
    if not manifest.is_finished(_folder(folder, value)):
      continue
    results = manifest.read_results(_folder(folder, value))
    points.append(
      lambda_curve.LambdaPoint(
        method=method,
        stage=stage,
        seed=seed,
        lambda_value=value,
        score_rmse=results.get('validation_score_rmse'),
        ce=results.get('validation_ce'),
        loss=results.get('validation_loss'),
        reason=results.get('validation_reason'),
      )
    )
  if points and len(points) == len(candidates):
    return lambda_curve.with_choice(points)
  return sorted(points, key=lambda point: point.lambda_value)


def curves(
  config: ml_collections.ConfigDict,
  stage_folder: Callable[[str, int, int], epath.Path],
) -> list[lambda_curve.LambdaPoint]:
  """The curves of all stages of a run that have candidates.

  Args:
    config: of the run.
    stage_folder: (method, stage from 0, seed) -> its folder.

  Returns:
    What `read_points` gives for each, in the order of seeds and methods.
  """
  stages = {
    (methods_lib.stage_owner(name, index), index, seed): None
    for seed in config.seeds
    for name in config.methods
    for index, stage in enumerate(methods_lib.METHODS[name].stages)
    if candidates_of(config, stage.objective)
  }
  return [
    point
    for owner, index, seed in stages
    for point in read_points(
      config, stage_folder(owner, index, seed), owner, index + 1, seed
    )
  ]


def _with_lambda(config, run, value: float) -> finetune.StageRun:
  return dataclasses.replace(
    run,
    label=f'{run.label} lambda {value:g}',
    folder=_folder(run.folder, value),
    objective=dataclasses.replace(
      run.objective, score_weight=objective.score_weight(config, value)
    ),
    fields=run.fields | {'train.lambda_value': value},
  )


def _folder(folder: epath.Path, value: float) -> epath.Path:
  # repr, not :g, so that no two candidates share a folder.
  return folder / 'lambda' / repr(float(value))
