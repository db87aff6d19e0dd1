"""The programs of a run with shapes in place of arrays, ready to be compiled.

    config -> ModelConfig -> Setup on the slice's devices
      -> build.make_trainer -> step(state, frozen, batch)      train_stage<n>
      -> build.make_engine  -> prefill, decode_steps           prefill, decode

They are the very functions of a run: nothing here computes. No weight is read,
and no tokenizer is needed: a made-up one takes its place where the model's
folder has none, so ids of score tokens are placeholders. Axes: A micro-batches,
B rows, L length, E examples per row, Y score grid.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from tract_jax import types
from tract_jax.data import loader as loader_lib
from tract_jax.data import synthetic
from tract_jax.models import config as model_config_lib
from tract_jax.models import (
  flops,
  known_models,
  kv_cache,
  lora,
)
from tract_jax.parallel import partition, row_placement
from tract_jax.pipeline import (
  base_model,
  base_weights,
  build,
  finetune,
  model_source,
  slot_count,
)
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import objective as objective_lib
from tract_jax.sampling import decode_loop
from tract_jax.sampling import engine as engine_lib
from tract_jax.text import prompts
from tract_jax.text import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True)
class Program:
  """A function with the shapes that it is compiled for.

  Attributes:
    name: "train_stage1", "train_stage2", "prefill" or "decode".
    fn: what `jax.jit` gave.
    args: trees of jax.ShapeDtypeStruct.
    key: programs of the same key are the same.
    num_devices: that it runs on.
    num_steps: steps of a call: tokens that each slot gets; else 1.
    num_rows: rows of a step, on all devices.
    num_tokens: tokens of a step, on all devices, padding included.
    ideal_flops: of a step, on all devices; see models/flops.
    pair_flops: operations of one product of queries with keys, or of
      probabilities with values, in one layer, on one device: what a kernel's
      work is counted in.
    ideal_bytes: that one device must read in a step; 0 where memory does not
      bound it.
    resident_bytes: of what else lies on a device meanwhile.
    dynamic_trips: rounds of loops that end as the data says.
  """

  name: str
  fn: Any
  args: tuple[Any, ...]
  key: tuple[Any, ...]
  num_devices: int
  num_rows: int
  num_tokens: int
  ideal_flops: float
  pair_flops: float
  num_steps: int = 1
  ideal_bytes: float = 0.0
  resident_bytes: float = 0.0
  dynamic_trips: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Placeholder(tokenizer_lib.Tokenizer):
  """The made-up world's tokenizer, with as many tokens as a model has."""

  num_tokens: int = 0

  @property
  def vocab_size(self) -> int:
    return self.num_tokens


def read_architecture(
  model: ml_collections.ConfigDict,
) -> model_config_lib.ModelConfig | None:
  """The numbers of a model: its config.json's, or those known by its name.

  Args:
    model: config.model.

  Returns:
    The architecture; None for a model from scratch.

  Raises:
    types.InputError: a folder that cannot be read, or numbers that are nowhere.
  """
  if not model.path:
    return None
  if not model_source.is_folder(model.path):
    return known_models.architecture(model.path)
  source = model_source.find(model.path, model.revision)
  return base_model.read_architecture(source)


def make_setup(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device],
  architecture: model_config_lib.ModelConfig | None,
) -> build.Setup:
  """A run's setup on devices that are not there.

  Args:
    config: checked.
    devices: of the topology.
    architecture: of `read_architecture`.

  Returns:
    The setup; its model has no weights.

  Raises:
    types.InputError: a mesh that does not fit the devices or the model.
  """
  mesh = build.training_mesh(config, devices)
  grid = prompts.make_score_grid(config.score.grid, config.score.format)
  made_up = synthetic.make_tokenizer(grid)
  if not architecture:
    tokenizer = tokenizer_lib.Tokenizer(made_up)
    model = base_model.from_scratch(config, tokenizer.vocab_size, mesh)
  else:
    tokenizer = _Placeholder(made_up, num_tokens=architecture.vocab_size)
    model = base_model.from_architecture(architecture, None, config, mesh)
  return build.join(config, tokenizer, model, as_is={})


def training(
  setup: build.Setup, name: str, stage: methods_lib.Stage, num_steps: int
) -> Program:
  """The training step of a stage.

  Rows are as long as `data.max_length` allows, and have as many targets as the
  longest CoT that sampling may write.

  Args:
    setup: of `make_setup`, with whole numbers of rows for the mesh.
    name: of the program.
    stage: of the method.
    num_steps: updates of the stage.

  Returns:
    The program.
  """
  config, model = setup.config, setup.model
  train = config.train
  with_cot = stage.cot_source != 'none'
  scores = setup.cot_scores if with_cot else setup.bare_scores
  # The score, and the end token.
  num_targets = max(map(len, scores.sequences)) + 1
  if with_cot:
    num_targets += config.sampling.max_new_tokens + len(scores.lead_ids)
  num_targets = loader_lib.static_size([num_targets], finetune.TARGET_MULTIPLE)
  length = finetune.row_length(setup, config.data.max_length)
  num_targets = min(num_targets * examples_per_row(config), length)
  trainer = build.make_trainer(
    setup,
    objective_lib.make_objective(config, stage.objective),
    with_cot,
    num_steps,
    num_targets,
  )
  _, frozen = lora.split_trainable(model.abstract, model.train_base)
  micro = train.micro_batch_size or train.batch_size
  batch = _batch(setup, train.batch_size // micro, micro, length)
  return Program(
    name=name,
    fn=trainer.step,
    args=(trainer.abstract_state, frozen, batch),
    key=('train', stage.objective, with_cot),
    num_devices=model.mesh.size,
    num_rows=train.batch_size,
    num_tokens=train.batch_size * length,
    ideal_flops=flops.update_flops(
      model.config,
      num_rows=train.batch_size,
      length=length,
      num_targets=num_targets,
      train_base=model.train_base,
    ),
    pair_flops=micro * _pair_flops(model, length),
  )


def sampling(setup: build.Setup) -> list[Program]:
  """Reading prompts, and writing CoTs in slots.

  The cache has room for the longest row that `data.max_length` and
  `sampling.max_new_tokens` allow; time is counted for slots that hold a prompt
  and a CoT of the assumed lengths.

  Args:
    setup: of `build.for_sampling`, on the devices of one host.

  Returns:
    [prefill, decode].
  """
  config, model = setup.config, setup.model
  engine = build.make_engine(setup, with_cot=True)
  params = base_weights.cot_shapes(model, config.sampling.weights)
  beside = base_weights.bytes_beside(model, config.sampling.weights)
  state, control = _slots(setup, engine, params)
  length = engine.buckets.length(config.plan.prompt_tokens)
  num_prompts = engine.buckets.num_rows(length)
  rows = partition.batch_sharding(model.mesh)
  tokens, lengths = (
    jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    for shape in ((num_prompts, length), (num_prompts,))
  )
  prefill = Program(
    name='prefill',
    fn=engine.fns.prefill,
    args=(params, tokens, lengths),
    key=('prefill',),
    num_devices=model.mesh.size,
    num_rows=num_prompts,
    num_tokens=num_prompts * length,
    ideal_flops=num_prompts * flops.row_flops(model.config, length, 0).total,
    pair_flops=num_prompts * _pair_flops(model, length),
    resident_bytes=partition.device_bytes(state) + beside,
  )
  num_slots, cache_length = len(control.starts), state.cache.length
  filled = config.plan.prompt_tokens + config.plan.cot_tokens
  token = flops.token_flops(model.config, filled)
  entry_bytes = partition.device_bytes(state.cache) / cache_length
  decode = Program(
    name='decode',
    fn=engine.fns.decode_steps,
    args=(params, state, control),
    key=('decode',),
    num_devices=model.mesh.size,
    num_rows=num_slots,
    num_tokens=num_slots,
    ideal_flops=num_slots * token.total,
    pair_flops=0.0,
    num_steps=config.sampling.steps_per_call,
    ideal_bytes=partition.device_bytes(params) + entry_bytes * filled,
    # Prompts that were read and wait for a slot.
    resident_bytes=entry_bytes / num_slots * num_prompts * length + beside,
    dynamic_trips=-(
      -filled // kv_cache.block_length(cache_length, model.fns.cache_block)
    ),
  )
  return [prefill, decode]


def row_length(config: ml_collections.ConfigDict) -> int:
  """L, of training rows as long as they may be."""
  data = config.data
  return loader_lib.static_size([data.max_length], data.length_multiple)


def examples_per_row(config: ml_collections.ConfigDict) -> int:
  """E, for examples of the assumed lengths."""
  if not config.data.packing:
    return 1
  tokens = config.plan.prompt_tokens + config.plan.cot_tokens
  return max(1, row_length(config) // tokens)


def _slots(
  setup: build.Setup, engine: engine_lib.Engine, params: types.PyTree
) -> tuple[decode_loop.DecodeState, decode_loop.Control]:
  """Shapes of the slots, and of what the host asks of them."""
  config, model = setup.config, setup.model
  rows = partition.batch_sharding(model.mesh)
  control = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows),
    engine.make_tracker().control,
  )
  longest = slot_count.longest_row(config, model)
  num_slots, cache_length = len(control.starts), engine.cache_length(longest)
  state = jax.eval_shape(
    lambda p: engine.fns.empty_state(p, num_slots, cache_length), params
  )
  placement = row_placement.RowPlacement(model.mesh, config.mapping)
  state = jax.tree.map(
    lambda x, sharding: x.update(sharding=sharding),
    state,
    placement.shardings(state, decode_loop.STATE_AXES),
  )
  return state, control


def _pair_flops(model: base_model.BaseModel, length: int) -> float:
  """Of one product of a row's queries with its keys, on one of the devices."""
  pairs = flops.num_pairs(length, model.config.sliding_window)
  width = model.config.num_heads * model.config.head_dim
  return 2.0 * pairs * width / model.mesh.size


def _batch(
  setup: build.Setup, num_micro: int, num_rows: int, length: int
) -> types.Batch:
  """Shapes of micro-batches [A, B, L]."""
  rows = loader_lib.make_batch(
    [],
    batch_size=num_rows,
    length=length,
    max_examples=examples_per_row(setup.config),
    num_scores=len(setup.grid.values),
  )
  sharding = partition.micro_batch_sharding(setup.model.mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (num_micro, *x.shape), x.dtype, sharding=sharding
    ),
    rows,
  )
