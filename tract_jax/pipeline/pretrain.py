"""The seed model of a run from scratch: a model that has seen the world.

Every method of the paper starts from a language model that can already read
and that knows scores as words; RAFT, whose gradient vanishes where scores have
no probability, depends on it. A model from scratch becomes such a seed model by
cross-entropy on rows of its own, without CoT, which no stage trains on.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from etils import epath

from tract_jax import types
from tract_jax.parallel import agreement
from tract_jax.pipeline import (
  base_weights,
  build,
  finetune,
  fingerprint,
  hosts,
  objective,
  progress,
  read_data,
)

FOLDER = 'seed_model'


def trained(
  setup: build.Setup,
  examples: Sequence[types.Example],
  workdir: epath.Path,
  seed: int,
  model_fields: dict[str, Any],
  stop: agreement.Agreement,
) -> tuple[finetune.StageRun, bool]:
  """Trains the seed model on `examples`, where that is not done.

  Args:
    setup: of the run; its config.pretrain has the numbers.
    examples: at least one.
    workdir: of the run; the stage lies under `seed_model/seed<k>`.
    seed: of the initial values and of the order of the data.
    model_fields: of `fingerprint.model_fields`.
    stop: what this process and the others agree on.

  Returns:
    The finished stage, and whether it was trained just now.

  Raises:
    types.InputError: it was finished with other data or numbers.
    loop.Interrupted: stopped; the same call goes on.
  """
  setup = _with_pretraining_numbers(setup)
  run = finetune.StageRun(
    label=f'seed model seed {seed}',
    folder=workdir / FOLDER / f'seed{seed}',
    seed=seed,
    objective=objective.make_objective(setup.config, 'ce'),
    with_cot=False,
    fields=model_fields
    | fingerprint.train_fields(setup, 'ce')
    | {'train': read_data.digest(examples), 'seed': seed},
  )
  if finetune.is_done(run):
    progress.say(f'{run.label}: done before')
    return run, False
  encoded = read_data.encode_for_stage(
    setup, examples, 'none', [], run.label, stop.asked
  )
  hosts.meet(stop, f'before {run.label}')
  finetune.finetune(
    setup,
    run,
    finetune.StageRows(encoded, []),
    base_weights.init_params(setup.model, seed),
    lambda *args: build.make_trainer(setup, *args),
    stop.stop_here,
  )
  hosts.meet(stop, f'after {run.label}')
  return run, True


def _with_pretraining_numbers(setup: build.Setup) -> build.Setup:
  """The setup with config.pretrain's numbers in place of config.train's."""
  config = setup.config.copy_and_resolve_references()
  config.train.lr = config.pretrain.lr
  config.train.num_epochs = config.pretrain.num_epochs
  return dataclasses.replace(setup, config=config)
