"""The tasks of the command line; each is safe to repeat.

A whole run is

  for each seed, for each method:  stages (with self-CoTs between) -> gap
    -> predictions on every benchmark;  then the report over all of them.
"""

from tract_jax.pipeline import evaluate, lambda_choice, progress, self_cot
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import run as run_lib

TASKS = ('run', 'train', 'self_cot', 'predict', 'evaluate', 'export')


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
    types.InputError: an artefact was made from something else.
    loop.Interrupted: stopped; the same call goes on.
  """
  config = run.setup.config
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
    for method in config.methods:
      run.export(method)
  if task in ('run', 'predict'):
    for method in config.methods:
      run.join_predictions(method)
  if task in ('run', 'evaluate'):
    gaps = run.gaps(only_measured=task == 'evaluate')
    new = evaluate.evaluate(
      config,
      run.setup.grid,
      run.workdir,
      list(run.data.benchmarks),
      gaps,
      lambda_choice.curves(config, run.stage_folder),
      self_cot.read_counts(config, run.self_cot_folder),
    )
    run.num_worked += new
  if not run.num_worked:
    progress.say(f'nothing to do: all that was asked is in {run.workdir}')
