"""Joins model, mesh, optimizer and tokenizer into what a run works with.

The only place that knows both the configuration and the parts; what it gives
out are pure functions of arrays and records of numbers.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from tract_jax import numerics, types
from tract_jax.data import synthetic
from tract_jax.models import config as model_config_lib
from tract_jax.models import hf_weights, lora, transformer
from tract_jax.objectives import losses, score_tree
from tract_jax.parallel import mapping, partition
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.pipeline import progress, seed_model
from tract_jax.sampling import engine as engine_lib
from tract_jax.text import prompts, score_tokens
from tract_jax.text import tokenizer as tokenizer_lib
from tract_jax.training import optimizer as optimizer_lib
from tract_jax.training import state as state_lib
from tract_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a run works with; nothing in it changes.

  Attributes:
    config: every key.
    grid: the scores.
    tokenizer: of the seed model.
    cot_scores, bare_scores: score tokens after a CoT, and without one.
    model_config: the architecture.
    fns: the model as pure functions.
    mesh: the devices.
    model_path: the seed model's folder; None for a model from scratch.
    shardings: tree like params.
  """

  config: ml_collections.ConfigDict
  grid: types.ScoreGrid
  tokenizer: tokenizer_lib.Tokenizer
  cot_scores: score_tokens.ScoreTokens
  bare_scores: score_tokens.ScoreTokens
  model_config: model_config_lib.ModelConfig
  fns: types.ModelFns
  mesh: jax.sharding.Mesh
  model_path: pathlib.Path | None
  shardings: types.PyTree


def build(config: ml_collections.ConfigDict) -> Setup:
  """Reads tokenizer and architecture and makes the model's functions.

  No weight is read or made yet.

  Args:
    config: checked.

  Returns:
    The setup.

  Raises:
    types.InputError: a missing or unsupported model, a score that is not one
      token, a mesh that does not fit the devices.
  """
  model = config.model
  grid = prompts.make_score_grid(config.score.grid, config.score.format)
  if model.path:
    path = seed_model.seed_model_path(model.path)
    tokenizer = tokenizer_lib.load_tokenizer(str(path))
    model_config = _read_architecture(path, tokenizer)
  else:
    path = None
    tokenizer = tokenizer_lib.Tokenizer(synthetic.make_tokenizer(grid))
    model_config = _from_scratch(model, tokenizer)
  fns = transformer.make_model(
    model_config,
    dtype=jnp.dtype(model.dtype),
    lora_rank=model.lora_rank,
    lora_alpha=model.lora_alpha,
    remat=model.remat,
  )
  mesh = mesh_lib.make_mesh(**config.mesh)
  partition.check_rows(
    mesh, config.train.micro_batch_size or config.train.batch_size
  )
  abstract = jax.eval_shape(fns.init, jax.random.key(0))
  return Setup(
    config=config,
    grid=grid,
    tokenizer=tokenizer,
    cot_scores=score_tokens.find_score_tokens(
      tokenizer, grid, config.score.marker
    ),
    bare_scores=score_tokens.find_score_tokens(tokenizer, grid, ''),
    model_config=model_config,
    fns=fns,
    mesh=mesh,
    model_path=path,
    shardings=partition.tree_shardings(mesh, fns.logical_axes, abstract),
  )


def init_params(setup: Setup, seed: int) -> tuple[types.PyTree, types.PyTree]:
  """The seed model p0: weights from its folder, or random ones.

  Args:
    setup: of the run.
    seed: draws random weights and adapters.

  Returns:
    (trainable, frozen), each with None where the other has a leaf.
  """
  train_base = setup.config.model.lora_rank == 0
  key = jax.random.fold_in(jax.random.key(seed), 0)
  abstract = abstract_params(setup)
  begin = time.perf_counter()
  if setup.model_path is None:
    init = jax.jit(setup.fns.init, out_shardings=setup.shardings)
    params = init(key)
  else:
    # Only the adapters are drawn: the compiler drops the unused base.
    adapters, base = lora.split_trainable(abstract, train_base=False)
    shardings, _ = lora.split_trainable(setup.shardings, train_base=False)
    init = jax.jit(
      lambda k: lora.split_trainable(setup.fns.init(k), train_base=False)[0],
      out_shardings=shardings,
    )
    weights = hf_weights.load_params(setup.model_path, base)
    params = (
      lora.merge(init(key), weights) if jax.tree.leaves(adapters) else weights
    )
    progress.say(
      f'seed model: {setup.model_path} read in '
      f'{progress.duration(time.perf_counter() - begin)}'
    )
  return lora.split_trainable(params, train_base=train_base)


def abstract_params(setup: Setup) -> types.PyTree:
  """Shapes, dtypes and shardings of all parameters."""
  shapes = jax.eval_shape(setup.fns.init, jax.random.key(0))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    setup.shardings,
  )


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Compiled functions of a stage, and the shardings of what they take.

  Attributes:
    init_state: trainable -> TrainState.
    step: (state, frozen, batch [A, B, L]) -> (state, StepMetrics).
    evaluate: (trainable, frozen, batch [A, B, L]) -> LossTerms.
    to_device: numpy Batch [B, L] -> Batch [A, B / A, L] on the mesh.
  """

  init_state: Callable[..., state_lib.TrainState]
  step: Callable[..., tuple[state_lib.TrainState, step_lib.StepMetrics]]
  evaluate: Callable[..., types.LossTerms]
  to_device: Callable[[types.Batch], types.Batch]


def make_trainer(
  setup: Setup,
  objective: losses.Objective,
  with_cot: bool,
  num_steps: int,
  num_targets: int,
) -> Trainer:
  """Maps the pure step of a stage onto the mesh.

  Args:
    setup: of the run.
    objective: the stage's.
    with_cot: whether targets have a CoT (decides the score tokens' ids).
    num_steps: updates of the stage, for the learning rate.
    num_targets: the most target positions of any row.

  Returns:
    The compiled (on first use) functions.
  """
  numbers = {f.name: setup.config.train[f.name] for f in _OPTIMIZER_FIELDS}
  optimizer_config = optimizer_lib.OptimizerConfig(**numbers)
  optimizer = optimizer_lib.make_optimizer(optimizer_config, num_steps)
  schedule = optimizer_lib.make_schedule(optimizer_config, num_steps)
  loss_fn = _make_loss_fn(setup, objective, with_cot, num_targets)

  def evaluate(trainable, frozen, batch):
    def add(terms, rows):
      return numerics.tree_add(terms, loss_fn(trainable, frozen, rows)), None

    return jax.lax.scan(add, losses.no_terms(), batch)[0]

  trainable, frozen = lora.split_trainable(
    abstract_params(setup), train_base=setup.config.model.lora_rank == 0
  )
  shardings = _state_shardings(setup, optimizer, trainable)
  return Trainer(
    init_state=jax.jit(
      functools.partial(state_lib.init_state, optimizer=optimizer),
      out_shardings=shardings,
    ),
    step=mapping.jit_step(
      step_lib.make_step(loss_fn, objective, optimizer, schedule),
      setup.mesh,
      shardings,
      jax.tree.map(lambda x: x.sharding, frozen),
    ),
    evaluate=jax.jit(evaluate),
    to_device=functools.partial(_to_device, setup),
  )


def make_engine(setup: Setup, with_cot: bool) -> engine_lib.Engine:
  """A sampling engine of a run.

  Args:
    setup: of the run.
    with_cot: whether it samples CoTs that end at the marker words, or only
      reads bare scores.

  Returns:
    The engine; it compiles when it is used.
  """
  config, tokenizer = setup.config, setup.tokenizer
  scores = setup.cot_scores if with_cot else setup.bare_scores
  sampling = engine_lib.SamplingParams(
    temperature=config.sampling.temperature,
    top_k=config.sampling.top_k,
    top_p=config.sampling.top_p,
    repetition_penalty=config.sampling.repetition_penalty,
    max_new_tokens=config.sampling.max_new_tokens,
  )
  cot_format = engine_lib.CotFormat(
    marker=scores.marker,
    lead_ids=scores.lead_ids,
    prefix_ids=scores.prefix_ids,
    score_ids=scores.ids,
    score_tree=scores.tree,
    eos_id=tokenizer.eos_id,
    pad_id=tokenizer.pad_id,
  )
  return engine_lib.make_engine(
    setup.fns,
    sampling,
    cot_format,
    lambda text: tokenizer.encode(text)[0].tolist(),
    tokenizer.decode,
    rows=config.sampling.rows,
    max_length=min(
      config.data.max_length + config.sampling.max_new_tokens,
      setup.model_config.max_position_embeddings,
    ),
    steps_per_call=config.sampling.steps_per_call,
    length_multiple=config.data.length_multiple,
    num_valid_tokens=tokenizer.vocab_size,
  )


# Rotary angles need no table: a model from scratch has no longest row.
_ANY_POSITION = 1 << 20
_OPTIMIZER_FIELDS = dataclasses.fields(optimizer_lib.OptimizerConfig)


def _read_architecture(path, tokenizer) -> model_config_lib.ModelConfig:
  """The architecture of a folder's config.json, fit for its tokenizer."""
  file = path / 'config.json'
  try:
    fields = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise types.InputError(f'{file}: {error}') from error
  try:
    model_config = model_config_lib.config_from_hf(fields)
  except types.InputError as error:
    lines = str(error).splitlines()
    raise types.InputError(
      '\n'.join(f'{file}: {line}' for line in lines)
    ) from error
  if tokenizer.vocab_size > model_config.vocab_size:
    raise types.InputError(
      f'{path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding '
      f'only {model_config.vocab_size}'
    )
  return model_config


def _from_scratch(model, tokenizer) -> model_config_lib.ModelConfig:
  """The architecture of config.model's numbers, for this vocabulary."""
  return model_config_lib.ModelConfig(
    vocab_size=tokenizer.vocab_size,
    hidden_size=model.hidden_size,
    intermediate_size=model.intermediate_size,
    num_layers=model.num_layers,
    num_heads=model.num_heads,
    num_kv_heads=model.num_kv_heads,
    head_dim=model.hidden_size // model.num_heads,
    rope_theta=model.rope_theta,
    initializer_range=model.initializer_range,
    max_position_embeddings=_ANY_POSITION,
    tie_word_embeddings=True,
  )


def _make_loss_fn(setup, objective, with_cot, num_targets) -> step_lib.LossFn:
  """The model and the loss as one pure function of params and rows."""
  scores = setup.cot_scores if with_cot else setup.bare_scores
  target = losses.ScoreTarget(scores.ids, setup.grid.values)

  def loss_fn(trainable, frozen, rows):
    params = lora.merge(trainable, frozen)
    project = functools.partial(setup.fns.project, params)
    inputs = rows.inputs, rows.positions, rows.segment_ids
    log_probs = None
    if scores.tree is None:
      hidden = setup.fns.hidden(params, *inputs)
    else:
      starts = score_tree.start_indices(rows)
      hidden, nodes = setup.fns.hidden_and_tree(
        params, *inputs, starts, scores.tree
      )
      log_probs = score_tree.projected(project, nodes, scores.tree)
    return losses.loss_terms(
      project,
      hidden,
      rows,
      objective,
      target,
      num_targets=num_targets,
      chunk_size=setup.config.train.logit_chunk,
      grid_log_probs=log_probs,
    )

  return loss_fn


def _state_shardings(setup, optimizer, trainable) -> state_lib.TrainState:
  """Every leaf's sharding; Adam's moments lie as their parameters do."""
  replicated = jax.sharding.NamedSharding(
    setup.mesh, jax.sharding.PartitionSpec()
  )
  params = jax.tree.map(lambda x: x.sharding, trainable)
  return state_lib.TrainState(
    step=replicated,
    params=params,
    opt_state=optax.tree_map_params(
      optimizer,
      lambda _, sharding: sharding,
      jax.eval_shape(optimizer.init, trainable),
      params,
      transform_non_params=lambda _: replicated,
    ),
  )


def _to_device(setup: Setup, batch: types.Batch) -> types.Batch:
  """[B, L] numpy rows -> [A, B / A, L] on the mesh, rows over data and fsdp."""
  train = setup.config.train
  micro = train.micro_batch_size or train.batch_size
  sharding = partition.micro_batch_sharding(setup.mesh)
  return jax.tree.map(
    lambda x: jax.device_put(
      np.reshape(x, (-1, micro, *x.shape[1:])), sharding
    ),
    batch,
  )
