"""Flax NNX modules of the Llama family: what each weight is, and one layer.

A module says what a weight is called, its shape, first value and logical axes,
and how it is used. `transformer` stacks them and gives them out as pure
functions. Linear weights are [in, out]. Axes as in types.py.
"""

import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import lora, quantization, rope

# Names under which rematerialisation may keep the results of linear layers, the
# stream behind attention, and what attention takes.
LINEAR_NAME = 'linear_output'
MLP_INPUT_NAME = 'mlp_input'
HEADS_NAME = 'queries_keys_values'

_Dims = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Spec:
  """What every module needs to build itself.

  Attributes:
    config: the architecture.
    lora: the adapters.
    dtype: of the weights made, and of hidden states.
    fuse_adapters: whether weight and adapter are one product.
    keep_heads: whether products of many rows keep all dimensions.
  """

  config: config_lib.ModelConfig
  lora: lora.LoraConfig
  dtype: Any
  fuse_adapters: bool = False
  keep_heads: bool = False


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

  def __init__(self, spec: Spec, size: int):
    self.eps = spec.config.norm_eps
    self.weight = nnx.Param(jnp.ones((size,), spec.dtype), logical_axes=(None,))

  def __call__(self, x: types.Array) -> types.Array:
    """[..., size] -> [..., size]; the mean square in float32."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    normed = (wide * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
    weight = self.weight[...].astype(x.dtype)
    return normed * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


class Linear(nnx.Module):
  """y = x W + bias + (alpha / R) (x A) B; W may come quantised.

  Inputs and outputs may have several dimensions, such as heads; weights are
  [in, out] with one of each, which is reshaped where it is used.
  """

  def __init__(
    self,
    spec: Spec,
    name: str,
    in_dims: _Dims,
    out_dims: _Dims,
    axes: tuple[str, str],
    rngs: nnx.Rngs,
    *,
    bias: bool = False,
  ):
    self.in_dims = in_dims
    self.out_dims = out_dims
    self.scaling = spec.lora.scaling
    self.fuse = spec.fuse_adapters
    self.keep_heads = spec.keep_heads
    sizes = math.prod(in_dims), math.prod(out_dims)
    self.weight = nnx.Param(_normal(spec, rngs, sizes), logical_axes=axes)
    # Each attribute is assigned once: NNX fixes then whether it holds arrays.
    self.bias = (
      nnx.Param(jnp.zeros(sizes[1:], spec.dtype), logical_axes=axes[1:])
      if bias
      else None
    )
    adapted = spec.lora.rank > 0 and name in spec.lora.targets
    a, b = (
      _adapter(spec.lora.rank, sizes, axes, rngs) if adapted else (None,) * 2
    )
    self.lora_a = a
    self.lora_b = b

  def __call__(self, x: types.Array) -> types.Array:
    """[..., *in_dims] -> [..., *out_dims]."""
    lead = x.shape[: x.ndim - len(self.in_dims)]
    weight = self.weight.get_value()
    # With fewer rows, putting weight and B together would cost the most, and so
    # might another layout of the weight.
    is_few = math.prod(lead) < math.prod(self.in_dims)
    is_worth_it = not is_few and not quantization.is_quantized(weight)
    dims = self.in_dims, self.out_dims
    if not (self.keep_heads and is_worth_it):
      # One flat matmul: a batch dimension would make the CPU loop over rows.
      dims = (math.prod(self.in_dims),), (math.prod(self.out_dims),)
      x = x.reshape(-1, *dims[0])
    y = self._product(x, weight, *dims, self.fuse and is_worth_it)
    if is_few and self.lora_a is None and len(self.out_dims) > 1:
      # A TPU's compiler would make the heads part of the product, and lay the
      # weight out anew for that, in every step.
      y = jax.lax.optimization_barrier(y)
    y = ad_checkpoint.checkpoint_name(
      y.reshape(lead + self.out_dims), LINEAR_NAME
    )
    if self.bias is None:
      return y
    bias = self.bias[...].astype(x.dtype)
    return y + bias.reshape((1,) * len(lead) + self.out_dims)

  def _product(self, x, weight, in_dims, out_dims, fuse):
    """[..., *in_dims] -> [..., *out_dims], without bias."""
    if not quantization.is_quantized(weight):
      weight = weight.astype(x.dtype).reshape(in_dims + out_dims)
    product = functools.partial(quantization.matmul, num_dims=len(in_dims))
    if self.lora_a is None or self.lora_b is None:
      return product(x, weight)
    a, b = (leaf[...].astype(x.dtype) for leaf in (self.lora_a, self.lora_b))
    a, b = a.reshape(*in_dims, -1), b.reshape(-1, *out_dims)
    if fuse:
      return lora.adapted_matmul(self.scaling, x, weight, a, b)
    low = ad_checkpoint.checkpoint_name(product(x, a), lora.LOW_NAME)
    return product(x, weight) + self.scaling * quantization.matmul(low, b)


@jax.custom_jvp
def silu(x: types.Array) -> types.Array:
  """SiLU, x / (1 + exp(-x)), exact to rounding for negative x, too.

  jax.nn.silu goes through (1 + tanh(x / 2)) / 2 on the CPU, which loses a
  sigmoid of 1e-4 to cancellation; over thirty layers that shows in the logits.

  Args:
    x: [...] of any float dtype; computed in float32.

  Returns:
    The same shape and dtype.
  """
  wide = x.astype(jnp.float32)
  return (wide / (1 + jnp.exp(-wide))).astype(x.dtype)


@silu.defjvp
def _silu_jvp(primals, tangents):
  # By hand, because exp(-x) overflows below -88 and autodiff gives NaN there.
  (x,), (tangent,) = primals, tangents
  wide = x.astype(jnp.float32)
  sigmoid = 1 / (1 + jnp.exp(-wide))
  slope = sigmoid * (1 + wide * (1 - sigmoid))
  return silu(x), (slope * tangent).astype(x.dtype)


class Attention(nnx.Module):
  """Projections around an attention function; heads may be normed first."""

  def __init__(self, spec: Spec, rngs: nnx.Rngs):
    config = spec.config
    width = (config.hidden_size,)
    heads = (config.num_heads, config.head_dim)
    kv_heads = (config.num_kv_heads, config.head_dim)

    def linear(name, in_dims, out_dims, axes, bias=config.qkv_bias):
      return Linear(spec, name, in_dims, out_dims, axes, rngs, bias=bias)

    self.q_proj = linear('q_proj', width, heads, ('embed', 'heads'))
    self.k_proj = linear('k_proj', width, kv_heads, ('embed', 'kv_heads'))
    self.v_proj = linear('v_proj', width, kv_heads, ('embed', 'kv_heads'))
    self.o_proj = linear(
      'o_proj', heads, width, ('heads', 'embed'), config.output_bias
    )
    self.q_norm = RMSNorm(spec, config.head_dim) if config.qk_norm else None
    self.k_norm = RMSNorm(spec, config.head_dim) if config.qk_norm else None

  def __call__(self, x, rotation, attend):
    """[B, L, D] -> [B, L, D], and keys and values [B, L, K, H]."""
    queries, keys, values = self.q_proj(x), self.k_proj(x), self.v_proj(x)
    if self.q_norm is not None and self.k_norm is not None:
      queries, keys = self.q_norm(queries), self.k_norm(keys)
    queries, keys, values = ad_checkpoint.checkpoint_name(
      (rope.rotated(queries, rotation), rope.rotated(keys, rotation), values),
      HEADS_NAME,
    )
    return self.o_proj(attend(queries, keys, values)), (keys, values)


class MLP(nnx.Module):
  """down(silu(gate(x)) * up(x))."""

  def __init__(self, spec: Spec, rngs: nnx.Rngs):
    config = spec.config
    width, wide = (config.hidden_size,), (config.intermediate_size,)
    bias = config.mlp_bias

    def linear(name, in_dims, out_dims, axes):
      return Linear(spec, name, in_dims, out_dims, axes, rngs, bias=bias)

    self.gate_proj = linear('gate_proj', width, wide, ('embed', 'mlp'))
    self.up_proj = linear('up_proj', width, wide, ('embed', 'mlp'))
    self.down_proj = linear('down_proj', wide, width, ('mlp', 'embed'))

  def __call__(self, x: types.Array) -> types.Array:
    """[B, L, D] -> [B, L, D]."""
    return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
  """One layer: attention and MLP, each on the normed stream, added to it."""

  def __init__(self, spec: Spec, rngs: nnx.Rngs):
    width = spec.config.hidden_size
    self.input_layernorm = RMSNorm(spec, width)
    self.self_attn = Attention(spec, rngs)
    self.post_attention_layernorm = RMSNorm(spec, width)
    self.mlp = MLP(spec, rngs)

  def __call__(self, x, rotation, attend):
    """[B, L, D] -> [B, L, D], and keys and values [B, L, K, H].

    Args:
      x: the stream.
      rotation: of rope.rotations.
      attend: (queries [B, L, N, H], keys, values [B, L, K, H]) -> [B, L, N, H].
    """
    attended, keys_values = self.self_attn(
      self.input_layernorm(x), rotation, attend
    )
    x = ad_checkpoint.checkpoint_name(x + attended, MLP_INPUT_NAME)
    return x + self.mlp(self.post_attention_layernorm(x)), keys_values


class Frame(nnx.Module):
  """What stands before and after the layers: embedding, norm, vocabulary."""

  def __init__(self, spec: Spec, rngs: nnx.Rngs):
    config = spec.config
    self.dtype = spec.dtype
    self.embed_tokens = Embedding(spec, rngs)
    self.norm = RMSNorm(spec, config.hidden_size)
    sizes = (config.hidden_size,), (config.vocab_size,)
    self.lm_head = (
      None
      if config.tie_word_embeddings
      else Linear(spec, 'lm_head', *sizes, ('embed', 'vocab'), rngs)
    )

  def embed(self, tokens: types.Array) -> types.Array:
    """[B, L] int32 -> [B, L, D]."""
    return self.embed_tokens.weight[...][tokens].astype(self.dtype)

  def logits(self, hidden: types.Array) -> types.Array:
    """[..., D] -> [..., V] float32, summed in float32."""
    if self.lm_head is None:
      weight, axis = self.embed_tokens.weight[...], 1
    else:
      weight, axis = self.lm_head.weight[...], 0
    return jax.lax.dot_general(
      hidden.astype(self.dtype),
      weight.astype(self.dtype),
      (((hidden.ndim - 1,), (axis,)), ((), ())),
      preferred_element_type=jnp.float32,
    )


class Embedding(nnx.Module):
  """A vector for each token."""

  def __init__(self, spec: Spec, rngs: nnx.Rngs):
    sizes = (spec.config.vocab_size, spec.config.hidden_size)
    self.weight = nnx.Param(
      _normal(spec, rngs, sizes), logical_axes=('vocab', 'embed')
    )


def _adapter(
  rank: int,
  sizes: tuple[int, int],
  axes: tuple[str, str],
  rngs: nnx.Rngs,
) -> tuple[nnx.LoRAParam, nnx.LoRAParam]:
  """A and B of a linear layer; B is zero, so they change nothing yet.

  Float32 whatever the weights are: bfloat16 would round away the steps of a
  small learning rate. A's bound is that of PEFT.
  """
  bound = 1.0 / math.sqrt(sizes[0])
  a = jax.random.uniform(
    rngs.params(), (sizes[0], rank), minval=-bound, maxval=bound
  )
  b = jnp.zeros((rank, sizes[1]))
  return (
    nnx.LoRAParam(a, logical_axes=(axes[0], 'lora_rank')),
    nnx.LoRAParam(b, logical_axes=('lora_rank', axes[1])),
  )


def _normal(spec: Spec, rngs: nnx.Rngs, shape: tuple[int, ...]) -> types.Array:
  """Random weights of the configured standard deviation."""
  weights = jax.random.normal(rngs.params(), shape)
  return (weights * spec.config.initializer_range).astype(spec.dtype)
