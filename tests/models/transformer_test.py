import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tract_jax import types
from tract_jax.models import placement, transformer

CONFIG = small_models.CONFIG
WINDOW = dataclasses.replace(CONFIG, sliding_window=4)


def _random_params(fns, seed=0):
  """Random params, drawn by numpy: compiling `init` takes seconds."""
  rng = np.random.default_rng(seed)

  def leaf(path, abstract):
    mean = 1.0 if 'norm' in jax.tree_util.keystr(path) else 0.0
    return jnp.array(rng.normal(mean, 0.2, abstract.shape), abstract.dtype)

  return jax.tree_util.tree_map_with_path(
    leaf, transformer.abstract_params(fns)
  )


@functools.cache
def _model(config=CONFIG):
  """Jitted functions of a model, and its params."""
  fns = transformer.make_model(config)
  fns = fns._replace(
    hidden=jax.jit(fns.hidden),
    project=jax.jit(fns.project),
    prefill=jax.jit(fns.prefill, static_argnums=3),
    decode=jax.jit(fns.decode),
  )
  return fns, _random_params(fns)


def _tokens(num_rows, length, seed=0):
  return jax.random.randint(jax.random.key(seed), (num_rows, length), 0, 64)


def _full(fns, params, tokens):
  """Hidden states of whole rows without padding."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  return fns.hidden(params, tokens, positions, jnp.ones_like(tokens))


# What a token may depend on.


@pytest.mark.parametrize('config', [CONFIG, WINDOW])
def test_causal_by_gradient(config):
  length, at = 12, 7
  fns, params = _model(config)
  tokens = jnp.arange(length)[None]  # every position has a row of its own

  def hidden_sum(embedding):
    embedded = {**params, 'embed_tokens': {'weight': embedding}}
    return _full(fns, embedded, tokens)[0, at].sum()

  grad = jax.jit(jax.grad(hidden_sum))(params['embed_tokens']['weight'])
  seen = np.abs(grad[:length]).max(axis=1) > 0
  # Two layers of a window of 4 reach 3 + 3 tokens back.
  first = 0 if config.sliding_window is None else at - 6
  assert seen.tolist() == [first <= i <= at for i in range(length)]


def test_padding_changes_nothing_and_is_finite():
  fns, params = _model()
  tokens = _tokens(2, 6)
  expected = _full(fns, params, tokens)
  padded = jnp.pad(tokens, ((0, 1), (0, 5)), constant_values=3)
  segment_ids = jnp.pad(jnp.ones_like(tokens), ((0, 1), (0, 5)))
  positions = jnp.pad(
    jnp.broadcast_to(jnp.arange(6)[None], (2, 6)),
    (
      (0, 1),
      (0, 5),
    ),
  )

  def loss(params):
    hidden = fns.hidden(params, padded, positions, segment_ids)
    return jnp.sum(hidden**2), hidden

  grads, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(hidden[:2, :6], expected, atol=1e-5)
  assert jnp.isfinite(hidden).all()
  assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))


@pytest.mark.parametrize('config', [CONFIG, WINDOW])
def test_packed_segments_equal_separate_rows(config):
  fns, params = _model(config)
  tokens = _tokens(1, 12)
  segment_ids = jnp.array([[1] * 5 + [2] * 7])
  positions = jnp.array([[*range(5), *range(7)]])
  packed = fns.hidden(params, tokens, positions, segment_ids)
  for part in (slice(0, 5), slice(5, 12)):
    alone = _full(fns, params, tokens[:, part])
    np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


# Reading a prompt and going on token by token.


@pytest.mark.parametrize('config', [CONFIG, WINDOW])
def test_cached_equals_full(config):
  fns, params = _model(config)
  tokens = _tokens(3, 14)
  expected = _full(fns, params, tokens)
  lengths = jnp.array([3, 7, 5])
  rows = jnp.arange(3)
  hidden, cache = fns.prefill(params, tokens[:, :7], lengths, 14)
  np.testing.assert_allclose(hidden, expected[rows, lengths - 1], atol=1e-5)
  for _ in range(7):
    at = cache.lengths
    hidden, cache = fns.decode(params, tokens[rows, at], cache)
    np.testing.assert_allclose(hidden, expected[rows, at], atol=1e-5)
  assert cache.lengths.tolist() == [10, 14, 12]


def test_the_cache_is_read_in_blocks_of_the_placements_size():
  _, params = _model()
  tokens = _tokens(2, 12)
  expected = _full(_model()[0], params, tokens)[:, -1]
  for most, block in ((4, 4), (16, 16)):
    fns = transformer.make_model(
      CONFIG, placement=placement.Placement(cache_block=most)
    )
    assert fns.cache_block == most
    _, cache = fns.prefill(params, tokens[:, :11], jnp.array([11, 11]), 16)
    decode = functools.partial(fns.decode, params, tokens[:, 11])
    np.testing.assert_allclose(decode(cache)[0], expected, atol=1e-5)
    sizes = f'slice_sizes=(1, 2, {CONFIG.num_kv_heads}, {block},'
    assert sizes in str(jax.make_jaxpr(decode)(cache))


def test_an_8_bit_cache_gives_nearly_the_same():
  _, params = _model()
  fns = transformer.make_model(CONFIG, cache_quantization='int8')
  tokens = _tokens(3, 14)
  expected = _full(_model()[0], params, tokens)
  _, cache = fns.prefill(params, tokens[:, :9], jnp.full(3, 9), 14)
  errors = []
  for i in range(9, 14):
    hidden, cache = fns.decode(params, tokens[:, i], cache)
    errors.append(jnp.abs(hidden - expected[:, i]).max())
  # Seen, but less than a hundredth of the largest entries.
  assert 1e-4 < max(errors) < 0.01 * jnp.abs(expected).max()


def test_an_unknown_cache_is_refused():
  with pytest.raises(types.InputError, match="cache_quantization='int4'"):
    transformer.make_model(CONFIG, cache_quantization='int4')


def test_a_row_is_rewound_by_its_length():
  fns, params = _model(WINDOW)
  tokens, others = _tokens(2, 10), _tokens(2, 10, seed=1)
  # Row 0 goes back to 4 tokens and on with others; row 1 just goes on.
  spliced = jnp.concatenate([tokens[:1, :4], others[:1, 4:]], axis=1)
  _, cache = fns.prefill(params, tokens[:, :4], jnp.array([4, 4]), 10)
  for i in range(4, 7):
    _, cache = fns.decode(params, tokens[:, i], cache)
  cache = dataclasses.replace(cache, lengths=jnp.array([4, 7]))
  for step in range(3):
    now = jnp.stack([spliced[0, 4 + step], tokens[1, 7 + step]])
    hidden, cache = fns.decode(params, now, cache)
  np.testing.assert_allclose(
    hidden[0], _full(fns, params, spliced)[0, 6], atol=1e-5
  )
  np.testing.assert_allclose(
    hidden[1], _full(fns, params, tokens)[1, 9], atol=1e-5
  )


def test_decode_runs_in_a_scan():
  fns, params = _model()
  tokens = _tokens(2, 9)
  _, cache = fns.prefill(params, tokens[:, :4], jnp.array([4, 4]), 9)

  def step(cache, token):
    hidden, cache = fns.decode(params, token, cache)
    return cache, hidden

  _, hidden = jax.lax.scan(step, cache, tokens[:, 4:].T)
  expected = _full(fns, params, tokens)[:, 4:]
  np.testing.assert_allclose(jnp.swapaxes(hidden, 0, 1), expected, atol=1e-5)


@pytest.mark.usefixtures('compiled_anew')
def test_decode_updates_a_donated_cache_in_place():
  config = dataclasses.replace(CONFIG, num_layers=8, hidden_size=16)
  config = dataclasses.replace(config, max_position_embeddings=512)
  fns = transformer.make_model(config)
  params = transformer.abstract_params(fns)
  tokens = jax.ShapeDtypeStruct((4,), jnp.int32)
  _, cache = jax.eval_shape(
    functools.partial(fns.prefill, cache_length=512),
    params,
    jax.ShapeDtypeStruct((4, 8), jnp.int32),
    tokens,
  )
  step = jax.jit(fns.decode, donate_argnums=2).lower(params, tokens, cache)
  memory = step.compile().memory_analysis()
  cache_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  assert memory.alias_size_in_bytes >= cache_bytes
  # One layer's keys and values, and small things: no copy of the whole.
  assert memory.temp_size_in_bytes < cache_bytes / 4


# Settings.

KEY = jax.random.key(0)


@pytest.mark.parametrize('tied', [False, True])
def test_the_abstract_tree_the_params_and_the_axes_agree(tied):
  config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
  fns = transformer.make_model(config, lora_rank=4)
  params = jax.jit(fns.init)(KEY)
  assert ('lm_head' in params) != tied
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, transformer.abstract_params(fns)
  )
  jax.tree.map(
    lambda leaf, axes: np.testing.assert_equal(leaf.ndim, len(axes)),
    params,
    fns.logical_axes,
  )
  attention = params['layers']['self_attn']
  assert attention['q_proj']['weight'].shape == (2, 32, 4 * 8)
  assert attention['k_proj']['lora_b'].shape == (2, 4, 2 * 8)
  assert fns.logical_axes['layers']['self_attn']['k_proj'] == {
    'weight': (None, 'embed', 'kv_heads'),
    'lora_a': (None, 'embed', 'lora_rank'),
    'lora_b': (None, 'lora_rank', 'kv_heads'),
  }
  # Layers start out different from one another.
  assert (
    params['layers']['mlp']['up_proj']['weight'][0]
    != (params['layers']['mlp']['up_proj']['weight'][1])
  ).all()


def _loss(fns, tokens, params):
  logits = fns.project(params, _full(fns, params, tokens))
  return jnp.mean(jax.nn.logsumexp(logits, axis=-1))


@pytest.mark.usefixtures('compiled_anew')
def test_remat_policies_take_less_and_less_memory_and_give_one_gradient():
  config = dataclasses.replace(CONFIG, num_layers=6)
  params = _random_params(transformer.make_model(config))
  tokens = _tokens(4, 64)
  grads, sizes = {}, {}
  for remat in ('none', 'dots', 'full'):
    fns = transformer.make_model(config, remat=remat)
    grad = jax.jit(jax.grad(functools.partial(_loss, fns, tokens)))
    compiled = grad.lower(params).compile()
    sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    grads[remat] = compiled(params)
  assert sizes['none'] > 1.2 * sizes['dots'] > 1.4 * sizes['full']
  for remat in ('dots', 'full'):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-5),
      grads[remat],
      grads['none'],
    )


def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits():
  fns, params = _model()
  narrow = transformer.make_model(CONFIG, dtype=jnp.bfloat16, lora_rank=2)
  for path, leaf in jax.tree_util.tree_flatten_with_path(
    transformer.abstract_params(narrow)
  )[0]:
    is_adapter = path[-1].key.startswith('lora')
    assert leaf.dtype == (jnp.float32 if is_adapter else jnp.bfloat16)
  # Float32 params are cast where they are used.
  narrow = transformer.make_model(CONFIG, dtype=jnp.bfloat16)
  tokens = _tokens(2, 10)
  hidden = jax.jit(functools.partial(_full, narrow))(params, tokens)
  assert hidden.dtype == jnp.bfloat16
  logits = narrow.project(params, hidden)
  assert logits.dtype == jnp.float32
  expected = fns.project(params, _full(fns, params, tokens))
  error = jnp.abs(logits - expected)
  assert 1e-4 < error.mean() < 0.05 * jnp.abs(expected).max()


# At scale.


def test_a_row_that_is_not_finite_leaves_the_others_alone():
  # Weights that are trained, cast where they are used.
  fns = transformer.make_model(CONFIG, dtype=jnp.bfloat16)
  params = _random_params(transformer.make_model(CONFIG))
  tokens = _tokens(2, 5) % 32
  expected = _full(fns, params, tokens)
  embedding = params['embed_tokens']['weight'].at[40].set(jnp.nan)
  params['embed_tokens']['weight'] = embedding
  hidden = _full(fns, params, tokens.at[0].set(40))
  assert not jnp.isfinite(hidden[0]).any()
  np.testing.assert_array_equal(hidden[1], expected[1])


def test_sharded_params_give_the_same_numbers():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  mesh = jax.make_mesh(
    (2, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  mesh_axes = {
    'embed': 'fsdp',
    'vocab': 'tensor',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
  }
  fns, params = _model()
  shardings = jax.tree.map(
    lambda axes: jax.NamedSharding(
      mesh, jax.P(*(mesh_axes.get(axis) for axis in axes))
    ),
    fns.logical_axes,
    is_leaf=lambda node: isinstance(node, tuple),
  )
  tokens = _tokens(4, 8)
  step = jax.value_and_grad(lambda p, t: _loss(fns, t, p))
  loss, grads = jax.jit(step)(params, tokens)
  sharded_loss, sharded_grads = jax.jit(step, out_shardings=(None, shardings))(
    jax.device_put(params, shardings),
    jax.device_put(tokens, jax.NamedSharding(mesh, jax.P('data'))),
  )
  up_proj = sharded_grads['layers']['mlp']['up_proj']['weight']
  assert up_proj.sharding.shard_shape(up_proj.shape) == (2, 16, 24)
  np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5),
    sharded_grads,
    grads,
  )


def test_weights_are_gathered_one_layer_at_a_time():
  seen = []

  def doubled(weights, logical_axes):
    seen.append((jax.tree.map(jnp.shape, weights), logical_axes))
    return jax.tree.map(lambda weight: 2 * weight, weights)

  fns, params = _model()
  gathering = transformer.make_model(
    CONFIG, placement=placement.Placement(gather=doubled)
  )
  tokens = _tokens(2, 16)
  twice = {**params, 'layers': doubled(params['layers'], None)}
  expected = _full(fns, twice, tokens)
  seen.clear()
  np.testing.assert_allclose(
    _full(gathering, params, tokens), expected, atol=1e-5
  )
  shapes, axes = (tree['mlp']['up_proj']['weight'] for tree in seen[0])
  assert (shapes, axes) == ((32, 48), ('embed', 'mlp'))
  # Fewer tokens than the model is wide go to the weights.
  seen.clear()
  few = tokens[:, :15]
  np.testing.assert_allclose(
    _full(gathering, params, few), _full(fns, params, few), atol=1e-5
  )
  assert not seen


def test_the_program_does_not_grow_with_depth():
  sizes = []
  for num_layers in (2, 20):
    fns = transformer.make_model(
      dataclasses.replace(CONFIG, num_layers=num_layers)
    )
    grad = jax.jit(jax.grad(functools.partial(_loss, fns, _tokens(1, 8))))
    sizes.append(len(grad.lower(transformer.abstract_params(fns)).as_text()))
  assert sizes[1] < 1.05 * sizes[0]
