"""Fine-tunes one stage of one method; every stage is this function."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

from etils import epath
import jax
import numpy as np

from tract_jax import numerics, types
from tract_jax.data import encoding, manifest, orbax_store, packing
from tract_jax.data import loader as loader_lib
from tract_jax.models import lora, quantization
from tract_jax.objectives import losses
from tract_jax.parallel import distributed
from tract_jax.pipeline import build, fingerprint, progress, train_metrics
from tract_jax.training import checkpoint, loop, metric_writer
from tract_jax.training import state as state_lib

TARGET_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class StageRun:
  """One fine-tuning run, ready to go.

  Attributes:
    label: for progress, such as "tract stage 2 seed 0".
    folder: of its artefacts.
    seed: draws the order of the data.
    objective: what is minimised.
    with_cot: whether its targets have a CoT.
    fields: the facts that make its result what it is.
  """

  label: str
  folder: epath.Path
  seed: int
  objective: losses.Objective
  with_cot: bool
  fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StageRows:
  """Encoded rows of a stage.

  Attributes:
    train: what it is trained on.
    validation: what its loss is reported on at the end; may be empty.
  """

  train: Sequence[types.EncodedExample]
  validation: Sequence[types.EncodedExample]


def is_done(run: StageRun) -> bool:
  """Whether the stage is finished, by its manifest.

  Raises:
    types.InputError: it was finished with other data or numbers.
  """
  return manifest.matches(run.folder, 'stage', run.fields)


def finetune(
  setup: build.Setup,
  run: StageRun,
  rows: StageRows,
  start: tuple[types.PyTree, types.PyTree],
  make_trainer: Callable[..., build.Trainer],
  should_stop: Callable[[], bool],
) -> types.PyTree:
  """Trains to the end, from the last checkpoint where there is one.

  Args:
    setup: of the whole run.
    run: what to train, and where to write.
    rows: what it is trained and validated on.
    start: (trainable, frozen) to start from; the former is used up.
    make_trainer: (objective, with_cot, num_steps, num_targets) -> Trainer.
    should_stop: asked before each update; says the same on every process.

  Returns:
    The trained leaves. Checkpoints, metrics and the manifest are written; the
    latter by process 0, after which the others may look at it.

  Raises:
    types.InputError: no examples, or checkpoints of another run.
    loop.Interrupted: stopped; the same call goes on.
  """
  if not rows.train:
    raise types.InputError(f'{run.label}: no training rows are left')
  loader, validation = _loaders(setup, run, rows)
  num_targets = loader_lib.static_size(
    [some.max_targets for some in (loader, validation) if some],
    TARGET_MULTIPLE,
  )
  trainer = make_trainer(
    run.objective, run.with_cot, loader.num_steps, num_targets
  )
  trainable, frozen = start
  with orbax_store.Store(
    run.folder / 'checkpoints', max_to_keep=setup.config.train.max_checkpoints
  ) as store:
    state = _first_state(run, store, trainer, trainable)
    _say_sizes(run, loader, state, frozen)
    work = train_metrics.work_of(
      setup.model, loader.batch_size, loader.length, num_targets
    )
    state = _train(
      setup, run, trainer, loader, state, frozen, store, should_stop, work
    )
  figures = _validate(run, trainer, (state.params, frozen), validation)
  _finish(run, state.params, {'num_rows': len(rows.train), **figures})
  return state.params


def load_trained(run: StageRun, setup: build.Setup) -> types.PyTree:
  """Reads the trained leaves of a finished stage.

  Args:
    run: a stage for which `is_done`.
    setup: of the whole run.

  Returns:
    Its trained leaves, on the mesh. With a mesh of this process's devices
    alone, no other process is waited for.
  """
  trainable, _ = lora.split_trainable(
    setup.model.abstract, setup.model.train_base
  )
  local = not setup.model.mesh.is_multi_process
  with orbax_store.Store(run.folder / 'params', local=local) as store:
    return store.load(0, trainable)[0]


def row_length(setup: build.Setup, longest: int) -> int:
  """L, of training rows: rounded up, as far as the model goes.

  Args:
    setup: of the run.
    longest: tokens of the longest example, or, packed, of data.max_length.

  Returns:
    A multiple of data.length_multiple, or the model's limit.

  Raises:
    types.InputError: the model is made for shorter rows.
  """
  data, limit = setup.config.data, setup.model.config.longest_row
  if longest > limit:
    raise types.InputError(
      f'config.data.max_length: {data.max_length} allows training rows of '
      f'{longest} tokens, but the model is made for {limit} at most'
    )
  return min(loader_lib.static_size([longest], data.length_multiple), limit)


def _finish(run: StageRun, trainable: types.PyTree, figures) -> None:
  """Writes the trained leaves, apart from the optimizer's, and the manifest."""
  with orbax_store.Store(run.folder / 'params') as store:
    if not store.steps():  # A run killed right after this has them already.
      store.save(0, trainable, {'fingerprint': run.fields})
  digest = fingerprint.params_digest(trainable)
  results = {'params_digest': digest, **figures}
  if distributed.is_main_process():
    manifest.write_manifest(run.folder, 'stage', run.fields, results=results)


def _loaders(
  setup: build.Setup, run: StageRun, rows: StageRows
) -> tuple[loader_lib.Loader, loader_lib.Loader | None]:
  """Batches of the training rows and of the validation rows, of one shape."""
  train, data = setup.config.train, setup.config.data
  lengths = [
    encoding.sizes(examples)[0]
    for examples in (rows.train, rows.validation)
    if examples
  ]
  length = row_length(
    setup,
    data.max_length if data.packing else int(np.max(np.concatenate(lengths))),
  )
  plans = [
    packing.best_fit(sizes, length)
    if data.packing
    else packing.one_each(len(sizes))
    for sizes in lengths
  ]
  loader = loader_lib.Loader(
    rows.train,
    plans[0],
    batch_size=train.batch_size,
    length=length,
    seed=run.seed,
    num_epochs=train.num_epochs,
  )
  if not rows.validation:
    return loader, None
  # No micro-batch of nothing but padding.
  micro = train.micro_batch_size or train.batch_size
  num_micro = -(-min(plans[1].num_rows, train.batch_size) // micro)
  validation = loader_lib.Loader(
    rows.validation,
    plans[1],
    batch_size=num_micro * micro,
    length=length,
    seed=0,
    num_epochs=1,
  )
  return loader, validation


def _first_state(run, store, trainer, trainable) -> state_lib.TrainState:
  """That of the last checkpoint, or one that begins with `trainable`.

  Either way `trainable` is used up: beside the state there is no second copy
  of what is trained.
  """
  if not store.steps():
    return trainer.init_state(trainable)
  for leaf in jax.tree.leaves(trainable):
    leaf.delete()
  found = checkpoint.restore_latest(store, trainer.abstract_state, run.fields)
  if found is None:
    raise types.InputError(f'{store.folder}: checkpoints went away meanwhile')
  state, _ = found
  progress.say(f'{run.label}: continues from step {int(state.step)}')
  return state


def _train(
  setup, run, trainer, loader, state, frozen, store, should_stop, work
):
  """The loop with its hooks."""
  train = setup.config.train
  start = int(state.step)
  writer = metric_writer.MetricWriter(
    run.folder,
    start,
    distributed.is_main_process(),
    train_metrics.wandb_run(setup.config, run.label),
  )
  lines = progress.TrainProgress(
    run.label,
    loader.num_steps,
    train.log_every,
    num_warmup=round(train.warmup_fraction * loader.num_steps),
  )

  def on_step(report: loop.StepReport) -> None:
    lines.on_step(report)
    writer.write(report.step, train_metrics.figures(report, work))

  def save(state: state_lib.TrainState) -> None:
    writer.flush()
    checkpoint.save(store, state, {'fingerprint': run.fields})

  hooks = loop.Hooks(
    on_step=on_step,
    save=save,
    save_every=train.checkpoint_every,
    should_stop=should_stop,
  )
  batches = (
    (step, trainer.to_device(batch)) for step, batch in loader.iterate(start)
  )
  try:
    return loop.train(
      state, lambda s, batch: trainer.step(s, frozen, batch), batches, hooks
    )
  except loop.NonFiniteError as error:
    raise _traced(error, run, loader, store) from error
  finally:
    writer.close()


def _traced(
  error: loop.NonFiniteError, run: StageRun, loader, store
) -> loop.NonFiniteError:
  """The error with what a user looks for: examples, and the last good state."""
  store.wait()
  saved = store.steps()
  last = store.folder / str(saved[-1]) if saved else 'none, only the start'
  lines = [f'{run.label}: {error}; the last good checkpoint: {last}']
  for step in error.steps:
    ids = [loader.examples.ids[i] for row in loader.rows(step) for i in row]
    lines.append(f'examples of step {step}: {", ".join(ids)}')
  return loop.NonFiniteError('\n'.join(lines), error.steps)


def _validate(run, trainer, params, validation):
  """Loss parts on the validation rows, as JSON has them; {} without rows."""
  if validation is None:
    return {}
  terms = losses.no_terms()
  for _, batch in validation.iterate():
    more = trainer.evaluate(*params, trainer.to_device(batch))
    # On the host: sums of several processes' devices are the same on each.
    terms = numerics.tree_add(terms, jax.device_get(more))
  loss = losses.objective_loss(
    terms, run.objective, terms.ce_count, terms.score_count
  )
  terms = jax.tree.map(float, terms)
  figures: dict[str, float | None] = {
    'validation_score_rmse': None,
    'validation_ce': None,
    'validation_loss': float(loss),
  }
  if terms.score_count:
    mse = terms.score_sq_sum / terms.score_count
    figures['validation_score_rmse'] = math.sqrt(mse)
  if terms.ce_count:
    figures['validation_ce'] = terms.ce_sum / terms.ce_count
  shown = ', '.join(f'{k} {v:.4f}' for k, v in figures.items() if v is not None)
  progress.say(
    f'{run.label}: {len(validation.examples)} validation rows: {shown}'
  )
  return _as_json(figures)


def _as_json(figures: dict[str, float | None]) -> dict[str, Any]:
  """The figures with null where one is not finite, and the reason for it."""
  lost = [
    k for k, v in figures.items() if v is not None and not math.isfinite(v)
  ]
  if not lost:
    return figures
  reason = f'not finite: {", ".join(lost)}'
  return figures | dict.fromkeys(lost) | {'validation_reason': reason}


def _say_sizes(run, loader, state, frozen) -> None:
  """Parameters and memory, before the first step."""
  trained = sum(x.size for x in jax.tree.leaves(state.params))
  kept = sum(x.size for x in jax.tree.leaves(frozen))
  size = progress.gigabytes(quantization.num_bytes((state, frozen)))
  progress.say(
    f'{run.label}: {trained:,} trained and {kept:,} frozen parameters, {size}'
    f' with the optimizer; {loader.num_steps} steps of {loader.batch_size} x'
    f' {loader.length} tokens'
  )
  num_rows, num_examples = loader.plan.num_rows, len(loader.examples)
  progress.say(
    f'{run.label}: {num_examples} examples in {num_rows} rows,'
    f' {num_examples / num_rows:.2f} in each, {loader.fill:.1%} full'
  )
