"""The tasks of the command line; each is safe to repeat.

A whole run is

  for each seed, for each method:  stages (with self-CoTs between) -> gap
    -> predictions on every benchmark;  then the report over all of them.

Several hosts share what is sampled: each takes its own chunks. Joined ones do
all of a run, and wait for each other; others only sample, and leave, whatever
the others do; the last one writes what is made of all chunks.
"""

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.evaluation import metrics
from tract_jax.pipeline import (
  comparisons,
  cot_gap,
  evaluate,
  lambda_choice,
  other_systems,
  progress,
  self_cot,
)
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import run as run_lib

TASKS = ('run', 'train', 'self_cot', 'predict', 'evaluate', 'export')
# Those that hosts share without being joined; the report is the first one's.
ON_SEVERAL_HOSTS = ('self_cot', 'predict', 'evaluate')
_TRAIN = ('run', 'train', 'self_cot', 'predict', 'export')


def execute(run: run_lib.Run, task: str, *, as_judge: bool = False) -> None:
  """Does one task, with all that it needs.

  Args:
    run: of the configuration.
    task: one of TASKS; "train" stops after the stages, "self_cot" after the
      self-CoTs, "predict" after the predictions; "evaluate" only makes the
      report from predictions that are there; "export" trains and exports the
      first seed.
    as_judge: whether nothing is trained, and the model predicts as it is.

  Raises:
    types.InputError: an artefact was made from something else, or several
      hosts lack a trained stage.
    loop.Interrupted: stopped; the same call goes on.
  """
  config = run.setup.config
  # First of all: what is bad is told before anything is trained.
  others = _others(run) if task in ('run', 'evaluate') else []
  if run.host.is_alone and not as_judge:
    _check_trained(run, task)
  elif task in _TRAIN and not as_judge:
    _check_rows(run)
  for seed in config.seeds if task not in ('evaluate', 'export') else ():
    for method in config.methods:
      if as_judge:
        run.judge(method, seed)
        continue
      stages = methods_lib.METHODS[method].stages
      if task == 'self_cot':
        if methods_lib.uses_self_cots(method):
          run.self_cots(method, seed)
        continue
      for index in range(len(stages)):
        run.stage(method, index, seed)
      if task in ('run', 'predict'):
        run.predict(method, seed)
  if task == 'export':
    _export(run)
  if task in ('run', 'predict'):
    for method in config.methods:
      run.join_predictions(method)
  if task in ('run', 'evaluate'):
    _report(run, _gaps(run, only_measured=task == 'evaluate'), others)
  run.meet('at the end; all is done')
  if not run.num_worked:
    share = (
      'all that was asked' if run.host.count == 1 else f'share of {run.host}'
    )
    progress.say(f'nothing to do: {share} is in {run.workdir}')


def _check_rows(run: run_lib.Run) -> None:
  """Refuses before any training what later stages could not be trained on.

  Annotators' CoTs may be missing, or too long where rows without them are not.
  """
  config, pending = run.setup.config, dict[str, str]()
  for method in config.methods:
    for index, stage in enumerate(methods_lib.METHODS[method].stages):
      owner = methods_lib.stage_owner(method, index)
      folder = run.stage_folder(owner, index, config.seeds[0])
      if not lambda_choice.is_trained(config, stage.objective, folder):
        kind = 'annotator' if stage.cot_source == 'mixed' else stage.cot_source
        pending.setdefault(kind, method)
  pending.pop('self', None)
  train = run.data.train
  if 'annotator' in pending and train and not any(e.cot for e in train):
    raise types.InputError(
      f'config.data.train_path: no training row has a CoT, but'
      f" {pending['annotator']} is trained on annotators' CoTs; their column is"
      ' "cot", or config.data.fields names it; or choose other config.methods,'
      ' such as raft'
    )
  # Those of the first stage are encoded by it.
  for kind in list(pending)[1:]:
    cot = 'without CoT' if kind == 'none' else "with annotators' CoTs"
    run.encoded(kind, [], f'{cot}: ')


def _others(run: run_lib.Run) -> list[other_systems.OtherPredictions]:
  """Other systems' predictions, once all that is compared will be there."""
  setup = run.setup
  if problems := list(comparisons.problems(setup.config, setup.methods)):
    raise types.InputError('\n'.join(problems))
  if not run.host.writes:
    return []
  return other_systems.read(setup.config, setup.grid, run.data.benchmarks)


def _export(run: run_lib.Run) -> None:
  """Exports what is trained; it is an error if nothing is."""
  methods = run.setup.config.methods
  untrained = methods_lib.untrained(methods)
  trained = [method for method in methods if method not in untrained]
  for method in trained or methods:
    run.export(method)
  for method in untrained:
    progress.say(f'config.methods: {method} trains nothing, so has no export')


def _report(
  run: run_lib.Run,
  gaps: list[metrics.CotGap],
  others: list[other_systems.OtherPredictions],
) -> None:
  """Makes the report, on the host that writes it."""
  if run.host.writes:
    config = run.setup.config
    run.num_worked += evaluate.evaluate(
      config,
      run.setup.grid,
      run.workdir,
      run.data.benchmarks,
      gaps,
      lambda_choice.curves(config, run.stage_folder),
      self_cot.read_counts(config, run.self_cot_folder),
      [e.score for e in run.data.train if e.score is not None],
      others,
      methods=run.setup.methods,
    )


def _gaps(run: run_lib.Run, *, only_measured: bool) -> list[metrics.CotGap]:
  """The gaps of all stages that are trained on CoTs and predict from them.

  Args:
    run: of the configuration.
    only_measured: leave out what was not measured before.

  Returns:
    One for each stage and seed.
  """
  config = run.setup.config
  if not config.evaluation.gap_examples or not run.data.train:
    return []
  found = {}
  for seed in config.seeds:
    for name in config.methods:
      method = methods_lib.METHODS[name]
      for index, _ in enumerate(method.stages if method.with_cot else ()):
        owner = methods_lib.stage_owner(name, index)
        folder = run.stage_folder(owner, index, seed) / cot_gap.FOLDER
        if not only_measured:
          found[owner, index, seed] = run.cot_gap(name, index, seed)
        elif manifest.is_finished(folder):
          gap = cot_gap.read(folder, owner, index + 1, seed)
          found[owner, index, seed] = gap
  return list(found.values())


def _check_trained(run: run_lib.Run, task: str) -> None:
  """Names every stage that several hosts need and lack, before they sample."""
  methods = run.setup.config.methods
  needed: list[tuple[str, int]] = []
  if task == 'self_cot':
    needed = [(m, 0) for m in methods if methods_lib.uses_self_cots(m)]
  elif task == 'predict':
    for method in methods:
      stages = methods_lib.METHODS[method].stages
      needed += [(method, index) for index in range(len(stages))]
  problems: dict[str, None] = {}
  for seed in run.setup.config.seeds:
    for method, index in needed:
      try:
        run.stage(method, index, seed)
      except types.InputError as error:
        problems |= dict.fromkeys(str(error).splitlines())
  if problems:
    raise types.InputError('\n'.join(problems))
