"""Tests of tract_jax.parallel.mapping: jit and pmap give the same numbers.

Axes: A micro-batches, B = 16 rows, L = 5, D = 32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tract_jax import types
from tract_jax.parallel import mapping, partition
from tract_jax.parallel import mesh as mesh_lib

_ROWS, _LENGTH, _WIDTH, _GRID = 16, 5, 32, 5


def _loss_terms(params, scale, batch):
  """Like a loss: masked sums and counts of the rows."""
  values = jnp.tanh(batch['x'] @ params['w']) * scale
  mask = batch['mask'].astype(jnp.float32)
  zero = jnp.zeros(())
  return types.LossTerms(
    ce_sum=jnp.sum(values.sum(-1) * mask),
    ce_count=jnp.sum(mask),
    score_sq_sum=jnp.sum((values[:, 0] - 1.0) ** 2),
    score_count=jnp.sum(jnp.ones(values.shape[0])),
    grid_mass_sum=zero,
    score_loss_sum=zero,
    off_grid_sum=zero,
  )


def _predict(params, batch):
  """Like a predictor: one expectation for each row."""
  probs = jax.nn.softmax(batch['x'][:, -1] @ params['w'][:, :_GRID])
  return {'probs': probs, 'score': probs @ jnp.arange(1.0, _GRID + 1)}


@pytest.fixture(name='params')
def _params():
  key = jax.random.key(0)
  return {'w': jax.random.normal(key, (_WIDTH, _WIDTH)) / _WIDTH**0.5}


@pytest.fixture(name='batch')
def _batch():
  rng = np.random.default_rng(0)
  return {
    'x': rng.normal(size=(_ROWS, _LENGTH, _WIDTH)).astype(np.float32),
    # Rows differ in their number of targets: a mean of means would be wrong.
    'mask': np.arange(_LENGTH) < rng.integers(0, 6, size=(_ROWS, 1)),
  }


def _meshes():
  return {
    'jit': mesh_lib.make_mesh(2, 2, 2),
    'pmap': mesh_lib.make_mesh(-1, 1, 1),
  }


def _sharded(params, mesh):
  """The parameters where training has them: split over fsdp and tensor."""
  sharding = partition.named_sharding(mesh, ('embed', 'mlp'))
  return jax.tree.map(lambda x: jax.device_put(x, sharding), params)


@pytest.mark.parametrize('mode', mapping.MODES)
def test_sums_over_eight_devices_equal_one(mode, params, batch):
  mesh = _meshes()[mode]
  mapped = mapping.map_rows(_loss_terms, mesh, outputs='sums', mode=mode)
  got = mapped(_sharded(params, mesh), 2.0, batch)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    got,
    _loss_terms(params, 2.0, batch),
  )
  assert got.score_count == _ROWS
  assert got.ce_sum.sharding.is_fully_replicated


@pytest.mark.parametrize('mode', mapping.MODES)
def test_rows_over_eight_devices_equal_one(mode, params, batch):
  mesh = _meshes()[mode]
  mapped = mapping.map_rows(_predict, mesh, outputs='rows', mode=mode)
  got = mapped(_sharded(params, mesh), batch)
  expected = _predict(params, batch)
  assert got['probs'].shape == (_ROWS, _GRID)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), got, expected
  )


@pytest.mark.parametrize('mode', mapping.MODES)
def test_each_device_holds_its_rows(mode, batch):
  mesh = _meshes()[mode]
  mapped = mapping.map_rows(
    lambda rows: rows['x'][:, 0, 0], mesh, outputs='rows', mode=mode
  )
  got = mapped(batch)
  num_rows = _ROWS // partition.num_row_shards(mesh)
  assert {s.data.shape for s in got.addressable_shards} == {(num_rows,)}
  np.testing.assert_array_equal(got, batch['x'][:, 0, 0])


def test_jit_splits_the_rows_before_the_first_operation(batch):
  mesh = _meshes()['jit']
  seen = []

  def fn(rows):
    jax.debug.inspect_array_sharding(rows['x'], callback=seen.append)
    return jnp.sum(rows['x'])

  mapping.map_rows(fn, mesh, outputs='sums')(batch)
  num_rows = _ROWS // partition.num_row_shards(mesh)
  shape = (_ROWS, _LENGTH, _WIDTH)
  assert seen[0].shard_shape(shape) == (num_rows, *shape[1:])


def _make_step(add_up):
  """A step as in training: counts are global before the first gradient."""

  def step(state, frozen, batch):
    count = add_up(jnp.sum(batch['mask'].astype(jnp.float32)))

    def add(carry, rows):
      def objective(state):
        terms = _loss_terms(state, frozen, rows)
        return terms.ce_sum / count + terms.score_sq_sum / _ROWS

      return jax.tree.map(jnp.add, carry, jax.grad(objective)(state)), None

    zeros = jax.tree.map(jnp.zeros_like, state)
    grads = add_up(jax.lax.scan(add, zeros, batch)[0])
    new_state = jax.tree.map(lambda p, g: p - 0.1 * g, state, grads)
    return new_state, {'count': count}

  return step


def _mapped_step(mode, mesh):
  names = ('embed', 'mlp') if mode == 'jit' else (None, None)
  shardings = {'w': partition.named_sharding(mesh, names)}
  step = mapping.map_updates(
    _make_step,
    mesh,
    (shardings, partition.named_sharding(mesh, ())),
    mode=mode,
    updates_first=True,
  )
  return step, shardings


@pytest.mark.parametrize('mode', mapping.MODES)
@pytest.mark.parametrize('num_micro_batches', [1, 2])
def test_step_equals_the_whole_batch_on_one_device(
  mode, num_micro_batches, params, batch
):
  count = np.sum(batch['mask'])

  def objective(params):
    terms = _loss_terms(params, 2.0, batch)
    return terms.ce_sum / count + terms.score_sq_sum / _ROWS

  expected = params['w'] - 0.1 * jax.grad(objective)(params)['w']

  mesh = _meshes()[mode]
  step, shardings = _mapped_step(mode, mesh)
  state = jax.device_put(params, shardings)
  micro = mapping.place_micro_batches(batch, num_micro_batches, mesh, mode)
  new_state, metrics = step(state, jnp.float32(2.0), micro)
  np.testing.assert_allclose(new_state['w'], expected, rtol=1e-5, atol=1e-6)
  assert metrics['count'] == count
  assert new_state['w'].sharding.is_equivalent_to(shardings['w'], 2)
  assert state['w'].is_deleted()  # donated


@pytest.mark.parametrize('mode', mapping.MODES)
def test_each_device_holds_its_rows_of_every_micro_batch(mode, batch):
  mesh = _meshes()[mode]
  placed = mapping.place_micro_batches(batch, 2, mesh, mode)['x']
  num_rows = _ROWS // 2 // partition.num_row_shards(mesh)
  split = (8,) if mode == 'pmap' else ()
  shards = {shard.data.shape for shard in placed.addressable_shards}
  assert shards == {(2, *(1 for _ in split), num_rows, _LENGTH, _WIDTH)}
  whole = np.asarray(placed).reshape(batch['x'].shape)
  np.testing.assert_array_equal(whole, batch['x'])


def test_a_batch_that_cannot_be_split_is_named(batch):
  with pytest.raises(types.InputError, match='batch.*size 2.*nearest'):
    mapping.place_micro_batches(batch, 8, _meshes()['jit'])


@pytest.mark.parametrize('mode', mapping.MODES)
def test_slots_are_mapped_along_their_own_axes(mode):
  mesh = _meshes()['pmap']
  cache = np.random.default_rng(0).normal(size=(3, _ROWS, 2, 4))
  slots = {'cache': cache.astype(np.float32), 'lengths': np.arange(_ROWS)}
  seen = []

  def fn(scale, slots, rows):
    seen.append((slots['cache'].shape, slots['lengths'].shape, rows.shape))
    sums = scale * slots['cache'].sum((2, 3))  # [layers, B]
    return {'sums': sums, 'rows': slots['lengths'] + rows}

  axes = {'cache': 1, 'lengths': 0}
  mapped = jax.jit(
    mapping.map_slots(fn, mesh, (axes, 0), {'sums': 1, 'rows': 0}, mode)
  )
  found = mapped(2.0, slots, np.arange(_ROWS))
  wanted = fn(2.0, slots, np.arange(_ROWS))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), found, wanted
  )
  rows = _ROWS // 8 if mode == 'pmap' else _ROWS
  assert seen[0] == ((3, rows, 2, 4), (rows,), (rows,))


@pytest.mark.parametrize('mode', mapping.MODES)
def test_rows_that_cannot_be_split_are_named(mode, params, batch):
  mesh = _meshes()[mode]
  mapped = mapping.map_rows(_predict, mesh, outputs='rows', mode=mode)
  odd = jax.tree.map(lambda x: x[:6], batch)
  with pytest.raises(types.InputError, match='batch.*size 6.*nearest'):
    mapped(params, odd)


def test_pmap_refuses_a_mesh_that_splits_parameters():
  mesh = mesh_lib.make_mesh(2, 4, 1)
  with pytest.raises(types.InputError, match='fsdp=1, tensor=1, not fsdp=4'):
    mapping.map_rows(_predict, mesh, outputs='rows', mode='pmap')


def test_pmap_refuses_updates_and_slots_of_such_a_mesh():
  mesh = mesh_lib.make_mesh(4, 1, 2)
  for mapped in (
    lambda: mapping.map_updates(_make_step, mesh, ({}, {}), mode='pmap'),
    lambda: mapping.map_slots(_predict, mesh, (0,), 0, 'pmap'),
  ):
    with pytest.raises(types.InputError, match='not fsdp=1, tensor=2'):
      mapped()


def test_unknown_mode_and_outputs_raise():
  mesh = mesh_lib.make_mesh(-1, 1, 1)
  with pytest.raises(types.InputError, match="'vmap' is unknown; use one of"):
    mapping.map_rows(_predict, mesh, outputs='rows', mode='vmap')
  with pytest.raises(ValueError, match="outputs='mean'"):
    mapping.map_rows(_predict, mesh, outputs='mean')
