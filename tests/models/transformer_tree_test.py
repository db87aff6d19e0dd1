import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import transformer
from tract_jax.text import token_tree

CONFIG = small_models.CONFIG
WINDOW = dataclasses.replace(CONFIG, sliding_window=4)
# Its attention factor is part of every rotation.
YARN = dataclasses.replace(CONFIG, rope_scaling=config_lib.YarnRope(4.0, 16))
# A tree of depth 3 with two branches at its first and its second token.
SEQUENCES = ((5, 9), (5, 6, 9), (5, 6, 7, 9), (8, 9))
TREE = token_tree.make_tree(SEQUENCES)
PATHS = ((), (5,), (5, 6), (5, 6, 7), (8,))  # of the nodes, in order


@functools.cache
def _model(config, remat='dots'):
  fns = transformer.make_model(config, remat=remat)
  rng = np.random.default_rng(0)

  def leaf(path, abstract):
    mean = 1.0 if 'norm' in jax.tree_util.keystr(path) else 0.0
    return jnp.array(rng.normal(mean, 0.2, abstract.shape), abstract.dtype)

  params = jax.tree_util.tree_map_with_path(
    leaf, transformer.abstract_params(fns)
  )
  fns = fns._replace(
    hidden=jax.jit(fns.hidden),
    hidden_and_tree=jax.jit(fns.hidden_and_tree, static_argnums=5),
    decode_tree=jax.jit(fns.decode_tree, static_argnums=2),
  )
  return fns, params


def _rows(num_rows=2, length=10):
  rng = np.random.default_rng(1)
  inputs = rng.integers(10, 64, (num_rows, length)).astype(np.int32)
  positions = np.tile(np.arange(length, dtype=np.int32), (num_rows, 1))
  return inputs, positions, np.ones_like(inputs)


def _last_hidden(fns, params, rows):
  """[n, D] hidden states of the rows' last tokens, by a pass of their own."""
  lengths = np.array([len(row) for row in rows])
  inputs = np.zeros((len(rows), 16), np.int32)
  for row, tokens in zip(inputs, rows, strict=True):
    row[: len(tokens)] = tokens
  positions = np.tile(np.arange(16, dtype=np.int32), (len(rows), 1))
  segments = (positions < lengths[:, None]).astype(np.int32)
  hidden = fns.hidden(params, inputs, positions, segments)
  return hidden[np.arange(len(rows)), lengths - 1]


@pytest.mark.parametrize('config', [CONFIG, WINDOW, YARN])
def test_every_node_is_as_if_its_path_stood_in_the_row(config):
  fns, params = _model(config)
  rows = _rows()
  starts = np.array([[3], [7]], np.int32)
  hidden, nodes = fns.hidden_and_tree(params, *rows, starts, TREE)
  assert nodes.shape == (2, 1, 5, 32)
  ways = [[*rows[0][0, :4], *p] for p in PATHS]
  ways += [[*rows[0][1, :8], *p] for p in PATHS]
  wanted = _last_hidden(fns, params, ways).reshape(2, 1, 5, 32)
  np.testing.assert_allclose(nodes, wanted, atol=2e-5)
  np.testing.assert_allclose(hidden, fns.hidden(params, *rows), atol=1e-6)


def test_trees_of_packed_examples_see_their_own_example():
  fns, params = _model(CONFIG)
  inputs, _, _ = _rows(1, 12)
  segments = np.array([[1] * 5 + [2] * 6 + [0]], np.int32)
  positions = np.array([[*range(5), *range(6), 0]], np.int32)
  starts = np.array([[2, 8]], np.int32)
  _, nodes = fns.hidden_and_tree(
    params, inputs, positions, segments, starts, TREE
  )
  befores = inputs[0, :3], inputs[0, 5:9]
  ways = [[*before, *path] for before in befores for path in PATHS]
  wanted = _last_hidden(fns, params, ways).reshape(1, 2, 5, 32)
  np.testing.assert_allclose(nodes, wanted, atol=2e-5)


@pytest.mark.parametrize('config', [CONFIG, WINDOW, YARN])
def test_tree_behind_a_cache_equals_the_tree_in_a_row(config):
  fns, params = _model(config)
  rows = _rows()
  starts = np.array([[3], [7]], np.int32)
  _, wanted = fns.hidden_and_tree(params, *rows, starts, TREE)
  # Longer than the rows, and with tokens after the starts in it.
  lengths = np.full(2, rows[0].shape[1], np.int32)
  _, cache = fns.prefill(params, rows[0], lengths, 16)
  cache = dataclasses.replace(cache, lengths=jnp.asarray(starts[:, 0]))
  roots = np.take_along_axis(rows[0], starts, axis=1)[:, 0]
  nodes = fns.decode_tree(params, roots, TREE, cache)
  np.testing.assert_allclose(nodes, wanted[:, 0], atol=2e-5)


def test_a_tree_can_stand_behind_the_first_token():
  fns, params = _model(CONFIG)
  inputs, positions, segments = _rows(1)
  starts = np.zeros((1, 1), np.int32)
  _, nodes = fns.hidden_and_tree(
    params, inputs, positions, segments, starts, TREE
  )
  wanted = _last_hidden(fns, params, [[inputs[0, 0], *p] for p in PATHS])
  np.testing.assert_allclose(nodes[0, 0], wanted, atol=2e-5)


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_the_gradient_goes_through_the_row(remat):
  fns, params = _model(CONFIG, remat)
  rows = _rows(1)
  start, node = 6, 2
  weights = np.random.default_rng(2).normal(size=32).astype(np.float32)

  def by_tree(params):
    starts = np.array([[start]], np.int32)
    _, nodes = fns.hidden_and_tree(params, *rows, starts, TREE)
    return nodes[0, 0, node] @ weights

  def by_row(params):
    tokens = [*rows[0][0, : start + 1], *PATHS[node]]
    return _last_hidden(fns, params, [tokens])[0] @ weights

  got = jax.jit(jax.grad(by_tree))(params)
  wanted = jax.jit(jax.grad(by_row))(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, wanted
  )


def test_what_follows_the_start_is_not_seen():
  fns, params = _model(CONFIG)
  inputs = np.arange(20, 30, dtype=np.int32)[None]
  _, positions, segments = _rows(1)

  def nodes_sum(embedding):
    embedded = {**params, 'embed_tokens': {'weight': embedding}}
    starts = np.array([[4]], np.int32)
    _, nodes = fns.hidden_and_tree(
      embedded, inputs, positions, segments, starts, TREE
    )
    return nodes[0, 0, 4].sum()

  grad = jax.jit(jax.grad(nodes_sum))(params['embed_tokens']['weight'])
  used = np.flatnonzero(np.abs(grad).max(axis=1) > 0).tolist()
  # The node's own token 8, no other of the tree, and the row up to its start.
  assert used == [8, 20, 21, 22, 23, 24]


@pytest.mark.usefixtures('compiled_anew')
def test_the_past_is_not_copied_for_each_sequence():
  fns, params = _model(CONFIG)

  def num_bytes(num_sequences):
    tree = token_tree.make_tree([(i, 1) for i in range(2, 2 + num_sequences)])
    cache = types.KVCache(
      jnp.zeros((2, 1, 2, 4096, 8)), jnp.zeros((2, 1, 2, 4096, 8)), jnp.ones(1)
    )
    cache = dataclasses.replace(cache, lengths=jnp.array([4000]))
    memory = fns.decode_tree.lower(
      params, jnp.array([1]), tree, cache
    ).compile()
    return memory.memory_analysis().temp_size_in_bytes

  # A node's scores have 4 heads x 4096 places x 4 bytes, and stand there twice;
  # the keys alone of a layer's past have 2 heads x 8 x 4096 x 4 bytes.
  growth = (num_bytes(40) - num_bytes(8)) / 32
  assert growth < 2 * 8 * 4096 * 4
