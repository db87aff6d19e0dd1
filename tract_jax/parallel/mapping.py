"""The one place where pure functions are mapped over devices.

A loss, a predictor or a sampler is a pure function of parameters and rows:

  fn(*params, rows) -> result

What it gives is either one entry for each row (a predictor), or sums over its
rows (LossTerms), which add up over any split. So it can be mapped in two ways,
which give the same numbers:

  jit   one program over the mesh; parameters lie as their shardings say, rows
        are split over "data" and "fsdp", and the compiler places the traffic
  pmap  one program per local device; parameters are copied to each, rows are
        split, sums are added up by an explicit psum
"""

from collections.abc import Callable, Sequence

import jax

from tract_jax import types
from tract_jax.parallel import partition

MODES = ('jit', 'pmap')
OUTPUTS = ('rows', 'sums')

_PMAP_AXIS = 'rows'


def map_rows(
  fn: Callable[..., types.PyTree],
  mesh: jax.sharding.Mesh,
  *,
  outputs: str,
  mode: str = 'jit',
) -> Callable[..., types.PyTree]:
  """Maps a pure function of parameters and rows over the devices of a mesh.

  The result can be differentiated, and can be called inside another jit, such
  as that of the training step.

  Args:
    fn: (*params, rows) -> result. `rows` is the last argument, a tree of
      arrays [B, ...]; parameters are trees with any sharding on `mesh`.
    mesh: of mesh.make_mesh. For "pmap", one over the local devices with
      fsdp = tensor = 1.
    outputs: "rows" where each array of the result is [B, ...], one entry for
      each row; "sums" where each is a sum over the rows.
    mode: "jit" or "pmap".

  Returns:
    A function like `fn` over the whole batch: with "rows" its arrays are
    [B, ...] and split like the rows; with "sums" they are the sums over all B
    rows, the same on every device.

  Raises:
    types.InputError: unknown `mode`, a mesh that pmap cannot use; when
      called, a number of rows that the mesh cannot split evenly.
    ValueError: unknown `outputs`.

  Example:
    >>> mesh = mesh_lib.make_mesh(data=-1, fsdp=1, tensor=1)
    >>> loss = map_rows(loss_fn, mesh, outputs='sums')
    >>> loss(trainable, frozen, batch)
    LossTerms(ce_sum=..., ...)
  """
  if outputs not in OUTPUTS:
    raise ValueError(f'outputs={outputs!r} is not one of {OUTPUTS}')
  if mode not in MODES:
    raise types.InputError(
      f'mapping mode {mode!r} is unknown; use one of {", ".join(MODES)}'
    )
  if mode == 'jit':
    mapped = _jit_rows(fn, mesh, outputs)
  else:
    mapped = _pmap_rows(fn, mesh, outputs)

  def checked(*args):
    partition.check_rows(mesh, _num_rows(args[-1]))
    return mapped(*args)

  return checked


def jit_step(
  step: Callable[..., tuple[types.PyTree, types.PyTree]],
  mesh: jax.sharding.Mesh,
  state_shardings: types.PyTree,
  frozen_shardings: types.PyTree,
) -> Callable[..., tuple[types.PyTree, types.PyTree]]:
  """Compiles a training step with an explicit sharding for every leaf.

  Args:
    step: (state, frozen, batch [A, B, L]) -> (state, metrics).
    mesh: of mesh.make_mesh.
    state_shardings: a sharding for each leaf of the state; it holds for the
      state that comes and for the one that goes.
    frozen_shardings: a sharding for each leaf of the frozen parameters.

  Returns:
    The compiled (on first use) step. The state given to it is donated: its
    memory is used again, and it must not be read afterwards.
  """
  return jax.jit(
    step,
    in_shardings=(
      state_shardings,
      frozen_shardings,
      partition.micro_batch_sharding(mesh),
    ),
    out_shardings=(state_shardings, partition.named_sharding(mesh, ())),
    donate_argnums=0,
  )


def per_shard(
  fn: Callable[..., types.Array],
  mesh: jax.sharding.Mesh,
  arguments: Sequence[partition.LogicalAxes],
  result: partition.LogicalAxes,
) -> Callable[..., types.Array]:
  """Runs a function on each device's own part of its arguments.

  For kernels, which the compiler cannot split; inside `jit`, where arrays are
  whole.

  Args:
    fn: (*arrays) -> array, the same for parts as for wholes.
    mesh: of mesh.make_mesh.
    arguments: for each argument the names of its dimensions.
    result: the names of the result's dimensions.

  Returns:
    A function like `fn`. Every named dimension must be divisible by its mesh
    axes.
  """
  return jax.shard_map(
    fn,
    mesh=mesh,
    in_specs=tuple(partition.partition_spec(axes) for axes in arguments),
    out_specs=partition.partition_spec(result),
    # Kernels do not say over which axes their results vary.
    check_vma=False,
  )


def is_on_one_device() -> bool:
  """Whether what is traced runs on each device's own part: inside pmap."""
  return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _num_rows(rows: types.PyTree) -> int:
  sizes = {leaf.shape[0] for leaf in jax.tree.leaves(rows)}
  if len(sizes) != 1:
    raise ValueError(f'the arrays of a batch have {sorted(sizes)} rows')
  return sizes.pop()


def _jit_rows(fn, mesh, outputs: str) -> Callable[..., types.PyTree]:
  rows = partition.batch_sharding(mesh)
  everywhere = partition.named_sharding(mesh, ())
  compiled = jax.jit(
    lambda params, rows: fn(*params, rows),
    in_shardings=(None, rows),  # None: parameters stay where they lie.
    out_shardings=rows if outputs == 'rows' else everywhere,
  )
  return lambda *args: compiled(args[:-1], args[-1])


def _pmap_rows(fn, mesh, outputs: str) -> Callable[..., types.PyTree]:
  devices = list(mesh.devices.flat)
  if mesh.shape['fsdp'] != 1 or mesh.shape['tensor'] != 1:
    raise types.InputError(
      'mapping mode "pmap" copies the parameters to every device: the mesh'
      f' must have fsdp=1, tensor=1, not fsdp={mesh.shape["fsdp"]},'
      f' tensor={mesh.shape["tensor"]}'
    )
  if any(d.process_index != jax.process_index() for d in devices):
    raise types.InputError(
      'mapping mode "pmap" works on the devices of one process; use mode "jit"'
      f' for the {jax.process_count()} processes of this run'
    )

  def on_device(params, rows):
    result = fn(*params, rows)
    return jax.lax.psum(result, _PMAP_AXIS) if outputs == 'sums' else result

  parallel = jax.pmap(
    on_device,
    axis_name=_PMAP_AXIS,
    in_axes=(None, 0),
    out_axes=0 if outputs == 'rows' else None,
    devices=devices,
  )

  def split(x):
    return x.reshape(len(devices), -1, *x.shape[1:])

  def join(x):
    return x.reshape(-1, *x.shape[2:])

  def mapped(*args):
    result = parallel(args[:-1], jax.tree.map(split, args[-1]))
    return jax.tree.map(join, result) if outputs == 'rows' else result

  return mapped
