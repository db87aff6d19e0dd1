"""The one place where pure functions are mapped over devices.

A loss, a predictor or a sampler is a pure function of parameters and rows:

  fn(*params, rows) -> result

What it gives is either one entry for each row (a predictor, a decoding step),
or the same for the whole batch: sums over its rows (LossTerms), which add up
over any split, and what is made of them (an update). So it can be mapped in two
ways, which give the same numbers:

  jit   one program over the mesh; parameters lie as their shardings say, rows
        are split over "data" and "fsdp", and the compiler places the traffic
  pmap  one program per device; parameters are copied to each, rows are split,
        sums are added up by an explicit psum

`map_rows` maps a function of plain rows, `map_updates` the functions of
training, `map_slots` those that sample.
"""

from collections.abc import Callable, Sequence
import functools

import jax
from jax.experimental import multihost_utils
import numpy as np

from tract_jax import types
from tract_jax.parallel import partition

MODES = ('jit', 'pmap')
OUTPUTS = ('rows', 'sums')

_PMAP_AXIS = 'rows'

# Adds up what each device has of a batch's sums; what is whole already stays.
AddUp = Callable[[types.PyTree], types.PyTree]


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
    mesh: of mesh.make_mesh. For "pmap", one over the devices of one process
      with fsdp = tensor = 1.
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
  check_mode(mode, mesh, of_one_process=True)
  if mode == 'jit':
    mapped = _jit_rows(fn, mesh, outputs)
  else:
    mapped = _pmap_rows(fn, mesh, outputs)

  def checked(*args):
    partition.check_rows(mesh, _num_rows(args[-1]))
    return mapped(*args)

  return checked


def map_updates(
  make: Callable[[AddUp], Callable[..., types.PyTree]],
  mesh: jax.sharding.Mesh,
  param_shardings: tuple[types.PyTree, ...],
  *,
  mode: str = 'jit',
  updates_first: bool = False,
  compiler_options: dict[str, str] | None = None,
) -> Callable[..., types.PyTree]:
  """Maps a function of parameters and micro-batches, such as a training step.

  Args:
    make: given what adds up sums over all devices, makes the function:
      (*params, batch [A, B, ...]) -> result, the same on every device. Under
      "pmap" it sees a device's rows of each micro-batch, under "jit" all.
    mesh: of mesh.make_mesh, over all processes of the run. For "pmap" with
      fsdp = tensor = 1.
    param_shardings: for each of params, a sharding for each leaf.
    mode: "jit" or "pmap".
    updates_first: whether the result is (the first of params, updated, more).
      Its memory is then used again: what was given must not be read any more.
    compiler_options: of tpu_options; "pmap" takes none.

  Returns:
    A function like the one made, of global arrays; the batch comes from
    `place_micro_batches`. Compiled on first use.

  Raises:
    types.InputError: unknown `mode`, or a mesh that pmap cannot use.

  Example:
    step = map_updates(
      lambda add_up: make_step(loss_fn, objective, optimizer, schedule, add_up),
      mesh, (state_shardings, frozen_shardings), updates_first=True)
    state, metrics = step(state, frozen, batch)
  """
  donated = (0,) if updates_first else ()
  check_mode(mode, mesh)
  if mode == 'jit':
    same = partition.named_sharding(mesh, ())
    return jax.jit(
      make(lambda sums: sums),
      in_shardings=(*param_shardings, partition.micro_batch_sharding(mesh)),
      out_shardings=(param_shardings[0], same) if updates_first else same,
      donate_argnums=donated,
      compiler_options=compiler_options,
    )
  parallel = jax.pmap(
    make(lambda sums: jax.lax.psum(sums, _PMAP_AXIS)),
    axis_name=_PMAP_AXIS,
    in_axes=(*(None for _ in param_shardings), 1),
    out_axes=None,
    devices=list(mesh.devices.flat),
    donate_argnums=donated,
  )
  return lambda *args: _as_global(parallel(*args), mesh)


def place_micro_batches(
  batch: types.PyTree,
  num_micro_batches: int,
  mesh: jax.sharding.Mesh,
  mode: str = 'jit',
) -> types.PyTree:
  """Puts a global batch where a function of `map_updates` expects it.

  Every process has the whole batch at hand, and keeps what its devices need.

  Args:
    batch: numpy arrays [A * B, ...].
    num_micro_batches: A.
    mesh: as for `map_updates`.
    mode: as for `map_updates`.

  Returns:
    Global arrays [A, B, ...], their rows split; under "pmap" [A, devices, rows
    of a device, ...].

  Raises:
    types.InputError: B cannot be split evenly.
  """
  sharding = partition.micro_batch_sharding(mesh)
  partition.check_rows(mesh, _num_rows(batch) // num_micro_batches)
  split = () if mode == 'jit' else (mesh.size,)

  def place(x):
    x = np.reshape(x, (num_micro_batches, *split, -1, *x.shape[1:]))
    if not mesh.is_multi_process:
      return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(place, batch)


def map_slots(
  fn: Callable[..., types.PyTree],
  mesh: jax.sharding.Mesh,
  in_axes: tuple[types.PyTree, ...],
  out_axes: types.PyTree,
  mode: str = 'jit',
) -> Callable[..., types.PyTree]:
  """Maps a function of parameters and slots, or other rows.

  Args:
    fn: (params, *slots) -> slots.
    mesh: of mesh.make_mesh, over devices of this process.
    in_axes: for each of slots, a tree like it, or like its top, that says which
      axis of each array has the slots.
    out_axes: the same of the result.
    mode: "jit" leaves the function as it is, for the `jax.jit` around it to
      split; "pmap" gives each device its slots.

  Returns:
    A function like `fn`.

  Raises:
    types.InputError: unknown `mode`, or a mesh that pmap cannot use.
  """
  check_mode(mode, mesh, of_one_process=True)
  if mode == 'jit':
    return fn
  parallel = jax.pmap(
    fn,
    axis_name=_PMAP_AXIS,
    in_axes=(None, *in_axes),
    out_axes=out_axes,
    devices=list(mesh.devices.flat),
  )
  split = functools.partial(_split, mesh.size)

  def mapped(params, *slots):
    result = parallel(params, *along(split, in_axes, slots))
    return along(_join, out_axes, result)

  return mapped


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


def along(
  fn: Callable[[int, jax.Array], jax.Array],
  axes: types.PyTree,
  tree: types.PyTree,
) -> types.PyTree:
  """Calls fn(axis, leaf) for each leaf.

  Args:
    fn: gives the new leaf.
    axes: a tree like `tree`, or like its top, of axes.
    tree: of arrays.

  Returns:
    The new tree.
  """
  return jax.tree.map(
    lambda axis, part: jax.tree.map(lambda leaf: fn(axis, leaf), part),
    axes,
    tree,
  )


def check_mode(
  mode: str, mesh: jax.sharding.Mesh, *, of_one_process: bool = False
) -> None:
  """Refuses what cannot be mapped so.

  Args:
    mode: "jit" or "pmap".
    mesh: of mesh.make_mesh.
    of_one_process: whether rows are to stay on this process's devices.

  Raises:
    types.InputError: unknown `mode`, or "pmap" and a mesh that splits
      parameters, or that is of several processes where it may not be.
  """
  if mode not in MODES:
    raise types.InputError(
      f'config.mapping: {mode!r} is unknown; use one of {", ".join(MODES)}'
    )
  if mode == 'jit':
    return
  if mesh.shape['fsdp'] != 1 or mesh.shape['tensor'] != 1:
    raise types.InputError(
      'config.mapping: "pmap" copies the parameters to every device: the mesh'
      f' must have fsdp=1, tensor=1, not fsdp={mesh.shape["fsdp"]},'
      f' tensor={mesh.shape["tensor"]}'
    )
  if of_one_process and mesh.is_multi_process:
    raise types.InputError(
      'config.mapping: "pmap" of rows works on the devices of one process; use'
      f' "jit" for the {jax.process_count()} processes of this run'
    )


def _as_global(tree: types.PyTree, mesh: jax.sharding.Mesh) -> types.PyTree:
  """Copies on each device, as arrays on the mesh; nothing is moved.

  As pmap gives them, on a mesh of its own, they would compile it once more.
  """
  if not mesh.is_multi_process:
    return jax.device_put(tree, partition.named_sharding(mesh, ()))
  return multihost_utils.host_local_array_to_global_array(
    tree, mesh, jax.sharding.PartitionSpec()
  )


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

  def on_mesh(*args):
    # With several processes, jit takes no numpy array for a mesh of one.
    return compiled(args[:-1], jax.device_put(args[-1], rows))

  return on_mesh


def _pmap_rows(fn, mesh, outputs: str) -> Callable[..., types.PyTree]:
  def on_device(params, rows):
    return fn(*params, rows)

  if outputs == 'rows':
    mapped = map_slots(on_device, mesh, (0,), 0, mode='pmap')
  else:
    mapped = _pmap_sums(on_device, mesh)
  return lambda *args: mapped(args[:-1], args[-1])


def _pmap_sums(on_device, mesh) -> Callable[..., types.PyTree]:
  parallel = jax.pmap(
    lambda params, rows: jax.lax.psum(on_device(params, rows), _PMAP_AXIS),
    axis_name=_PMAP_AXIS,
    in_axes=(None, 0),
    out_axes=None,
    devices=list(mesh.devices.flat),
  )
  split = functools.partial(_split, mesh.size, 0)
  return lambda params, rows: parallel(params, jax.tree.map(split, rows))


def _split(num_devices: int, axis: int, leaf: jax.Array) -> jax.Array:
  """[.., n, ..] -> [.., devices, n / devices, ..]."""
  shape = leaf.shape
  parts = (num_devices, shape[axis] // num_devices)
  return leaf.reshape(*shape[:axis], *parts, *shape[axis + 1 :])


def _join(axis: int, leaf: jax.Array) -> jax.Array:
  shape = leaf.shape
  return leaf.reshape(*shape[:axis], -1, *shape[axis + 2 :])
