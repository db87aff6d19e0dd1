"""From prediction files to the report, for every predictor."""

from collections import Counter
from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from tract_jax import types
from tract_jax.data import disk, manifest
from tract_jax.evaluation import (
  calibration,
  figures,
  lambda_curve,
  metrics,
  references,
  report_writing,
  resampling,
  self_cots,
)
from tract_jax.evaluation import report as report_lib
from tract_jax.objectives import predictors
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import predict, progress


def prediction_path(
  workdir: epath.Path, method: str, benchmark: str
) -> epath.Path:
  """Where the predictions of a method on a benchmark lie."""
  return workdir / 'predictions' / method / f'{benchmark}.jsonl'


def chunk_folder(
  workdir: epath.Path, method: str, benchmark: str, seed: int
) -> epath.Path:
  """Where the chunks lie that a seed's predictions are joined of."""
  folder = prediction_path(workdir, method, benchmark).parent
  return folder / 'parts' / benchmark / f'seed{seed}'


def evaluate(
  config: ml_collections.ConfigDict,
  grid: types.ScoreGrid,
  workdir: epath.Path,
  benchmarks: Mapping[str, Sequence[types.Example]],
  cot_gaps: Sequence[metrics.CotGap],
  lambda_points: Sequence[lambda_curve.LambdaPoint] = (),
  self_cot_counts: Sequence[self_cots.SelfCotCounts] = (),
  training_scores: Sequence[float] = (),
) -> bool:
  """Writes report/ from the predictions, and prints the results table.

  Args:
    config: of the run.
    grid: the scores.
    workdir: of the run.
    benchmarks: {name: its rows}, for the references; predictions of other rows
      are judged all the same.
    cot_gaps: measured before.
    lambda_points, self_cot_counts: of chosen lambdas, and self-CoT datasets.
    training_scores: of the training rows; none where nothing is trained.

  Returns:
    Whether there was anything to do.

  Raises:
    types.InputError: predictions are missing or damaged.
  """
  paths = {
    (method, benchmark): prediction_path(workdir, method, benchmark)
    for method in config.methods
    for benchmark in benchmarks
  }
  _check_joined(config, workdir, paths)
  folder = workdir / 'report'
  constant = references.constant(training_scores, grid.values)
  predicted = {'/'.join(k): manifest.digest_of_file(paths[k]) for k in paths}
  fields = {
    'predictions': manifest.digest_of(predicted),
    'config': manifest.digest_of(config.to_dict()),
    'cot_gap': _digest(cot_gaps),
    'lambda_curve': _digest(lambda_points),
    'self_cots': _digest(self_cot_counts),
    'benchmarks': _digest([*benchmarks.items()]),
    'constant': _digest([constant]),
  }
  if manifest.is_current(folder, 'report', fields) and not _damaged(folder):
    return False
  systems, calibrations = _judged(config, grid, paths)
  report = _make_report(
    *(config, grid, systems),
    cot_gaps=cot_gaps,
    lambda_points=lambda_points,
    self_cot_counts=self_cot_counts,
    calibrations=calibrations,
    references=references.of_benchmarks(benchmarks, constant),
    constant=constant,
  )
  _write(folder, fields, report)
  return True


def _check_joined(config, workdir, paths) -> None:
  for (method, benchmark), path in paths.items():
    seeds = config.seeds
    chunks = [chunk_folder(workdir, method, benchmark, seed) for seed in seeds]
    predict.check_joined(chunks, path)


def read_results(
  workdir: epath.Path, method: str, seed: int
) -> list[dict[str, Any]]:
  """The rows of report/metrics.json of a method and seed.

  Args:
    workdir: of the run.
    method: a row of the table of methods.
    seed: of the run.

  Returns:
    The rows; none where there is no report.

  Raises:
    types.InputError: a report that cannot be read.
  """
  path = workdir / 'report' / report_writing.METRICS_FILE
  if not path.exists():
    return []
  if manifest.is_finished(path.parent) and path.name in _damaged(path.parent):
    raise types.InputError(
      f'{path}: not as it was written: damaged, or changed by hand;'
      ' --task=evaluate writes it anew'
    )
  try:
    rows = json.loads(path.read_text(encoding='utf-8'))['rows']
    return [r for r in rows if (r['method'], r['seed']) == (method, seed)]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise types.InputError(f'{path}: no report: {error}') from error


def _judged(config, grid, paths):
  """(predictions, calibrations) of every system in the files."""
  systems: list[metrics.SystemPredictions] = []
  calibrations: list[calibration.Calibration] = []
  for (method, benchmark), path in paths.items():
    rows = predict.read_predictions(path)
    _check_rows(config, grid, method, path, rows)
    rows = _rated(path, rows)
    systems += _systems(config, grid, method, benchmark, rows)
    calibrations += _calibrations(config, grid, method, benchmark, rows)
  return systems, calibrations


def _write(folder: epath.Path, fields, report: report_lib.Report) -> None:
  """Writes report/ with the digests of its files, and prints the table."""
  manifest.write_manifest(folder, 'report', fields, finished=False)
  with disk.writing(folder):
    report_writing.write_report(report, folder)
  digests = {
    n: manifest.digest_of_file(folder / n) for n in report_writing.FILES
  }
  manifest.write_manifest(folder, 'report', fields, {'sha256': digests})
  progress.say(report_writing.results_table(report))
  progress.say(f'report: {folder}')


def _damaged(folder: epath.Path) -> list[str]:
  """Names of a finished report's files that are lost or changed."""
  recorded = manifest.read_results(folder).get('sha256', {})
  return [
    name
    for name in report_writing.FILES
    if not (folder / name).exists()
    or manifest.digest_of_file(folder / name) != recorded.get(name)
  ]


def _digest(records: Sequence[Any]) -> str:
  return manifest.digest_of([repr(record) for record in records])


def _make_report(config, grid, systems, **more) -> report_lib.Report:
  return report_lib.make_report(
    systems,
    config=json.loads(json.dumps(config.to_dict())),
    fallback=(grid.values[0] + grid.values[-1]) / 2,
    bootstrap=resampling.Bootstrap(config.evaluation.num_resamples),
    half_step=figures.half_step(grid.values),
    primary_predictors={
      name: method.predictor for name, method in methods_lib.METHODS.items()
    },
    **more,
  )


def _check_rows(config, grid, method, path, rows) -> None:
  """Refuses predictions that were made with other settings."""
  width, lowest, highest = len(grid.values), grid.values[0], grid.values[-1]
  num_cots = config.num_cots if methods_lib.METHODS[method].with_cot else 1
  problems = []
  seeds = sorted({row.seed for row in rows})
  if missing := sorted(set(config.seeds) - set(seeds)):
    problems.append(f'{path}: has seeds {seeds}, not {missing}')
  for number, row in enumerate(rows, start=1):
    found = min(map(len, (row.distributions, row.decoded, row.finish_reasons)))
    if found < num_cots:
      problems.append(f'{path}: line {number}: {found} CoTs, not {num_cots}')
    for value in (row.score, *row.decoded):
      if value is not None and not lowest <= value <= highest:
        problems.append(
          f'{path}: line {number}: score {value:g} is outside the grid '
          f'{grid.texts[0]}..{grid.texts[-1]}'
        )
    for probs in row.distributions:
      if probs is not None and len(probs) != width:
        problems.append(
          f'{path}: line {number}: {len(probs)} scores, the grid has {width}'
        )
  if problems:
    raise types.InputError('\n'.join(problems[:20]))


def _rated(path, rows: list[types.Prediction]) -> list[types.Prediction]:
  """The rows with a rater's score, or all where none has; it is said."""
  rated = [row for row in rows if row.score is not None]
  if not rated:
    progress.say(f"{path}: no row has a rater's score: figures are null")
    return rows
  if num_left_out := len(rows) - len(rated):
    progress.say(
      f"{path}: {num_left_out} of {len(rows)} rows have no rater's score and "
      'are left out of the report'
    )
  return rated


def _systems(config, grid, method, benchmark, rows):
  """One record per predictor, number of CoTs and seed."""
  own = methods_lib.METHODS[method].predictor
  names = list(dict.fromkeys([*config.predictors, own]))
  for seed, of_seed, num_cots in _parts(config, method, rows):
    for name in names:
      yield _system(
        config, grid, method, benchmark, of_seed, seed, name, num_cots
      )


def _calibrations(config, grid, method, benchmark, rows):
  """One record per number of CoTs and seed, where there are scores."""
  for seed, of_seed, num_cots in _parts(config, method, rows):
    system = _system(
      config, grid, method, benchmark, of_seed, seed, 'rail', num_cots
    )
    if not len(system.rated):
      continue
    probs, _ = _distributions(of_seed, max(num_cots, 1), len(grid.values))
    is_known = np.isfinite(probs).all(axis=-1, keepdims=True)
    number = is_known.sum(axis=1)
    mean = np.where(is_known, probs, 0).sum(axis=1) / np.maximum(number, 1)
    yield calibration.calibrate(
      system,
      np.where(number > 0, mean, np.nan),
      grid.values,
      conformal_level=config.evaluation.conformal_level,
    )


def _parts(config, method, rows):
  """(seed, its rows, number of CoTs) of everything that is reported."""
  most = config.num_cots if methods_lib.METHODS[method].with_cot else 0
  for seed in config.seeds:
    of_seed = [row for row in rows if row.seed == seed]
    for num_cots in sorted({min(most, 1), most}):
      yield seed, of_seed, num_cots


def _distributions(rows, num_cots: int, width: int):
  """Distributions [n, C, Y] and decoded scores [n, C]; NaN: there is none."""
  probs = np.full((len(rows), num_cots, width), np.nan, np.float32)
  decoded = np.full((len(rows), num_cots), np.nan, np.float32)
  for i, row in enumerate(rows):
    for c in range(num_cots):
      if row.distributions[c] is not None:
        probs[i, c] = row.distributions[c]
      if row.decoded[c] is not None:
        decoded[i, c] = row.decoded[c]
  return probs, decoded


def _system(config, grid, method, benchmark, rows, seed, name, num_cots):
  """Predictions by one predictor from the first CoTs; 0: there are none."""
  used = max(num_cots, 1)
  probs, decoded = _distributions(rows, used, len(grid.values))
  values = np.array(grid.values, np.float32)
  ids = tuple(row.example_id for row in rows)
  predicted = predictors.per_cot(
    name,
    probs,
    decoded,
    values,
    temperature=config.evaluation.tempered_temperature,
    uniforms=predictors.choices(seed, ids, used),
  )
  each = np.asarray(predicted)
  mass = predictors.mean_over_cots(probs.sum(axis=-1))
  reasons = Counter(r for row in rows for r in row.finish_reasons[:used])
  return metrics.SystemPredictions(
    method=method,
    predictor=name,
    num_cots=num_cots,
    benchmark=benchmark,
    seed=seed,
    example_ids=ids,
    scores=np.array(
      [math.nan if row.score is None else row.score for row in rows], np.float64
    ),
    predictions=np.asarray(predictors.mean_over_cots(each), np.float64),
    grid_mass=np.asarray(mass, np.float64),
    finish_reasons=dict(reasons) if num_cots else {},
    num_invalid_cots=int(np.isnan(each).sum()) if num_cots else 0,
  )
