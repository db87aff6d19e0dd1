"""From prediction files to the report, for every predictor."""

from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Any

from etils import epath
import ml_collections

from tract_jax import types
from tract_jax.data import disk, manifest
from tract_jax.evaluation import (
  figures,
  lambda_curve,
  metrics,
  overlap,
  page,
  pair_report,
  pairwise,
  references,
  report_writing,
  resampling,
  self_cots,
)
from tract_jax.evaluation import report as report_lib
from tract_jax.pipeline import (
  card_results,
  comparisons,
  other_systems,
  predicted,
  prediction_files,
  prediction_rows,
  progress,
)
from tract_jax.pipeline import methods as methods_lib


def evaluate(
  config: ml_collections.ConfigDict,
  grid: types.ScoreGrid,
  workdir: epath.Path,
  benchmarks: Mapping[str, Sequence[types.Example]],
  cot_gaps: Sequence[metrics.CotGap],
  lambda_points: Sequence[lambda_curve.LambdaPoint] = (),
  self_cot_counts: Sequence[self_cots.SelfCotCounts] = (),
  training_scores: Sequence[float] = (),
  others: Sequence[other_systems.OtherPredictions] = (),
  methods: Mapping[str, methods_lib.Method] = methods_lib.METHODS,
) -> bool:
  """Writes report/ from the predictions, and prints the results table.

  Args:
    config, workdir: of the run.
    grid: the scores.
    benchmarks: {name: its rows}; where predictions are of others it is said.
    cot_gaps: measured before.
    lambda_points, self_cot_counts: of chosen lambdas, and self-CoT datasets.
    training_scores: of the training rows; none where nothing is trained.
    others: other systems' predictions.
    methods: the table, with a judge's own method in place of the table's.

  Returns:
    Whether there was anything to do.

  Raises:
    types.InputError: predictions are missing or damaged.
  """
  paths = _checked_paths(config, workdir, benchmarks)
  folder = workdir / 'report'
  constant = references.constant(training_scores, grid.values)
  fields = {
    'predictions': _digest_of_files(paths),
    'config': manifest.digest_of(config.to_dict()),
    'measured': _digest([*cot_gaps, *lambda_points, *self_cot_counts]),
    'others': _digest([other.files for other in others]),
    'benchmarks': _digest_of_rows(benchmarks),
    'constant': _digest([constant]),
    'overlap': overlap.versions(),
    'methods': _digest([methods[name] for name in config.methods]),
  }
  if manifest.is_current(folder, 'report', fields) and not _damaged(folder):
    return False
  found = _found(config, grid, paths, benchmarks, others, methods)
  report = _make_report(
    *(config, grid, found.systems, methods),
    cot_gaps=cot_gaps,
    lambda_points=lambda_points,
    self_cot_counts=self_cot_counts,
    **found.told(),
    references=references.of_benchmarks(benchmarks, constant),
    paired=_paired(config, found, benchmarks, constant),
    constant=constant,
    other_files=[file for other in others for file in other.files],
  )
  judged = page.Judged(grid, benchmarks, found.own, found.groups)
  _write(folder, fields, report, judged)
  return True


def _checked_paths(config, workdir, benchmarks):
  """{(method, benchmark): its file}, each as its chunks are."""
  paths = {
    (method, benchmark): prediction_files.path_of(workdir, method, benchmark)
    for method in config.methods
    for benchmark in benchmarks
  }
  for (method, benchmark), path in paths.items():
    chunks = [
      prediction_files.chunk_folder(workdir, method, benchmark, seed)
      for seed in config.seeds
    ]
    prediction_files.check_joined(chunks, path)
  return paths


def read_results(
  workdir: epath.Path, method: str, seed: int
) -> card_results.Results:
  """What report/metrics.json says of a method and seed.

  Args:
    workdir: of the run.
    method: a row of the table of methods.
    seed: of the run.

  Returns:
    The records; none where there is no report.

  Raises:
    types.InputError: a report that cannot be read.
  """
  path = workdir / 'report' / report_writing.METRICS_FILE
  if not path.exists():
    return card_results.Results()
  if manifest.is_finished(path.parent) and path.name in _damaged(path.parent):
    raise types.InputError(
      f'{path}: not as it was written: damaged, or changed by hand;'
      ' --task=evaluate writes it anew'
    )
  try:
    report = json.loads(path.read_text(encoding='utf-8'))
    return card_results.of_report(report, method, seed)
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise types.InputError(f'{path}: no report: {error}') from error


def _found(config, grid, paths, benchmarks, others, methods) -> predicted.Found:
  """What all files say."""
  found = predicted.Found()
  examples = {
    name: {e.example_id: e for e in rows} for name, rows in benchmarks.items()
  }
  files = []
  for (method, benchmark), path in paths.items():
    rows = prediction_files.read_predictions(path)
    how = methods[method]
    prediction_rows.check_rows(config, grid, how, path, rows)
    prediction_rows.say_other_rows(config, path, rows, examples[benchmark])
    rows = prediction_rows.as_rated(rows, examples[benchmark])
    files.append((method, how, benchmark, path, rows))
  files += [
    (o.method, None, o.benchmark, o.files[0].path, o.rows) for o in others
  ]
  for method, how, benchmark, path, rows in files:
    predicted.add_pairs(
      *(found, config, grid, method, how, benchmark, path, rows),
      examples=examples[benchmark],
    )
    predicted.add_file(
      *(found, config, grid, method, how, benchmark),
      rows=predicted.rated(path, rows),
      num_groups=len(files) * len(config.seeds),
      examples=examples[benchmark],
    )
  return found


def _paired(config, found: predicted.Found, benchmarks, constant):
  """What was said of preference pairs."""
  return pair_report.Paired(
    judges=found.paired,
    references=references.of_pairs(benchmarks, constant),
    own=frozenset(found.own_systems),
    rule=pairwise.Rule(config.evaluation.ties, config.evaluation.tie_margin),
  )


def _write(folder: epath.Path, fields, report, judged: page.Judged) -> None:
  """Writes report/ with the digests of its files, and prints the table."""
  manifest.write_manifest(folder, 'report', fields, finished=False)
  with disk.writing(folder):
    report_writing.write_report(report, folder, judged)
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


def _digest_of_files(paths) -> str:
  digests = {'/'.join(k): manifest.digest_of_file(p) for k, p in paths.items()}
  return manifest.digest_of(digests)


def _digest_of_rows(benchmarks) -> str:
  sha = hashlib.sha256()
  for name, rows in benchmarks.items():
    for row in rows:
      sha.update(repr((name, row)).encode())
  return sha.hexdigest()


def _digest(records: Sequence[Any]) -> str:
  return manifest.digest_of([repr(record) for record in records])


def _make_report(config, grid, systems, methods, **more) -> report_lib.Report:
  return report_lib.make_report(
    systems,
    config=json.loads(json.dumps(config.to_dict())),
    fallback=grid.midpoint,
    bootstrap=resampling.Bootstrap(config.evaluation.num_resamples),
    half_step=figures.half_step(grid.values),
    comparisons=comparisons.parse(config.evaluation.differences),
    primary_predictors={
      name: method.predictor for name, method in methods.items()
    },
    **more,
  )
