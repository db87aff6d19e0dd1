"""What the mesh adds to the model: kernels and gathers, on eight devices."""

import dataclasses
import functools
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pipeline.build_test import make_setup
from tract_jax import types
from tract_jax.models import attention, quantization, transformer
from tract_jax.parallel import mapping, partition
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.pipeline import on_mesh

L, N, H = 20, 4, 8


def _inputs(num_rows=8, num_kv_heads=2):
  keys = jax.random.split(jax.random.key(0), 3)
  heads = [
    jax.random.normal(key, (num_rows, L, heads, H))
    for key, heads in zip(keys, (N, num_kv_heads, num_kv_heads), strict=True)
  ]
  row = jnp.array([1] * 7 + [2] * 10 + [0] * 3)
  return *heads, jnp.broadcast_to(row[None], (num_rows, L))


def _check_equals_plain(attend, inputs, window=6):
  expected = attention.causal_attention(*inputs, window)
  np.testing.assert_allclose(attend(*inputs, window), expected, atol=1e-5)


def _is_kernel(fn, *args):
  return 'pallas_call' in str(jax.make_jaxpr(fn)(*args))


def _mesh_of(platform, **sizes):
  device = python_types.SimpleNamespace(platform=platform)
  shape = {'data': 1, 'fsdp': 1, 'tensor': 1, **sizes}
  return python_types.SimpleNamespace(devices=np.array([device]), shape=shape)


@pytest.mark.parametrize(
  ('sizes', 'num_kv_heads'),
  [((8, 1, 1), 2), ((2, 2, 2), 2), ((1, 4, 2), 1), ((2, 1, 4), 2)],
)
def test_each_device_attends_on_its_rows_and_heads(sizes, num_kv_heads):
  mesh = mesh_lib.make_mesh(*sizes)
  attend = on_mesh.row_attention('splash', mesh, N)
  inputs = _inputs(num_kv_heads=num_kv_heads)
  assert _is_kernel(functools.partial(attend, window=6), *inputs)
  _check_equals_plain(jax.jit(attend, static_argnums=4), inputs)
  split = jax.jit(functools.partial(attend, window=6))(*inputs)
  part = 8 // (sizes[0] * sizes[1]), L, N // sizes[2], H
  assert split.sharding.shard_shape(split.shape) == part


def test_gradients_come_back_through_the_devices():
  mesh = mesh_lib.make_mesh(2, 2, 2)
  *heads, segments = _inputs()
  weights = jax.random.normal(jax.random.key(1), heads[0].shape)

  def grads(attend):
    def loss(heads):
      return jnp.sum(attend(*heads, segments, 6) * weights)

    return jax.jit(jax.grad(loss))(heads)

  for got, wanted in zip(
    grads(on_mesh.row_attention('splash', mesh, N)),
    grads(attention.causal_attention),
    strict=True,
  ):
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_rows_that_the_mesh_cannot_split_attend_plainly():
  mesh = mesh_lib.make_mesh(8, 1, 1)
  attend = on_mesh.row_attention('splash', mesh, N)
  inputs = _inputs(num_rows=3)
  assert not _is_kernel(functools.partial(attend, window=6), *inputs)
  _check_equals_plain(attend, inputs)


def test_under_pmap_each_device_has_its_rows_already():
  mesh = mesh_lib.make_mesh(8, 1, 1)
  attend = on_mesh.row_attention('splash', mesh, N)
  inputs = _inputs(num_rows=24)

  def fn(rows):
    return attend(*rows, 6)

  for mode in mapping.MODES:
    mapped = mapping.map_rows(fn, mesh, outputs='rows', mode=mode)
    assert _is_kernel(mapped, inputs)
    np.testing.assert_allclose(
      mapped(inputs), attention.causal_attention(*inputs, 6), atol=1e-5
    )


def test_auto_is_the_kernel_on_tpus_alone():
  plain = attention.causal_attention
  assert on_mesh.row_attention('auto', _mesh_of('cpu'), 9) is plain
  assert on_mesh.row_attention('plain', _mesh_of('tpu'), 9) is plain
  on_tpu = on_mesh.row_attention('auto', _mesh_of('tpu', tensor=3), 9)
  assert on_tpu is not plain
  assert not on_tpu.args[1]  # not interpreted
  assert on_mesh.row_attention('auto', _mesh_of('tpu', tensor=2), 9) is plain
  with pytest.raises(types.InputError, match='cannot split 9 heads over.*r 2;'):
    on_mesh.row_attention('splash', _mesh_of('tpu', tensor=2), 9)


def test_how_products_are_done_where_weights_are_split_by_heads_and_not():
  for platform, sizes, fused, kept in (
    ('tpu', {'fsdp': 4}, True, True),
    ('tpu', {'tensor': 4}, False, False),
    ('cpu', {}, True, False),
    ('gpu', {'data': 2}, True, False),
    ('cpu', {'tensor': 2}, False, False),
  ):
    mesh = _mesh_of(platform, **sizes)
    placement = on_mesh.make_placement('auto', mesh, N)
    assert placement.fuse_adapters == fused
    assert placement.keep_heads == kept
    assert placement.cache_block == (512 if platform == 'tpu' else 128)


def test_the_key_decides_what_the_built_model_does():
  for kind, is_kernel in (('auto', False), ('plain', False), ('splash', True)):
    setup = make_setup(attention=kind)
    rows = [jax.ShapeDtypeStruct((4, 16), jnp.int32)] * 3
    fns, params = setup.model.fns, setup.model.abstract
    assert _is_kernel(fns.hidden, params, *rows) == is_kernel


# Gathers.


@pytest.mark.parametrize('kind', [None, *quantization.KINDS])
def test_a_gathered_layer_gives_the_same_hidden_states(kind):
  config = dataclasses.replace(
    make_setup().model.config, hidden_size=32, intermediate_size=48
  )
  mesh = mesh_lib.make_mesh(1, 4, 2)
  fns = transformer.make_model(config, lora_rank=4)
  gathering = transformer.make_model(
    config, lora_rank=4, placement=on_mesh.make_placement('auto', mesh, N)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.array(rng.normal(0.3, 0.2, x.shape), x.dtype),
    transformer.abstract_params(fns),
  )
  axes = fns.logical_axes
  if kind:
    params = quantization.quantize(params, kind)
    axes = quantization.logical_axes(axes, params)
  rows = (jnp.tile(jnp.arange(16)[None], (4, 1)),) * 2
  rows = *rows, jnp.ones((4, 16), jnp.int32)
  expected = jax.jit(fns.hidden)(params, *rows)
  sharded = jax.device_put(params, partition.tree_shardings(mesh, axes, params))
  np.testing.assert_allclose(
    jax.jit(gathering.hidden)(sharded, *rows), expected, rtol=1e-5, atol=1e-5
  )


def test_weights_are_gathered_over_fsdp_alone():
  model = make_setup().model  # data 2, fsdp 2, tensor 2
  gather = on_mesh.make_placement('auto', model.mesh, N).gather
  params = model.fns.init(jax.random.key(0))
  layer = jax.tree.map(lambda x: x[0], params['layers'])
  axes = jax.tree.map(
    lambda names: names[1:],
    model.fns.logical_axes['layers'],
    is_leaf=lambda node: isinstance(node, tuple),
  )
  gathered = jax.jit(functools.partial(gather, logical_axes=axes))(layer)
  for name, spec in (
    ('gate_proj', (None, 'tensor')),
    ('down_proj', ('tensor',)),
  ):
    weight = gathered['mlp'][name]['weight']
    wanted = jax.NamedSharding(model.mesh, jax.P(*spec))
    assert weight.sharding.is_equivalent_to(wanted, 2)
    np.testing.assert_array_equal(weight, layer['mlp'][name]['weight'])


@pytest.mark.parametrize(
  ('dtype', 'is_whole'),
  # It is trained in float32, and cast for each product.
  [(jnp.float32, True), (jnp.bfloat16, False)],
)
def test_the_head_is_whole_for_a_loop_unless_it_is_cast(dtype, is_whole):
  mesh = mesh_lib.make_mesh(2, 4, 1)
  config = dataclasses.replace(
    make_setup().model.config, hidden_size=32, tie_word_embeddings=False
  )
  placement = on_mesh.make_placement('auto', mesh, N)
  fns = transformer.make_model(config, dtype=dtype, placement=placement)
  whole = transformer.make_model(config)
  params = whole.init(jax.random.key(0))
  params = jax.device_put(
    params, partition.tree_shardings(mesh, fns.logical_axes, params)
  )
  head = jax.jit(fns.head)(params)
  assert 'layers' not in head
  for leaf in jax.tree.leaves(head['lm_head']):
    assert leaf.sharding.is_fully_replicated == is_whole
  hidden = jax.random.normal(jax.random.key(1), (64, 32))
  expected = whole.project(params, hidden)
  for given in (params, head):
    logits = jax.jit(fns.project)(given, hidden.astype(dtype))
    atol = 1e-5 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(logits, expected, atol=atol)


def test_nothing_is_gathered_where_nothing_is_split():
  mesh = mesh_lib.make_mesh(4, 1, 2)
  assert on_mesh.make_placement('auto', mesh, N).gather is None
