"""Rules for values of the configuration that belong together."""

from collections.abc import Iterator
import importlib.util

import ml_collections

from tract_jax import types
from tract_jax.pipeline import methods as methods_lib
from tract_jax.text import prompts

# Of an update; all smaller sizes are looked through for one that divides it.
MAX_ROWS = 2**20


def problems(
  config: ml_collections.ConfigDict,
  *,
  as_judge: bool,
  needs_rows: bool,
  predicts: bool,
) -> Iterator[str]:
  """Problems of several keys together.

  Args:
    config: with every key, each value of its type.
    as_judge: whether nothing is trained, so that nothing for it is asked for.
    needs_rows: whether there must be any data.
    predicts: whether there must be rows to predict.

  Yields:
    A line each.
  """
  train, data = config.train, config.data
  micro = train.micro_batch_size or train.batch_size
  is_size = 1 <= train.batch_size <= MAX_ROWS
  if is_size and micro >= 1 and train.batch_size % micro:
    most = min(micro, train.batch_size)
    valid = [d for d in range(1, most + 1) if train.batch_size % d == 0]
    yield (
      f'config.train.micro_batch_size: {micro} does not divide '
      f'config.train.batch_size {train.batch_size}; {valid[-1]} does'
    )
  if train.lambda_candidates and not data.validation_fraction and not as_judge:
    yield (
      'config.train.lambda_candidates: are compared on validation rows, but '
      'config.data.validation_fraction is 0'
    )
  if needs_rows and data.source == 'files' and not data.train_path:
    if not as_judge and any(
      method.stages for method in methods_lib.known(config.methods)
    ):
      yield 'config.data.train_path: is empty; give the file of training rows'
  yield from _score_problems(config)
  yield from _wandb_problems(config, as_judge)
  yield from _model_problems(config, as_judge)
  yield from _length_problems(config)
  has_rows = data.source != 'files' or data.train_path or data.benchmarks
  if needs_rows and not has_rows:
    yield 'config.data.benchmarks: is empty, and so is train_path; no rows'
  elif predicts and data.source == 'files' and not data.benchmarks:
    if not data.held_out_fraction:
      yield (
        'config.data.benchmarks: is empty, and config.data.held_out_fraction '
        'is 0; no rows to predict'
      )


def _score_problems(config) -> Iterator[str]:
  """A grid and a format that write no scores."""
  try:
    prompts.make_score_grid(config.score.grid, config.score.format)
  except types.InputError as error:
    for line in str(error).splitlines():
      yield f'config.{line}'


def _wandb_problems(config, as_judge: bool) -> Iterator[str]:
  """What would be asked for in vain."""
  wandb = config.wandb
  for key in ('entity', 'mode'):
    if wandb[key] and not wandb.project:
      yield f'config.wandb.{key}: {wandb[key]!r} without config.wandb.project'
  spec = importlib.util.find_spec('wandb') if wandb.project else None
  # A mere folder of that name, as wandb itself makes, has no origin.
  is_there = spec is not None and spec.origin is not None
  if wandb.project and not as_judge and not is_there:
    yield (
      f'config.wandb.project: {wandb.project!r} needs wandb, which is not '
      "installed; pip install -e '.[wandb]' does it"
    )


def _model_problems(config, as_judge: bool) -> Iterator[str]:
  """Problems of a model's keys with others."""
  data, model = config.data, config.model
  if data.source == 'files' and not model.path:
    yield (
      'config.model.path: is empty; a model from scratch has a tokenizer for '
      'config.data.source="synthetic" only'
    )
  if config.pretrain.num_rows and (model.path or data.source != 'synthetic'):
    yield (
      f'config.pretrain.num_rows: {config.pretrain.num_rows} rows of the '
      'synthetic world are for a model from scratch; with config.model.path or '
      'config.data.source="files" set 0'
    )
  if model.base_quantization and not model.lora_rank and not as_judge:
    yield (
      f'config.model.base_quantization: {model.base_quantization!r} needs '
      'adapters to train; set config.model.lora_rank'
    )
  if model.base_quantization and config.sampling.weights:
    yield (
      f'config.sampling.weights: {config.sampling.weights!r}, but the weights '
      f'are in {model.base_quantization} already; leave it empty'
    )
  for key in ('adapter', 'revision'):
    if model[key] and not model.path:
      yield f'config.model.{key}: {model[key]!r} without config.model.path'
  if config.export.format == 'adapter' and not model.lora_rank:
    yield (
      "config.export.format: 'adapter' needs adapters; set "
      'config.model.lora_rank'
    )
  if not model.path and model.lora_rank and not as_judge:
    yield (
      f'config.model.lora_rank: {model.lora_rank} on a model from scratch '
      'would leave its random weights untrained; set 0'
    )
  if (
    not model.path
    and model.num_heads >= 1
    and (
      model.hidden_size % (2 * model.num_heads)
      or model.num_heads % max(model.num_kv_heads, 1)
    )
  ):
    yield (
      f'config.model.num_heads: {model.num_heads} heads do not fit '
      f'hidden_size {model.hidden_size} and {model.num_kv_heads} kv heads'
    )


def _length_problems(config) -> Iterator[str]:
  """A limit that leaves prompts no room, whatever the tokenizer."""
  most, cot_tokens = config.data.max_length, config.sampling.max_new_tokens
  with_cot = methods_lib.any_with_cot(config.methods)
  if config.data.too_long == 'truncate' and with_cot and most <= cot_tokens:
    yield (
      f'config.data.max_length: {most} leaves a truncated prompt no room '
      f'beside config.sampling.max_new_tokens {cot_tokens}'
    )
