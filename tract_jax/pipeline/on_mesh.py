"""What the mesh of a run asks of the model: kernels, and what moves when."""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from tract_jax import types
from tract_jax.models import (
  attention,
  placement,
  quantization,
  splash_attention,
)
from tract_jax.parallel import gather, mapping, partition

ATTENTION_KINDS = ('auto', 'plain', 'splash')

_QUERIES = ('rows', 'length', 'heads', 'head_dim')
_KEYS = ('rows', 'length', 'kv_heads', 'head_dim')
_SEGMENTS = ('rows', 'length')


def make_placement(
  attention_kind: str, mesh: jax.sharding.Mesh, num_heads: int
) -> placement.Placement:
  """What a mesh asks of the model.

  Args:
    attention_kind: as `row_attention`.
    mesh: of mesh.make_mesh.
    num_heads: N.

  Returns:
    The functions that the model is given.

  Raises:
    types.InputError: as `row_attention`.
  """
  anywhere = placement.Placement(
    row_attention=row_attention(attention_kind, mesh, num_heads),
    split_rows=functools.partial(_split_rows, mesh),
    gather=(
      functools.partial(_gather, mesh) if mesh.shape['fsdp'] > 1 else None
    ),
    # Beside a weight that is split, an adapter would move it.
    fuse_adapters=mesh.shape['tensor'] == 1,
  )
  if not _is_tpu(mesh):
    return anywhere
  return dataclasses.replace(
    anywhere,
    # "tensor" may split a weight within a head.
    keep_heads=mesh.shape['tensor'] == 1,
    # A step of the loop costs as much as it takes to read 300 entries.
    cache_block=512,
    # Narrower heads fill no tile of the memory: the compiler lays the whole
    # cache out anew in each step, in thirty times the time.
    cache_multiple=128,
  )


def row_attention(
  kind: str, mesh: jax.sharding.Mesh, num_heads: int
) -> Callable[..., types.Array]:
  """Attention of whole rows.

  Args:
    kind: "plain", "splash", or "auto": the splash kernel where the devices are
      TPUs and "tensor" divides the heads. On other devices the kernel is
      interpreted, slowly.
    mesh: of mesh.make_mesh.
    num_heads: N.

  Returns:
    A function like attention.causal_attention.

  Raises:
    types.InputError: a kernel that is asked for cannot split the heads.
  """
  is_tpu = _is_tpu(mesh)
  divides = num_heads % mesh.shape['tensor'] == 0
  if kind == 'splash' and not divides:
    raise types.InputError(
      f"config.model.attention: 'splash' cannot split {num_heads} heads over"
      f" config.mesh.tensor {mesh.shape['tensor']}; use 'plain'"
    )
  if kind == 'plain' or (kind == 'auto' and not (is_tpu and divides)):
    return attention.causal_attention
  return functools.partial(_splash, mesh, not is_tpu)


def _splash(mesh, interpret, queries, keys, values, segment_ids, window):
  """The splash kernel on each device's rows and heads."""
  kernel = functools.partial(
    splash_attention.causal_attention, window=window, interpret=interpret
  )
  if mapping.is_on_one_device():
    return kernel(queries, keys, values, segment_ids)
  if queries.shape[0] % partition.num_row_shards(mesh):
    # A few prompts beside no others, which a mesh is not for.
    return attention.causal_attention(
      queries, keys, values, segment_ids, window
    )
  # Where there are fewer key/value heads than devices, some hold the same one.
  num_kv_heads = keys.shape[2]
  copies = math.lcm(num_kv_heads, mesh.shape['tensor']) // num_kv_heads
  if copies > 1:
    keys, values = (jnp.repeat(x, copies, axis=2) for x in (keys, values))
  attend = mapping.per_shard(
    kernel, mesh, (_QUERIES, _KEYS, _KEYS, _SEGMENTS), _QUERIES
  )
  return attend(queries, keys, values, segment_ids)


def _split_rows(mesh, x):
  """[B, ...], each device's own rows on it; few rows stay together."""
  if mapping.is_on_one_device() or x.shape[0] % partition.num_row_shards(mesh):
    return x
  return jax.lax.with_sharding_constraint(x, partition.batch_sharding(mesh))


def _gather(mesh, weights, logical_axes):
  """Weights that are split over "fsdp", whole."""
  # Where weights are quantised, their codes and scales have axes.
  axes = quantization.logical_axes(logical_axes, weights)
  return jax.tree.map(
    lambda weight, names: gather.gathered(mesh, names, weight), weights, axes
  )


def _is_tpu(mesh) -> bool:
  return mesh.devices.flat[0].platform == 'tpu'
