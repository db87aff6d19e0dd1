"""Codes, scales and errors by hand; which leaves are quantised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from tests.models import quantized_models
from tract_jax import types
from tract_jax.models import quantization, transformer
from tract_jax.parallel import mesh as mesh_lib
from tract_jax.parallel import partition

UP = ('layers', 'mlp', 'up_proj', 'weight')
KINDS = pytest.mark.parametrize('kind', quantization.KINDS)


def _normal(*shape, seed=0, scale=0.1):
  rng = np.random.default_rng(seed)
  return jnp.array(rng.normal(0, scale, shape), jnp.float32)


def _quantized_leaves(params):
  leaves = jax.tree_util.tree_leaves_with_path(
    params, is_leaf=quantization.is_quantized
  )
  return {
    tuple(key.key for key in path)
    for path, leaf in leaves
    if quantization.is_quantized(leaf)
  }


# Codes and scales.


def test_int8_by_hand():
  weight = jnp.array([[127.5, 0.0], [-63.8, 0.0], [0.0, 0.0], [0.6, 0.0]])
  leaf = quantization.quantize(
    {'layers': {'q_proj': {'weight': weight}}}, 'int8'
  )
  leaf = leaf['layers']['q_proj']['weight']
  assert leaf.scale.tolist() == [[1.0, 1.0]]
  # 127.5 rounds to 128, which int8 has not.
  assert leaf.qvalue.tolist() == [[127, 0], [-64, 0], [0, 0], [1, 0]]


def test_nf4_by_hand():
  column = np.zeros(32, np.float32)
  column[:6] = [2.0, -2.0, 0.9, -0.3, 0.08, 0.07]
  weight = jnp.array(np.stack([column, 0 * column], axis=1))
  params = {'layers': {'q_proj': {'weight': weight}}}
  params = quantization.quantize(params, 'nf4')
  leaf = params['layers']['q_proj']['weight']
  assert leaf.scale.tolist() == [[2.0, 1.0]]
  assert leaf.qvalue.dtype == jnp.uint4
  # Nearest to 1, -1, .45, -.15, .04, .035 are 1, -1, .4407, -.1848, and, as
  # half of .0796 is .0398, .0796 and 0.
  assert leaf.qvalue[:7, 0].tolist() == [15, 0, 12, 5, 8, 7, 7]
  dense = quantization.dequantize(params)['layers']['q_proj']['weight']
  np.testing.assert_allclose(
    dense[:7, 0],
    [2, -2, 0.8814197, -0.3695469, 0.1591606, 0, 0],
    rtol=1e-6,
  )
  assert not dense[:, 1].any()


def test_int8_is_off_by_half_a_step_of_its_channel_at_most():
  # Channels of very different sizes, which one scale would not serve.
  weight = _normal(3, 128, 16) * jnp.logspace(-3, 3, 16)[None, None, :]
  params = {'layers': {'q_proj': {'weight': weight}}}
  dense = quantization.dequantize(quantization.quantize(params, 'int8'))
  error = jnp.abs(dense['layers']['q_proj']['weight'] - weight)
  step = jnp.abs(weight).max(axis=1, keepdims=True) / 127.5
  assert (error <= step * 0.50001).all()
  assert (error.max(axis=1) > 0.4 * step[:, 0]).all()


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_a_weight_that_is_no_number_stays_none(kind):
  weight = jnp.full((1, 128, 16), 0.02).at[0, 70, 3].set(jnp.nan)
  params = {'layers': {'q_proj': {'weight': weight}}}
  dense = quantization.dequantize(quantization.quantize(params, kind))
  found = dense['layers']['q_proj']['weight']
  assert jnp.isnan(found[0, 70, 3])
  assert not jnp.isnan(found[0, :, 2]).any()


def test_nf4_is_off_by_half_its_widest_gap_at_most():
  # Blocks of very different sizes, which one scale would not serve.
  weight = _normal(3, 4, 64, 16) * jnp.array([1e-3, 1.0, 30.0, 1e3]).reshape(
    1, 4, 1, 1
  )
  params = {'layers': {'q_proj': {'weight': weight.reshape(3, 256, 16)}}}
  dense = quantization.dequantize(quantization.quantize(params, 'nf4'))
  dense = dense['layers']['q_proj']['weight'].reshape(weight.shape)
  largest = jnp.abs(weight).max(axis=2, keepdims=True)
  # Between -1 and -.6962.
  assert (jnp.abs(dense - weight) <= largest * (1 - 0.6961928) / 2).all()
  # Of normal numbers, a tenth of their size is lost.
  lost = jnp.sqrt(((dense - weight) ** 2).mean((0, 2, 3)))
  size = jnp.sqrt((weight**2).mean((0, 2, 3)))
  np.testing.assert_allclose(lost / size, 0.095, atol=0.01)


@KINDS
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_codes_and_scales_are_those_of_qwix(kind, dtype):
  weight = _normal(2, 128, 16).astype(dtype)
  ours = quantization.quantize({'layers': {'k_proj': {'weight': weight}}}, kind)
  ours = ours['layers']['k_proj']['weight']
  theirs = qwix.quantize(
    weight.astype(jnp.float32),
    kind,
    channelwise_axes=(0, 2),
    tiled_axes={1: 64} if kind == 'nf4' else None,
  )
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  assert ours.scale.dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  dense = quantization.dequantize({'weight': ours})['weight']
  np.testing.assert_array_equal(dense, qwix.dequantize(theirs))


@pytest.mark.parametrize(
  ('size', 'block'), [(4096, 64), (576, 64), (48, 48), (96, 48), (80, 40)]
)
def test_blocks_of_nf4_divide_the_input_axis(size, block):
  shape = jax.ShapeDtypeStruct((2, size, 8), jnp.float32)
  abstract = {'layers': {'mlp': {'up_proj': {'weight': shape}}}}
  leaf = quantization.abstract(abstract, 'nf4')['layers']['mlp']['up_proj']
  assert leaf['weight'].scale.shape == (2, size // block, 8)


@pytest.mark.parametrize(
  'quantize',
  [
    lambda array, kind: quantization.quantize_leaf(UP, array, kind),
    lambda array, kind: quantization.quantize(_tree(array), kind),
    lambda array, kind: quantization.abstract(_tree(array), kind),
  ],
)
def test_what_cannot_be_quantised_is_refused(quantize):
  with pytest.raises(
    types.InputError, match=r'layers/mlp/up_proj/weight: .*axis of 67.*"int8"'
  ):
    quantize(jnp.ones((1, 67, 4)), 'nf4')
  quantize(jnp.ones((1, 67, 4)), 'int8')
  with pytest.raises(types.InputError, match="'int4': unknown.*int8, nf4"):
    quantize(jnp.ones((1, 64, 4)), 'int4')


def _tree(array):
  return {'layers': {'mlp': {'up_proj': {'weight': array}}}}


@KINDS
def test_gradient_is_that_of_the_dequantised_weight(kind):
  leaf = quantization.quantize(_tree(_normal(128, 16)), kind)
  dense = quantization.dequantize(leaf)['layers']['mlp']['up_proj']['weight']
  leaf = leaf['layers']['mlp']['up_proj']['weight']
  x = _normal(4, 128, seed=1)

  def loss(x, weight):
    return jnp.sum(jnp.sin(quantization.matmul(x, weight)))

  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(x, leaf), jax.grad(loss)(x, dense), atol=1e-6
  )


# Which leaves, and how they lie.


@KINDS
def test_weights_of_linear_layers_alone_are_quantised(kind):
  fns, params = quantized_models.model(lora_rank=4)
  quantized = quantization.quantize(params, kind)
  assert _quantized_leaves(quantized) == {
    ('layers', block, name, 'weight')
    for block, names in {
      'self_attn': ('q_proj', 'k_proj', 'v_proj', 'o_proj'),
      'mlp': ('gate_proj', 'up_proj', 'down_proj'),
    }.items()
    for name in names
  }
  assert quantized['lm_head'] == params['lm_head']
  abstract = quantization.abstract(transformer.abstract_params(fns), kind)
  assert jax.tree.structure(abstract) == jax.tree.structure(quantized)
  jax.tree.map(
    lambda x, y: np.testing.assert_equal(
      (x.shape, x.dtype), (y.shape, y.dtype)
    ),
    abstract,
    quantized,
  )


@KINDS
def test_a_leaf_is_quantised_and_what_was_read_is_freed(kind):
  weight = _normal(2, 128, 16)
  expected = quantization.quantize(_tree(weight), kind)
  expected = expected['layers']['mlp']['up_proj']['weight']
  leaf = quantization.quantize_leaf(UP, weight, kind)
  jax.tree.map(np.testing.assert_array_equal, leaf, expected)
  assert weight.is_deleted()
  for path in [
    ('lm_head', 'weight'),
    ('layers', 'input_layernorm', 'weight'),
    ('layers', 'mlp', 'up_proj', 'bias'),
    ('layers', 'mlp', 'up_proj', 'lora_a'),
  ]:
    other = jnp.ones((2, 64, 4))
    assert quantization.quantize_leaf(path, other, kind) is other
    assert not other.is_deleted()


def test_bytes_by_hand():
  weights = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 192)
  outputs = 2 * (2 * 128 + 2 * 64 + 2 * 192 + 128)
  _, params = quantized_models.model()
  whole = quantization.num_bytes(params)
  int8 = quantization.num_bytes(quantization.quantize(params, 'int8'))
  assert whole - int8 == 4 * weights - (weights + 4 * outputs)
  nf4 = quantization.num_bytes(quantization.quantize(params, 'nf4'))
  assert whole - nf4 == 4 * weights - 0.5625 * weights


@pytest.mark.usefixtures('compiled_anew')
@KINDS
def test_a_sharded_weight_is_quantised_where_it_lies(kind):
  mesh = mesh_lib.make_mesh(1, 4, 2)
  shape = jax.ShapeDtypeStruct(
    (2, 256, 64),
    jnp.float32,
    sharding=partition.named_sharding(mesh, (None, 'embed', 'mlp')),
  )
  quantize = jax.jit(functools.partial(quantization.quantize, kind=kind))
  compiled = quantize.lower(_tree(shape)).compile()
  assert 'all-gather' not in compiled.as_text()
