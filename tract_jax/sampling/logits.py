"""From raw logits to a sampled token: pure functions of [B, V] float32.

The order is that of transformers' processors: repetition penalty, then
temperature, top-k, top-p. A token that may not be sampled has logit -inf.

Axes: B rows, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tract_jax import types

_KEY_IMPL = 'threefry2x32'
# Tokens that `inverse_cdf` sums at a time.
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """How tokens are drawn; the defaults are those of TRACT.

  Attributes:
    temperature: divides the logits; 0 is greedy.
    top_k: only the k likeliest tokens; 0 is all.
    top_p: only the smallest set of likeliest tokens with this mass; 1 is all.
    repetition_penalty: of tokens in the prompt or already generated; 1 is none.
    max_new_tokens: tokens that the model may write after the prompt.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 0.9
  repetition_penalty: float = 1.03
  max_new_tokens: int = 1024

  def __post_init__(self):
    problems = [
      f'sampling.{name}={getattr(self, name)!r}: {reason}'
      for name, good, reason in (
        ('temperature', self.temperature >= 0, 'is below 0'),
        ('top_k', self.top_k >= 0, 'is below 0'),
        ('top_p', 0 < self.top_p <= 1, 'is not in (0, 1]'),
        ('repetition_penalty', self.repetition_penalty > 0, 'is not > 0'),
        ('max_new_tokens', self.max_new_tokens >= 1, 'is below 1'),
      )
      if not good
    ]
    if problems:
      raise types.InputError('\n'.join(problems))


def penalized(
  logits: types.Array, seen: types.Array, penalty: float
) -> types.Array:
  r"""Makes tokens less likely that stand in the prompt or were generated.

  .. math:: l_v \to l_v / \theta \text{ if } l_v > 0 \text{ else } l_v \theta

  Args:
    logits: [B, V] float32.
    seen: [B, V] bool, the tokens to penalise.
    penalty: theta; 1 changes nothing, below 1 favours repetition.

  Returns:
    [B, V] float32.

  References:
    Keskar et al., CTRL, 2019 (https://arxiv.org/abs/1909.05858), section 4.1.
  """
  weakened = jnp.where(logits < 0, logits * penalty, logits / penalty)
  return jnp.where(seen, weakened, logits)


def top_k(logits: types.Array, k: int) -> types.Array:
  """Keeps each row's k largest logits, and those equal to the k-th.

  Args:
    logits: [B, V] float32.
    k: at least 1; more than V keeps all.

  Returns:
    [B, V] float32, -inf for the others.
  """
  k = min(k, logits.shape[-1])
  smallest = jax.lax.top_k(logits, k)[0][:, -1:]
  return jnp.where(logits < smallest, -jnp.inf, logits)


def top_p(logits: types.Array, p: float) -> types.Array:
  """Keeps the likeliest tokens until their probabilities sum to p.

  A token stays if the tokens likelier than itself have a mass below p; so the
  likeliest one always does, and equally likely ones stay or go together.

  The threshold is bisected over the bits of a float32, whose order is that of
  the numbers where none is negative: 31 masked sums in place of a sort, 13
  times as fast for 49,152 tokens on a CPU.

  Args:
    logits: [B, V] float32.
    p: in (0, 1].

  Returns:
    [B, V] float32, -inf for the others.

  References:
    Holtzman et al., The Curious Case of Neural Text Degeneration, 2019
    (https://arxiv.org/abs/1904.09751).
  """
  probs = jax.nn.softmax(logits, axis=-1)

  def as_probs(bits):
    return jax.lax.bitcast_convert_type(bits, jnp.float32)[:, None]

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low) // 2
    above = jnp.where(probs > as_probs(middle), probs, 0.0).sum(axis=-1)
    enough = above < p
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  # The mass above `high` is always below p. A softmax may round to just over
  # 1, so 2 is the number that surely nothing is above.
  high = jax.lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32)
  low = jnp.zeros(logits.shape[:1], jnp.int32)
  high = jnp.full(logits.shape[:1], high)
  _, threshold = jax.lax.fori_loop(0, 31, halve, (low, high))
  return jnp.where(probs < as_probs(threshold), -jnp.inf, logits)


def processed(
  logits: types.Array,
  params: SamplingParams,
  *,
  seen: types.Array | None = None,
  num_valid_tokens: int | None = None,
) -> types.Array:
  """The logits that tokens are drawn from.

  Args:
    logits: [B, V] float32, raw.
    params: the processors' numbers; temperature 0 leaves out temperature,
      top-k and top-p, which do not move the maximum.
    seen: [B, V] bool, tokens of the prompt and those generated; None: none.
    num_valid_tokens: tokens that the tokenizer knows; padded rows of the
      embedding come after them and are never sampled. None: V.

  Returns:
    [B, V] float32.
  """
  if num_valid_tokens is not None:
    is_valid = jnp.arange(logits.shape[-1]) < num_valid_tokens
    logits = jnp.where(is_valid[None], logits, -jnp.inf)
  if seen is not None and params.repetition_penalty != 1:
    logits = penalized(logits, seen, params.repetition_penalty)
  if params.temperature == 0:
    return logits
  logits = logits / params.temperature
  if params.top_k:
    logits = top_k(logits, params.top_k)
  if params.top_p < 1:
    logits = top_p(logits, params.top_p)
  return logits


def sample_tokens(
  keys: types.Array,
  logits: types.Array,
  params: SamplingParams,
  *,
  seen: types.Array | None = None,
  num_valid_tokens: int | None = None,
) -> types.Array:
  """Draws a token for each row, each row with its own key.

  Args:
    keys: [B] typed keys.
    logits: [B, V] float32, raw.
    params: see `processed`; temperature 0 takes the maximum.
    seen: [B, V] bool, see `processed`.
    num_valid_tokens: see `processed`.

  Returns:
    [B] int32.

  Example:
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> sample_tokens(keys, jnp.eye(2), SamplingParams(temperature=0.0))
    Array([0, 1], dtype=int32)
  """
  logits = processed(
    logits, params, seen=seen, num_valid_tokens=num_valid_tokens
  )
  if params.temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return inverse_cdf(jax.vmap(jax.random.uniform)(keys), logits)


def inverse_cdf(uniforms: types.Array, logits: types.Array) -> types.Array:
  r"""The token at which the cumulative probability passes a number.

  .. math:: \min \{ v : \textstyle\sum_{w \le v} p_w > u \}

  One random number for each row in place of one for each token: 100 times as
  fast as Gumbel noise for 49,152 tokens on a CPU. Sums run over blocks of
  tokens first, then over the tokens of one block.

  Args:
    uniforms: [B] float32, u in [0, 1).
    logits: [B, V] float32; a token of -inf is never given.

  Returns:
    [B] int32.

  Example:
    >>> inverse_cdf(jnp.array([0.2, 0.6]), jnp.log(jnp.array([[0.5, 0.5]] * 2)))
    Array([0, 1], dtype=int32)
  """
  num_rows, size = logits.shape
  weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  weights = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK)))
  weights = weights.reshape(num_rows, -1, _BLOCK)
  blocks = jnp.cumsum(weights.sum(axis=-1), axis=-1)
  block, rest = _passed(blocks, uniforms[:, None] * blocks[:, -1:])
  tokens = jnp.take_along_axis(weights, block[:, :, None], axis=1)[:, 0]
  token, _ = _passed(jnp.cumsum(tokens, axis=-1), rest)
  return (block * _BLOCK + token)[:, 0].astype(jnp.int32)


def _passed(
  sums: types.Array, targets: types.Array
) -> tuple[types.Array, types.Array]:
  """Where cumulative sums [B, n] first pass targets [B, 1], and what is left.

  Rounding may put a target at the end of the sums or behind it; it is taken
  back to just before, so that an entry of no weight is never found.
  """
  targets = jnp.minimum(targets, jnp.nextafter(sums[:, -1:], 0.0))
  index = jnp.sum(sums <= targets, axis=-1, keepdims=True)
  before = jnp.take_along_axis(sums, jnp.maximum(index - 1, 0), axis=-1)
  return index, targets - jnp.where(index > 0, before, 0.0)


def row_keys(key_data: types.Array, indices: types.Array) -> types.Array:
  """Keys of one token in each row: the row's own key and the token's index.

  Args:
    key_data: [B, 2] uint32.
    indices: [B] int32.

  Returns:
    [B] typed keys, of one named implementation whatever JAX's default is.
  """
  keys = jax.random.wrap_key_data(key_data, impl=_KEY_IMPL)
  return jax.vmap(jax.random.fold_in)(keys, indices)
