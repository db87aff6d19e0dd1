"""Trains a stage of a run with PyTorch, on the rows that tract_jax gives it.

    seed model, fresh adapter, encoded rows -> judge.Trainer -> Hugging Face
      folder, or a PEFT folder where an adapter is trained

The seed model and the adapter are drawn as a run draws them, rows come in the
run's order, and the numbers are those of its configuration, so that nothing but
the side differs.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

from benchmarks.pytorch import judge
from tract_jax import types
from tract_jax.data import encoding, packing
from tract_jax.data import loader as loader_lib
from tract_jax.models import hf_export, lora, peft_adapter
from tract_jax.parallel import agreement
from tract_jax.pipeline import (
  base_weights,
  build,
  export,
  finetune,
  fingerprint,
  pretrain,
  progress,
)
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import objective as objective_lib
from tract_jax.training import metric_writer


@dataclasses.dataclass(frozen=True)
class Start:
  """What the stages of a seed start from.

  Attributes:
    model: a Hugging Face folder.
    adapter: a PEFT folder on it, drawn and not yet trained; None where all
      weights are trained.
  """

  model: str
  adapter: str | None = None


def write_start(
  setup: build.Setup,
  pretraining: Sequence[types.Example],
  workdir: pathlib.Path,
  seed: int,
) -> Start:
  """Writes a seed's model or adapter, where it is not read as it is.

  Args:
    setup: of the run.
    pretraining: rows that make a model from scratch the seed model, which our
      trainer does for both sides; [] without any.
    workdir: of the run.
    seed: draws random weights and adapters.

  Returns:
    The start.
  """
  sources = setup.model.sources
  if sources and not setup.config.model.lora_rank:
    return Start(str(sources.folder))
  folder = workdir / 'start' / f'seed{seed}'
  trainable, frozen = base_weights.init_params(setup.model, seed)
  if sources:
    # A PEFT folder is used from elsewhere, too.
    base = str(sources.folder.absolute())
    peft_adapter.write_adapter(
      folder, trainable, export.lora_config(setup), base
    )
    return Start(base, str(folder))
  if pretraining:
    stage, _ = pretrain.trained(
      setup,
      pretraining,
      workdir,
      seed,
      fingerprint.model_fields(setup),
      agreement.Agreement(lambda: False),
    )
    trainable = finetune.load_trained(stage, setup)
  hf = setup.tokenizer.hf
  hf_export.write_weights(
    folder, lora.merge(trainable, frozen), dtype=np.float32
  )
  hf_export.write_config(
    folder,
    setup.model.config,
    dtype=np.float32,
    tokens=hf_export.TokenIds(
      hf.bos_token_id, (setup.tokenizer.eos_id,), hf.pad_token_id
    ),
  )
  return Start(str(folder))


def train(
  setup: build.Setup,
  stage: methods_lib.Stage,
  rows: Sequence[types.EncodedExample],
  start: Start,
  folder: pathlib.Path,
  *,
  label: str,
  seed: int,
  device: str,
) -> None:
  """Trains a stage to its end.

  Args:
    setup: of the run.
    stage: a row of the table of methods has it.
    rows: what it is trained on.
    start: the seed model.
    folder: gets the trained model or adapter, the tokenizer, and a line of
      metrics.jsonl for each update.
    label: for progress.
    seed: of the order of the rows.
    device: "cpu" or "cuda".

  Raises:
    types.InputError: no rows, or the model is made for shorter ones.
  """
  if not rows:
    raise types.InputError(f'{label}: no training rows are left')
  config = setup.config.train
  loader = _loader(setup, rows, seed)
  model = judge.load(start.model, start.adapter, device)
  trainer = judge.Trainer(
    model,
    _objective(setup, stage),
    lr=config.lr,
    num_warmup_steps=round(config.warmup_fraction * loader.num_steps),
    num_steps=loader.num_steps,
    clip_norm=config.clip_norm,
    betas=(config.b1, config.b2),
    eps=config.eps,
    weight_decay=config.weight_decay,
    micro_batch_size=config.micro_batch_size,
  )
  with metric_writer.MetricWriter(folder, 0) as writer:
    for step, batch in loader.iterate():
      figures = trainer.step(_batch(batch))
      writer.write(step, dataclasses.asdict(figures))
      number = step + 1
      if number in (1, loader.num_steps) or number % config.log_every == 0:
        progress.say(
          f'{label}: step {number}/{loader.num_steps}  loss {figures.loss:.4f}'
          f'  ce {figures.ce:.4f}  score rmse {figures.score_mse**0.5:.3f}'
        )
  model.save_pretrained(folder)
  setup.tokenizer.hf.save_pretrained(folder)


def _objective(setup: build.Setup, stage: methods_lib.Stage) -> judge.Objective:
  ours = objective_lib.make_objective(setup.config, stage.objective)
  bare = stage.cot_source == 'none'
  scores = setup.bare_scores if bare else setup.cot_scores
  return judge.Objective(
    ours.ce_weight,
    ours.score_weight,
    ours.ce_includes_score,
    scores.ids,
    setup.grid.values,
  )


def _loader(
  setup: build.Setup, rows: Sequence[types.EncodedExample], seed: int
) -> loader_lib.Loader:
  longest = int(encoding.sizes(rows)[0].max())
  return loader_lib.Loader(
    rows,
    packing.one_each(len(rows)),
    batch_size=setup.config.train.batch_size,
    length=finetune.row_length(setup, longest),
    seed=seed,
    num_epochs=setup.config.train.num_epochs,
  )


def _batch(batch: types.Batch) -> judge.Batch:
  return judge.Batch(
    inputs=batch.inputs,
    targets=batch.targets,
    is_token=batch.segment_ids > 0,
    cot_mask=batch.cot_mask,
    score_mask=batch.score_mask,
    scores=batch.score_values,
  )
