"""Joins model, mesh, optimizer and tokenizer into what a run works with.

The only place that knows both the configuration and the parts; what it gives
out are pure functions of arrays and records of numbers.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

import jax
import ml_collections
import optax

from tract_jax import types
from tract_jax.data import synthetic
from tract_jax.models import lora
from tract_jax.objectives import losses
from tract_jax.parallel import (
  mapping,
  partition,
  row_placement,
  tpu_options,
)
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.pipeline import (
  base_model,
  judge_file,
  model_source,
  progress,
  row_settings,
  slot_count,
)
from tract_jax.pipeline import loss_fn as loss_fn_lib
from tract_jax.pipeline import methods as methods_lib
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
    model: the seed model, or the judge.
    as_is: {name: method} of config.methods, of a model that is used as it is;
      else empty.
  """

  config: ml_collections.ConfigDict
  grid: types.ScoreGrid
  tokenizer: tokenizer_lib.Tokenizer
  cot_scores: score_tokens.ScoreTokens
  bare_scores: score_tokens.ScoreTokens
  model: base_model.BaseModel
  as_is: Mapping[str, methods_lib.Method]

  @property
  def methods(self) -> dict[str, methods_lib.Method]:
    """{name: method}, as this run predicts by them."""
    table = methods_lib.trained_with(self.config.train.expectation)
    return {**table, **self.as_is}


def build(
  config: ml_collections.ConfigDict,
  *,
  as_judge: bool = False,
  trains: bool = True,
  devices: Sequence[jax.Device] | None = None,
) -> Setup:
  """Reads tokenizer and architecture and makes the model's functions.

  No weight is read or made yet.

  Args:
    config: checked.
    as_judge: whether nothing is trained, so that the settings of an exported
      judge take the place of the configuration's.
    trains: whether this process trains; one that only samples has the mesh for
      that.
    devices: of the mesh. None: to train, those of all processes; else this
      process's.

  Returns:
    The setup.

  Raises:
    types.InputError: a missing or unsupported model, a score that is not one
      token, a mesh that does not fit the devices.
  """
  config = row_settings.with_template(config)
  sources = model_source.find_model(config.model) if config.model.path else None
  as_is: Mapping[str, methods_lib.Method] = {}
  if as_judge and sources:
    config, as_is = judge_file.applied(config, sources.judge_folder)
  make_mesh = training_mesh if trains and not as_judge else sampling_mesh
  mesh = make_mesh(config, devices)
  if sources:
    tokenizer = tokenizer_lib.load_tokenizer(str(sources.folder))
    model = base_model.from_source(sources, config, mesh)
  else:
    grid = prompts.make_score_grid(config.score.grid, config.score.format)
    tokenizer = tokenizer_lib.Tokenizer(synthetic.make_tokenizer(grid))
    model = base_model.from_scratch(config, tokenizer.vocab_size, mesh)
  return join(config, tokenizer, model, as_is)


def for_sampling(
  setup: Setup, devices: Sequence[jax.Device] | None = None
) -> Setup:
  """The setup as a process samples and predicts with it, by itself.

  Args:
    setup: of a run that trains.
    devices: of one process; None: this one's.

  Returns:
    The setup with the model on config.sampling.mesh; the same one where that is
    the mesh it is trained on.

  Raises:
    types.InputError: the mesh does not fit the devices or the model.
  """
  mesh = sampling_mesh(setup.config, devices)
  if mesh == setup.model.mesh:
    return setup
  model = base_model.from_architecture(
    setup.model.config, setup.model.sources, setup.config, mesh
  )
  return dataclasses.replace(setup, model=model)


def training_mesh(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """The mesh of all processes, over which the batch can be split.

  Args:
    config: checked.
    devices: of all processes; None: those of this run.

  Returns:
    The mesh.

  Raises:
    types.InputError: the mesh does not fit the devices, or the batch the mesh.
  """
  mesh = mesh_lib.make_mesh(**config.mesh, devices=devices)
  mapping.check_mode(config.mapping, mesh)
  train = config.train
  partition.check_rows(mesh, train.micro_batch_size or train.batch_size)
  return mesh


def sampling_mesh(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """The mesh on which a process samples; arguments as for `for_sampling`."""
  devices = jax.local_devices() if devices is None else devices
  own, name = config.sampling.mesh, 'config.sampling.mesh'
  data, fsdp, tensor = (own[a] or config.mesh[a] for a in mesh_lib.AXES)
  mesh = mesh_lib.make_mesh(data, fsdp, tensor, devices, name)
  mapping.check_mode(config.mapping, mesh, of_one_process=True)
  return mesh


def join(
  config: ml_collections.ConfigDict,
  tokenizer: tokenizer_lib.Tokenizer,
  model: base_model.BaseModel,
  as_is: Mapping[str, methods_lib.Method],
) -> Setup:
  """Finds the score tokens, and puts all parts together.

  Args:
    config: checked.
    tokenizer: of the model.
    model: the seed model, or the judge.
    as_is: {name: method} of config.methods, where nothing is trained.

  Returns:
    The setup.

  Raises:
    types.InputError: scores that the tokenizer cannot tell apart, or a
      tokenizer with more tokens than the model.
  """
  _check_vocabulary(tokenizer, model)
  if config.data.system_prompt:
    tokenizer = _with_system_prompt(tokenizer, config.data.system_prompt)
  grid = prompts.make_score_grid(config.score.grid, config.score.format)
  return Setup(
    config=config,
    grid=grid,
    tokenizer=tokenizer,
    cot_scores=score_tokens.find_score_tokens(
      tokenizer, grid, config.score.marker
    ),
    bare_scores=score_tokens.find_score_tokens(tokenizer, grid, ''),
    model=model,
    as_is=as_is,
  )


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Compiled functions of a stage, and the shardings of what they take.

  Attributes:
    init_state: trainable, whose memory it takes -> TrainState.
    abstract_state: shapes, dtypes and shardings of that.
    step: (state, frozen, batch [A, B, L]) -> (state, StepMetrics).
    evaluate: (trainable, frozen, batch [A, B, L]) -> LossTerms.
    to_device: the whole numpy Batch [B, L] -> Batch [A, B / A, L] on the mesh.
  """

  init_state: Callable[..., state_lib.TrainState]
  abstract_state: types.PyTree
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
  loss_fn = _loss_fn(setup, objective, with_cot, num_targets)
  trainable, frozen = lora.split_trainable(
    setup.model.abstract, setup.model.train_base
  )
  shardings = _state_shardings(setup, optimizer, trainable)
  params = tuple(
    jax.tree.map(lambda x: x.sharding, part) for part in (trainable, frozen)
  )
  mesh, mode = setup.model.mesh, setup.config.mapping
  make_step = functools.partial(
    step_lib.make_step, loss_fn, objective, optimizer, schedule
  )
  make_evaluate = functools.partial(step_lib.make_evaluate, loss_fn)
  options = tpu_options.for_training(mesh, train_base=setup.model.train_base)
  train = setup.config.train
  micro_rows = train.micro_batch_size or train.batch_size
  init_state = functools.partial(state_lib.init_state, optimizer=optimizer)
  return Trainer(
    init_state=jax.jit(init_state, out_shardings=shardings, donate_argnums=0),
    abstract_state=jax.tree.map(
      lambda x, sharding: x.update(sharding=sharding),
      jax.eval_shape(init_state, trainable),
      shardings,
    ),
    step=mapping.map_updates(
      make_step,
      mesh,
      (shardings, params[1]),
      mode=mode,
      updates_first=True,
      compiler_options=options,
    ),
    evaluate=mapping.map_updates(make_evaluate, mesh, params, mode=mode),
    to_device=lambda batch: mapping.place_micro_batches(
      batch, batch.inputs.shape[0] // micro_rows, mesh, mode
    ),
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
  return engine_lib.Engine(
    setup.model.cot_fns if with_cot else setup.model.fns,
    sampling,
    cot_format,
    lambda text: tokenizer.encode(text)[0].tolist(),
    tokenizer.decode,
    slots=slot_count.num_slots(config, setup.model, scores),
    max_length=slot_count.longest_row(config, setup.model),
    steps_per_call=config.sampling.steps_per_call,
    length_multiple=config.data.length_multiple,
    prefill_tokens=config.sampling.prefill_tokens,
    num_valid_tokens=tokenizer.vocab_size,
    max_retries=config.sampling.max_retries,
    unfinished=config.sampling.unfinished,
    placement=row_placement.RowPlacement(setup.model.mesh, config.mapping),
  )


_OPTIMIZER_FIELDS = dataclasses.fields(optimizer_lib.OptimizerConfig)


def _with_system_prompt(tokenizer, system_prompt: str):
  if not tokenizer.has_system_turn:
    progress.say(
      'config.data.system_prompt: the model has no system turn, so it stands '
      "before the user's text"
    )
  return dataclasses.replace(tokenizer, system_prompt=system_prompt)


def _check_vocabulary(tokenizer, model: base_model.BaseModel) -> None:
  if tokenizer.vocab_size > model.config.vocab_size:
    place = model.sources.name if model.sources else 'the model from scratch'
    raise types.InputError(
      f'{place}: the tokenizer has {tokenizer.vocab_size} tokens, the '
      f'embedding only {model.config.vocab_size}'
    )


def _loss_fn(setup, objective, with_cot, num_targets) -> step_lib.LossFn:
  return loss_fn_lib.make_loss_fn(
    setup.model,
    setup.cot_scores if with_cot else setup.bare_scores,
    objective,
    num_targets=num_targets,
    chunk_size=setup.config.train.logit_chunk,
  )


def _state_shardings(setup, optimizer, trainable) -> state_lib.TrainState:
  """Every leaf's sharding; Adam's moments lie as their parameters do."""
  replicated = jax.sharding.NamedSharding(
    setup.model.mesh, jax.sharding.PartitionSpec()
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
