"""How many CoTs are written together, and how long the longest may be.

    memory of a chip, but for a tenth
      - the weights, and their copy in 8 bits where CoTs are written with one
      - the cache of prompts that were read and wait for a slot
      -> as many slots as there is room for, each with a cache for the longest
         row and the logits of its next token

A step reads all weights however many slots it serves, so more of them write
more tokens in a second. The tenth is for what reading and writing compute with.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections

from tract_jax import numerics, types
from tract_jax.parallel import chips, partition, row_placement
from tract_jax.pipeline import base_model, base_weights
from tract_jax.sampling import decode_loop
from tract_jax.text import score_tokens

_USED = 0.9
# The host looks after every slot; by then the weights are a small part of what
# a step reads.
_MOST = 1024


def longest_row(
  config: ml_collections.ConfigDict, model: base_model.BaseModel
) -> int:
  """Most tokens of prompt, CoT, fixed words and score together.

  Args:
    config: with every key.
    model: whose positions end.

  Returns:
    What `data.max_length` and `sampling.max_new_tokens` allow.
  """
  wanted = config.data.max_length + config.sampling.max_new_tokens
  return min(wanted, model.config.longest_row)


def num_slots(
  config: ml_collections.ConfigDict,
  model: base_model.BaseModel,
  scores: score_tokens.ScoreTokens,
) -> int:
  """Slots of a process: those that the configuration says, or that fit.

  Args:
    config: with every key.
    model: on the mesh to sample on; its devices may be those of a topology.
    scores: that stand behind a CoT.

  Returns:
    `sampling.slots`. Where that is 0, as many as the devices have memory for,
    up to 1,024, and alike in each part of the mesh that has rows of its own: a
    multiple of 16, or fewer than 16, at least one; 16 in all where the memory
    is not known, as on a CPU.
  """
  if config.sampling.slots:
    return config.sampling.slots
  memory = chips.memory_bytes(model.mesh.devices.flat[0])
  if memory is None:
    return numerics.TILE
  num_parts = partition.num_row_shards(model.mesh)
  longest = longest_row(config, model)
  weights = base_weights.cot_shapes(model, config.sampling.weights)
  held = partition.device_bytes(weights)
  held += base_weights.bytes_beside(model, config.sampling.weights)
  # Of one slot in each part.
  cache = _cache_bytes(config, model, weights, num_parts, longest)
  waiting = max(1, config.sampling.prefill_tokens // (longest * num_parts))
  room = _USED * memory - held - waiting * cache
  slots = int(room // (cache + _logits_bytes(model, scores)))
  slots = min(max(slots, 1), _MOST // num_parts)
  if slots > numerics.TILE:
    slots -= slots % numerics.TILE
  return slots * num_parts


def _logits_bytes(
  model: base_model.BaseModel, scores: score_tokens.ScoreTokens
) -> int:
  """Of a slot, as if no vocabulary were split.

  Which tokens it has, and in a step logits, probabilities and their sums; or
  logits and probabilities of all nodes of a tree of scores.
  """
  num_floats = 3
  if scores.tree is not None:
    num_nodes = 1 + len(scores.tree.tokens)
    num_floats = max(num_floats, 2 * num_nodes)
  return model.fns.vocab_size * (1 + 4 * num_floats)


def _cache_bytes(
  config: ml_collections.ConfigDict,
  model: base_model.BaseModel,
  weights: types.PyTree,
  num_rows: int,
  longest: int,
) -> int:
  """On one device, of a cache for so many rows of the longest."""
  tokens = jax.ShapeDtypeStruct((num_rows, 1), jnp.int32)
  lengths = jax.ShapeDtypeStruct((num_rows,), jnp.int32)
  length = decode_loop.cache_length(longest, longest, model.cot_fns.cache_block)
  prefill = functools.partial(model.cot_fns.prefill, cache_length=length)
  _, cache = jax.eval_shape(prefill, weights, tokens, lengths)
  placement = row_placement.RowPlacement(model.mesh, config.mapping)
  shardings = placement.shardings(cache, decode_loop.STATE_AXES.cache)
  return partition.device_bytes(
    jax.tree.map(lambda x, s: x.update(sharding=s), cache, shardings)
  )
