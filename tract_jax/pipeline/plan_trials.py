"""What a plan tries where a program does not fit, from mild to drastic.

Each trial keeps what those before it changed. Which of them fits is found by
compiling them; one that the model or the mesh does not allow is passed over.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from tract_jax import numerics
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.pipeline import config as config_lib

# Compiling takes up to minutes.
MAX_TRIALS = 6

_LORA_RANK = 8

Changes = dict[str, Any]


def changed(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A copy of a configuration with other values.

  Args:
    config: with every key.
    changes: {dotted key: value}.

  Returns:
    The copy.
  """
  copy = config_lib.merge(config)
  copy.update_from_flattened_dict(dict(changes))
  return copy


def asked(
  config: ml_collections.ConfigDict, num_chips: int
) -> ml_collections.ConfigDict:
  """The configuration with a batch that can be planned.

  Args:
    config: checked.
    num_chips: of the slice.

  Returns:
    A copy, with the rows that `plan.rows_per_chip` means in one pass through
    the model; or with the batch as it is, but for micro-batches that the mesh
    cannot split, which get the next larger number of rows.

  Raises:
    types.InputError: a mesh that does not fit the chips.
  """
  num_rows = config.plan.rows_per_chip * num_chips
  if num_rows:
    config = changed(
      config, {'train.batch_size': num_rows, 'train.micro_batch_size': 0}
    )
  return changed(config, _whole_rows(config, num_chips))


def lighter_training(
  config: ml_collections.ConfigDict, num_chips: int
) -> Iterator[Changes]:
  """Changes that make a training step smaller, one after another.

  Weights split over all chips; then every layer computed again in backward;
  then half the rows at a time, down to one a chip; then adapters only.

  Args:
    config: of `asked`.
    num_chips: of the slice.

  Yields:
    What changes beside what those before it changed.
  """
  sizes = mesh_lib.resolve_sizes(**config.mesh, num_devices=num_chips)
  if sizes != (1, num_chips, 1):
    mesh = {'mesh.data': 1, 'mesh.fsdp': -1, 'mesh.tensor': 1}
    config = changed(config, mesh)
    rows = _whole_rows(config, num_chips)
    config = changed(config, rows)
    yield mesh | rows
  if config.model.remat != 'full':
    yield {'model.remat': 'full'}
  micro = config.train.micro_batch_size or config.train.batch_size
  while micro % 2 == 0 and micro > num_chips:
    micro //= 2
    yield {'train.micro_batch_size': micro}
  if not config.model.lora_rank and config.model.path:
    yield {'model.lora_rank': _LORA_RANK}


def lighter_sampling(
  config: ml_collections.ConfigDict, num_slots: int
) -> Iterator[Changes]:
  """Changes that make the sampler's programs smaller, one after another.

  No weights in 8 bits, which lie beside those that they are made of; weights
  split by heads and hidden units over all chips of a host; then half the slots,
  and prompts read at a time; then the cache in 8 bits.

  Args:
    config: of `asked`.
    num_slots: that it has.

  Yields:
    What changes beside what those before it changed.
  """
  if config.sampling.weights:
    yield {'sampling.weights': ''}
  if config.sampling.mesh.tensor != -1:
    sizes = {'data': 1, 'fsdp': 1, 'tensor': -1}
    yield {f'sampling.mesh.{axis}': n for axis, n in sizes.items()}
  slots, tokens = num_slots, config.sampling.prefill_tokens
  while slots // 2 >= numerics.TILE:
    slots = slots // 2 // numerics.TILE * numerics.TILE
    tokens = max(tokens // 2, 1)
    yield {'sampling.slots': slots, 'sampling.prefill_tokens': tokens}
  if not config.sampling.kv_cache:
    yield {'sampling.kv_cache': 'int8'}


def _whole_rows(config: ml_collections.ConfigDict, num_chips: int) -> Changes:
  """What makes each micro-batch one that the mesh can split."""
  train = config.train
  data, fsdp, _ = mesh_lib.resolve_sizes(**config.mesh, num_devices=num_chips)
  micro = train.micro_batch_size or train.batch_size
  whole = -(-micro // (data * fsdp)) * data * fsdp
  if whole == micro:
    return {}
  return {
    'train.batch_size': train.batch_size // micro * whole,
    'train.micro_batch_size': whole,
  }
