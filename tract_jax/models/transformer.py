"""The Llama family: modules that declare weights, given out as pure functions.

Flax NNX modules say what each weight is called, its shape, initial value and
logical axes, and how a layer computes. `make_model` builds them abstractly and
returns `types.ModelFns`, functions of a plain nested dict of arrays:

    embed_tokens/weight                    [V, D]
    layers/input_layernorm/weight          [layers, D]
    layers/self_attn/q_proj/weight         [layers, D, N H]
                           /lora_a         [layers, D, R]
                           /lora_b         [layers, R, N H]
                           /bias           [layers, N H]
    layers/self_attn/{k_proj, v_proj}      as q_proj, with K H
    layers/self_attn/o_proj                as q_proj, N H -> D
    layers/self_attn/{q_norm, k_norm}      as input_layernorm, [layers, H]
    layers/post_attention_layernorm/weight [layers, D]
    layers/mlp/{gate_proj, up_proj}        as q_proj, D -> F
    layers/mlp/down_proj                   as q_proj, F -> D
    norm/weight                            [D]
    lm_head/weight                         [D, V]; absent when tied

Adapters, biases and norms of heads exist where they are configured. Names are
Hugging Face's; linear weights are transposed, [in, out]. Layers run in a
`jax.lax.scan`, so compile time does not grow with depth. Axes as in types.py.
"""

from collections.abc import Iterable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import numerics, types
from tract_jax.models import (
  attention,
  kv_cache,
  layers,
  lora,
  quantization,
  rope,
  tree_rows,
)
from tract_jax.models import config as config_lib
from tract_jax.models import placement as placement_lib
from tract_jax.models import remat as remat_lib


def make_model(
  config: config_lib.ModelConfig,
  *,
  dtype: Any = jnp.float32,
  lora_rank: int = 0,
  lora_alpha: float = 16.0,
  lora_targets: tuple[str, ...] = lora.TARGETS,
  remat: str = 'heads',
  cache_quantization: str = '',
  placement: placement_lib.Placement = placement_lib.ONE_DEVICE,
) -> types.ModelFns:
  """A model of the family as pure functions.

  Weights of any sharding and dtype are cast to `dtype` where they are used.

  Args:
    config: the architecture.
    dtype: in which hidden states are computed, and of the weights that `init`
      makes. Adapters are made in float32 whatever it is.
    lora_rank, lora_alpha: R, 0 for none; adapters count alpha / R times.
    lora_targets: names of the adapted layers; all linear layers of a block.
    remat: what the backward pass finds stored, a name of remat.POLICIES.
    cache_quantization: how prefill and decode keep keys and values: '' (as
      they are) or 'int8'.
    placement: of arrays on several devices, or for other ones.

  Returns:
    The functions. Rows and caches longer than `config.longest_row` raise
    types.InputError.

  Raises:
    types.InputError: for an unknown policy, kind of cache or adapter target.

  Example:
    fns = make_model(config, lora_rank=8)
    params = fns.init(jax.random.key(0))
    hidden = fns.hidden(params, inputs, positions, segment_ids)
    logits = fns.project(params, hidden[:, -1])
  """
  _check_choice('remat', remat, remat_lib.POLICIES)
  _check_choice('cache_quantization', cache_quantization, kv_cache.KINDS)
  spec = layers.Spec(
    config=config,
    lora=lora.LoraConfig(lora_rank, lora_alpha, tuple(lora_targets)),
    dtype=jnp.dtype(dtype),
    fuse_adapters=placement.fuse_adapters,
    keep_heads=placement.keep_heads,
  )
  return _Model(spec, remat, cache_quantization, placement).fns()


def _check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
  if value not in allowed:
    words = ', '.join(word or "''" for word in allowed)
    raise types.InputError(f'{name}={value!r}: unknown; allowed: {words}')


def abstract_params(fns: types.ModelFns) -> types.PyTree:
  """The params of a model as shapes and dtypes; nothing is allocated."""
  return jax.eval_shape(lambda: fns.init(jax.random.key(0)))


class _Model:
  """The functions of `make_model`; holds structure, never arrays."""

  def __init__(self, spec, remat, cache_quantization, placement):
    self._spec = spec
    self._remat = remat
    self._cache_quantization = cache_quantization
    self._placement = placement
    self._rotations = functools.partial(
      rope.rotations,
      frequencies=rope.inverse_frequencies(spec.config),
      factor=rope.attention_factor(spec.config),
    )
    frame = nnx.eval_shape(lambda: layers.Frame(spec, nnx.Rngs(0)))
    block = nnx.eval_shape(lambda: layers.Block(spec, nnx.Rngs(0)))
    self._frame_graph, frame_state = nnx.split(frame)
    self._block_graph, block_state = nnx.split(block)
    self._frame_axes = _logical_axes(frame_state, ())
    self._block_axes = _logical_axes(block_state, ())
    stacked_axes = _logical_axes(block_state, (None,))
    self.logical_axes = {**self._frame_axes, 'layers': stacked_axes}

  def fns(self):
    return types.ModelFns(
      init=self.init,
      hidden=self.hidden,
      project=self.project,
      head=self.head,
      prefill=self.prefill,
      decode=self.decode,
      hidden_and_tree=self.hidden_and_tree,
      decode_tree=self.decode_tree,
      logical_axes=self.logical_axes,
      vocab_size=self._spec.config.vocab_size,
      cache_block=self._placement.cache_block,
    )

  def init(self, key):
    frame_key, layers_key = jax.random.split(key)

    def init_module(module_type, key):
      module = module_type(self._spec, nnx.Rngs(key))
      return nnx.to_pure_dict(nnx.state(module))

    params = init_module(layers.Frame, frame_key)
    params['layers'] = jax.vmap(functools.partial(init_module, layers.Block))(
      jax.random.split(layers_key, self._spec.config.num_layers)
    )
    return params

  def hidden(self, params, inputs, positions, segment_ids):
    self._check_length('row', inputs.shape[1])
    x, _ = self._rows(params, inputs, positions, segment_ids, keep=False)
    return self._placement.split_rows(self._frame(params).norm(x))

  def project(self, params, hidden):
    weights = self._cast(_frame_weights(params))
    weights = self._placement.gathered(weights, self._frame_axes, hidden)
    return nnx.merge(self._frame_graph, weights).logits(hidden)

  def head(self, params):
    weights = _frame_weights(params)
    gather = self._placement.gather
    if gather is None:
      return weights
    # One that is cast, and trained, stays: of what is cast already, gradients
    # would be added up in fewer digits.
    return jax.tree.map(
      lambda leaf, whole: leaf if self._is_cast(leaf) else whole,
      weights,
      gather(weights, self._frame_axes),
    )

  def prefill(self, params, tokens, lengths, cache_length):
    self._check_length('cache', cache_length)
    positions = jnp.broadcast_to(
      jnp.arange(tokens.shape[1])[None, :], tokens.shape
    )
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    x, (keys, values) = self._rows(
      params, tokens, positions, segment_ids, keep=True
    )
    last = jnp.maximum(lengths - 1, 0)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    cache = kv_cache.from_prefill(
      keys,
      values,
      lengths,
      cache_length,
      kind=self._cache_quantization,
      multiple=self._placement.cache_multiple,
    )
    return self._frame(params).norm(x), cache

  def decode(self, params, tokens, cache):
    frame = self._frame(params)
    x = frame.embed(tokens[:, None])
    rotation = self._rotations(cache.lengths[:, None])
    x, (keys, values) = self._cached_rows(
      params, x, rotation, cache, np.zeros(1, np.int32), np.ones((1, 1), bool)
    )
    cache = kv_cache.appended(cache, keys[:, :, 0], values[:, :, 0])
    return frame.norm(x[:, 0]), cache

  def hidden_and_tree(
    self, params, inputs, positions, segment_ids, starts, tree
  ):
    self._check_length('row', inputs.shape[1])
    of_starts = functools.partial(jnp.take_along_axis, indices=starts, axis=1)
    window = self._spec.config.sliding_window
    nodes = tree_rows.placed(tree, of_starts(inputs), starts, window)
    same_segment = jnp.equal(
      nodes.for_each(of_starts(segment_ids))[:, :, None], segment_ids[:, None]
    )
    see = functools.partial(
      attention.tree_attention,
      sees_past=nodes.sees_past(inputs.shape[1]) & same_segment,
      sees_own=nodes.sees_own,
    )
    attend = functools.partial(
      self._placement.row_attention, segment_ids=segment_ids, window=window
    )
    rotation = self._rotations(positions)
    node_rotation = self._rotations(
      nodes.for_each(of_starts(positions)) + nodes.depths
    )

    def layer(streams, weights):
      x, z = (self._placement.split_rows(stream) for stream in streams)
      block = self._block(weights, x)
      x, keys_values = block(x, rotation, attend)
      keys, values = (jnp.swapaxes(y, 1, 2) for y in keys_values)
      past = functools.partial(see, past_keys=keys, past_values=values)
      z, _ = block(z, node_rotation, past)
      return (x, z), None

    frame = self._frame(params)
    (x, z), _ = jax.lax.scan(
      self._rematerialised(layer),
      (frame.embed(inputs), frame.embed(nodes.tokens)),
      params['layers'],
    )
    hidden, of_nodes = (
      self._placement.split_rows(frame.norm(stream)) for stream in (x, z)
    )
    return hidden, nodes.split(of_nodes)

  def decode_tree(self, params, tokens, tree, cache):
    starts = cache.lengths[:, None]
    nodes = tree_rows.placed(
      tree, tokens[:, None], starts, self._spec.config.sliding_window
    )
    frame = self._frame(params)
    rotation = self._rotations(starts + nodes.depths)
    x, _ = self._cached_rows(
      params,
      frame.embed(nodes.tokens),
      rotation,
      cache,
      nodes.depths,
      nodes.sees_own,
    )
    return frame.norm(x)

  def _cached_rows(self, params, x, rotation, cache, depths, sees_own):
    """The stream [B, M, D] of tokens behind the cache, after all layers.

    With their keys and values [layers, B, M, K, H]. Computed in tiles of rows.
    """
    num_rows = x.shape[0]
    x, rotation, starts = jax.tree.map(
      numerics.tiled_rows, (x, rotation, cache.lengths)
    )
    window = self._spec.config.sliding_window
    block = kv_cache.block_length(cache.length, self._placement.cache_block)
    seen = attention.seen_entries(cache.length, starts, depths, window)
    attend = functools.partial(
      attention.cached_attention,
      block=block,
      width=cache.width,
      starts=starts,
      # Made once: a TPU's compiler would make it in each layer.
      seen=jax.lax.optimization_barrier(seen),
      sees_own=sees_own,
      window=window,
    )

    def layer(x, scanned):
      weights, number = scanned

      # Read from the whole cache: a layer's share of it would be copied.
      def read_block(place):
        entries = kv_cache.read(cache, number, place, block, x.dtype)
        return jax.tree.map(numerics.tiled_rows, entries)

      return self._block(weights, x)(
        x, rotation, functools.partial(attend, read_block=read_block)
      )

    numbers = jnp.arange(self._spec.config.num_layers)
    x, keys_values = jax.lax.scan(layer, x, (params['layers'], numbers))
    return x[:num_rows], tuple(y[:, :num_rows] for y in keys_values)

  def _rows(self, params, inputs, positions, segment_ids, *, keep):
    """The stream after all layers [B, L, D].

    With keep, also every layer's keys and values [layers, B, K, L, H].
    """
    rotation = self._rotations(positions)
    attend = functools.partial(
      self._placement.row_attention,
      segment_ids=segment_ids,
      window=self._spec.config.sliding_window,
    )

    def layer(x, weights):
      x = self._placement.split_rows(x)
      x, keys_values = self._block(weights, x)(x, rotation, attend)
      if not keep:
        return x, None
      return x, tuple(jnp.swapaxes(y, 1, 2) for y in keys_values)

    x = self._frame(params).embed(inputs)
    return jax.lax.scan(self._rematerialised(layer), x, params['layers'])

  def _rematerialised(self, layer):
    """The loop's body, with what the backward pass finds stored."""
    return remat_lib.rematerialised(layer, self._remat)

  def _block(self, weights, x):
    """One layer as a function of the stream x [B, L, D]."""
    # A TPU's compiler would cast all layers before the loop over them, and keep
    # both, unless a weight seems to depend on the stream.
    number = jax.lax.stop_gradient(x[(0,) * x.ndim]).astype(jnp.float32)
    weights = self._cast(weights, 1 + 0 * jnp.nan_to_num(number))
    weights = self._placement.gathered(weights, self._block_axes, x)
    return nnx.merge(self._block_graph, weights)

  def _cast(self, weights, one=1):
    """Weights in the dtype of hidden states: what moves is the smaller."""
    adapters, weights = lora.split_trainable(weights, train_base=False)

    def cast(leaf):
      if not self._is_cast(leaf):
        return leaf
      return (leaf * one).astype(self._spec.dtype)

    weights = jax.tree.map(cast, weights, is_leaf=quantization.is_quantized)
    return lora.merge(adapters, weights)

  def _is_cast(self, leaf):
    # A quantised one's scales stay as they are.
    return not (
      quantization.is_quantized(leaf) or leaf.dtype == self._spec.dtype
    )

  def _frame(self, params):
    return nnx.merge(self._frame_graph, _frame_weights(params))

  def _check_length(self, name, length):
    config = self._spec.config
    if length <= config.longest_row:
      return
    limit = f'max_position_embeddings={config.max_position_embeddings}'
    scaling = config.rope_scaling
    if config.longest_row > config.max_position_embeddings:
      limit = f'the {config.longest_row} that {limit} and {scaling} give'
    elif isinstance(scaling, config_lib.DynamicRope):
      limit += (
        '; under dynamic rope scaling a longer row changes the angles of all '
        'its tokens, which cached keys cannot follow'
      )
    raise types.InputError(f'{name} of {length} tokens: longer than {limit}')


def _frame_weights(params):
  return {name: leaf for name, leaf in params.items() if name != 'layers'}


def _logical_axes(state, leading):
  """A tuple of logical names for every leaf, after the `leading` ones."""
  return nnx.to_pure_dict(
    jax.tree.map(
      lambda variable: leading + variable.logical_axes,
      state,
      is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
  )
