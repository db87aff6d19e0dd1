import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tract_jax import types
from tract_jax.models import lora, placement, quantization, transformer

CONFIG = dataclasses.replace(
  small_models.CONFIG,
  max_position_embeddings=16,
  qkv_bias=True,
  output_bias=True,
)
RANK, ALPHA = 4, 6.0


def _rows():
  tokens = jax.random.randint(jax.random.key(9), (2, 8), 0, 64)
  positions = jnp.broadcast_to(jnp.arange(8)[None], (2, 8))
  return tokens, positions, jnp.ones_like(tokens)


def _hidden(fns, params):
  return jax.jit(fns.hidden)(params, *_rows())


def _adapted():
  """A model, and params whose adapters do something."""
  fns = transformer.make_model(CONFIG, lora_rank=RANK, lora_alpha=ALPHA)

  # Drawn by numpy: compiling `init` takes seconds.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.array(rng.normal(0.1, 0.2, x.shape), x.dtype),
    transformer.abstract_params(fns),
  )
  return fns, params


def test_new_adapters_change_nothing():
  fns = transformer.make_model(CONFIG, lora_rank=RANK)
  params = jax.jit(fns.init)(jax.random.key(0))
  base = lora.merge_adapters(params, 0.0)
  plain = transformer.make_model(CONFIG)
  np.testing.assert_array_equal(_hidden(fns, params), _hidden(plain, base))
  assert params['layers']['mlp']['up_proj']['lora_a'].any()


def test_merged_equals_unmerged():
  fns, params = _adapted()
  merged = lora.merge_adapters(params, ALPHA / RANK)
  plain = transformer.make_model(CONFIG)
  assert jax.tree.structure(merged) == jax.tree.structure(
    transformer.abstract_params(plain)
  )
  hidden = fns.hidden(params, *_rows())
  np.testing.assert_allclose(plain.hidden(merged, *_rows()), hidden, atol=1e-5)
  unadapted = plain.hidden(lora.merge_adapters(params, 0.0), *_rows())
  assert jnp.abs(hidden - unadapted).max() > 0.1


def _product_of(form, rows=(64,), dims=(24,), out=(40,)):
  """(x, weight, a, b) -> the adapted product, and a random sum's gradients."""
  keys = jax.random.split(jax.random.key(0), 5)
  shapes = (
    (*rows, *dims),
    (*dims, *out),
    (*dims, RANK),
    (RANK, *out),
    (*rows, *out),
  )
  *arrays, weights = (
    jax.random.normal(key, shape)
    for key, shape in zip(keys, shapes, strict=True)
  )

  def loss(arrays):
    output = form(ALPHA / RANK, *arrays)
    return jnp.sum(output * weights), output

  return arrays, loss


def _naive(scaling, x, weight, a, b):
  dims = a.ndim - 1
  low = jnp.tensordot(x, a, dims)
  return jnp.tensordot(x, weight, dims) + scaling * jnp.tensordot(low, b, 1)


# Heads of 3 take 2 more for a rank of 4; heads of 2, as many, without zeros.
@pytest.mark.parametrize(
  ('rows', 'dims', 'out'),
  [
    ((64,), (24,), (40,)),
    ((8, 8), (24,), (20, 2)),
    ((8, 8), (8, 3), (40,)),
    ((64,), (8, 3), (5, 4, 2)),
  ],
)
def test_one_product_equals_two_and_so_do_the_gradients(rows, dims, out):
  results = []
  for form in (lora.adapted_matmul, _naive):
    arrays, loss = _product_of(form, rows, dims, out)
    results.append(jax.grad(loss, has_aux=True)(arrays))
  jax.tree.map(
    lambda got, wanted: np.testing.assert_allclose(
      got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max()
    ),
    *results,
  )


@pytest.mark.usefixtures('compiled_anew')
def test_the_gradient_of_a_frozen_weight_is_not_computed():
  (x, weight, a, b), loss = _product_of(lora.adapted_matmul)

  def flops(fn, *args):
    grad = jax.jit(
      jax.grad(lambda *args: fn(*args)[0], tuple(range(len(args))))
    )
    return grad.lower(*args).compile().cost_analysis()['flops']

  trained = flops(
    lambda x, weight, a, b: loss((x, weight, a, b)), x, weight, a, b
  )
  frozen = flops(lambda x, a, b: loss((x, weight, a, b)), x, a, b)
  assert trained - frozen >= 2 * x.size * weight.shape[1]


@pytest.mark.parametrize(
  ('rank', 'fuse', 'keep_heads'),
  [
    (RANK, True, False),
    (RANK, True, True),
    (RANK, False, True),
    (0, False, True),
  ],
)
def test_a_model_with_other_products_is_the_same(rank, fuse, keep_heads):
  _, params = _adapted()
  if not rank:
    params = lora.merge_adapters(params, 0.0)
  tokens = jax.random.randint(jax.random.key(9), (4, 16), 0, 64)
  positions = jnp.broadcast_to(jnp.arange(16)[None], (4, 16))
  rows = tokens, positions, jnp.ones_like(tokens)
  heads = f'[4,16,{CONFIG.num_kv_heads},{CONFIG.head_dim}] = dot_general'
  results = []
  for fused, kept in ((False, False), (fuse, keep_heads)):
    fns = transformer.make_model(
      CONFIG,
      lora_rank=rank,
      lora_alpha=ALPHA,
      placement=placement.Placement(fuse_adapters=fused, keep_heads=kept),
    )

    def loss(params, fns=fns):
      hidden = fns.hidden(params, *rows)
      return jnp.sum(jnp.sin(hidden)), hidden

    results.append(jax.jit(jax.grad(loss, has_aux=True))(params))
    text = str(jax.make_jaxpr(loss)(params))
    assert ('adapted_matmul' in text) == fused
    # Keys are turned by such a product, too.
    assert (text.count(heads) > 1) == kept
  jax.tree.map(
    lambda got, wanted: np.testing.assert_allclose(
      got, wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max())
    ),
    *results,
  )


def test_products_with_quantised_weights_are_the_same():
  _, params = _adapted()
  params = quantization.quantize(params, 'int8')
  tokens = jax.random.randint(jax.random.key(9), (4, 16), 0, 64)
  rows = tokens, jnp.broadcast_to(jnp.arange(16)[None], (4, 16))
  flat, kept = (
    transformer.make_model(
      CONFIG, lora_rank=RANK, placement=placement.Placement(keep_heads=keeps)
    ).hidden(params, *rows, jnp.ones_like(tokens))
    for keeps in (False, True)
  )
  np.testing.assert_array_equal(kept, flat)


def test_merging_is_float32_and_rounds_once():
  params = {
    'weight': jnp.full((1, 1), 1.0, jnp.bfloat16),
    'lora_a': jnp.full((1, 2), 0.0625),
    'lora_b': jnp.full((2, 1), 0.0625),
  }
  # 2 * 0.0625^2 = 2^-7 is one bfloat16 step over 1.
  merged = lora.merge_adapters(params, 1.0)['weight']
  assert merged.dtype == jnp.bfloat16
  assert float(merged[0, 0]) == 1.0 + 2.0**-7


def _adapted_names(**kwargs):
  """Names of the layers that have each of the two leaves."""
  fns = transformer.make_model(CONFIG, lora_rank=RANK, **kwargs)
  leaves = jax.tree_util.tree_leaves_with_path(transformer.abstract_params(fns))
  return [
    sorted(path[-2].key for path, _ in leaves if path[-1].key == name)
    for name in lora.LEAVES
  ]


@pytest.mark.parametrize(
  'targets',
  [(name,) for name in lora.TARGETS]
  + [('q_proj', 'v_proj'), ['down_proj', 'k_proj', 'o_proj']],
)
def test_targets_alone_are_adapted(targets):
  assert _adapted_names(lora_targets=targets) == [sorted(targets)] * 2


def test_all_linear_layers_of_a_block_are_adapted_by_default():
  assert _adapted_names() == [sorted(lora.TARGETS)] * 2
  assert len(lora.TARGETS) == 7


@pytest.mark.parametrize('name', ['lm_head', 'q_norm', 'qproj', ''])
def test_a_target_that_is_no_linear_layer_is_refused(name):
  with pytest.raises(
    types.InputError, match=f"lora_targets: '{name}' is not.*q_proj, k_proj"
  ):
    transformer.make_model(
      CONFIG, lora_rank=RANK, lora_targets=('v_proj', name)
    )


def test_every_adapter_gets_a_gradient_and_nothing_else_does():
  fns, params = _adapted()

  def loss(trainable, frozen):
    hidden = fns.hidden(lora.merge(trainable, frozen), *_rows())
    return jnp.sum(hidden**3)

  split = lora.split_trainable(params, train_base=False)
  grads = jax.tree.leaves(jax.jit(jax.grad(loss))(*split))
  assert len(grads) == 2 * len(lora.TARGETS)
  assert all((jnp.abs(grad).max(axis=(1, 2)) > 0).all() for grad in grads)


def test_alpha_is_read():
  _, params = _adapted()
  outputs = [
    _hidden(
      transformer.make_model(CONFIG, lora_rank=RANK, lora_alpha=alpha), params
    )
    for alpha in (ALPHA, 2 * ALPHA)
  ]
  assert jnp.abs(outputs[0] - outputs[1]).max() > 0.1


def test_split_and_merge_are_inverse():
  _, params = _adapted()
  trainable, frozen = lora.split_trainable(params, train_base=False)
  names = {
    path[-1].key
    for path, _ in jax.tree_util.tree_flatten_with_path(trainable)[0]
  }
  assert names == set(lora.LEAVES)
  assert trainable['norm'] == {'weight': None}
  joined = lora.merge(trainable, frozen)
  assert jax.tree.structure(joined) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_training_the_base_freezes_nothing():
  _, params = _adapted()
  trainable, frozen = lora.split_trainable(params, train_base=True)
  assert not jax.tree.leaves(frozen)
  assert len(jax.tree.leaves(trainable)) == len(jax.tree.leaves(params))


def test_adapters_join_a_base_that_knows_of_none():
  _, params = _adapted()
  adapters, _ = lora.split_trainable(params, train_base=False)
  base = lora.merge_adapters(params, 0.0)
  joined = lora.merge(adapters, base)
  jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_merge_refuses_a_leaf_twice_or_never():
  leaf = {'norm': {'weight': jnp.ones(2)}}
  with pytest.raises(ValueError, match='norm/weight is in both'):
    lora.merge(leaf, leaf)
  with pytest.raises(ValueError, match='norm/weight is in neither'):
    lora.merge({'norm': {'weight': None}}, {'norm': {'weight': None}})


@pytest.mark.parametrize('kind', quantization.KINDS)
def test_quantised_weights_are_frozen_and_take_no_adapter_in(kind):
  _, params = _adapted()
  quantized = quantization.quantize(params, kind)
  trainable, frozen = lora.split_trainable(quantized, train_base=False)
  weight = frozen['layers']['mlp']['up_proj']['weight']
  assert weight is quantized['layers']['mlp']['up_proj']['weight']
  assert trainable['layers']['mlp']['up_proj']['weight'] is None
  joined = lora.merge(trainable, frozen)
  jax.tree.map(np.testing.assert_array_equal, joined, quantized)
  with pytest.raises(ValueError, match=f'an adapter.*{kind} weight.*unquant'):
    lora.merge_adapters(quantized, ALPHA / RANK)
  dense = quantization.dequantize(quantized)
  merged = lora.merge_adapters(dense, ALPHA / RANK)
  assert jax.tree.structure(merged) == jax.tree.structure(
    transformer.abstract_params(transformer.make_model(CONFIG))
  )


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'rank': -1}, 'lora_rank=-1'),
    ({'targets': ('q_proj', 'lm_head')}, "'lm_head'"),
    ({'targets': ()}, 'lora_targets is empty'),
  ],
)
def test_bad_adapters_are_refused(change, words):
  with pytest.raises(types.InputError, match=words):
    dataclasses.replace(lora.LoraConfig(rank=2), **change)
