"""Reads a Llama-architecture GGUF file as a Hugging Face model.

In: one GGUF file, quantised or not. Out: what config.json would say, the
tokenizer's tables, and float32 tensors under Hugging Face's names, one at a
time. Numbers are dequantised in numpy; nothing in the file is run.

A GGUF file keeps the rows of q_proj and k_proj in another order: its rotary
embedding turns neighbouring rows, Hugging Face's turns row i with row
i + H/2 of the head. Rows of one head, H = 6:

  GGUF           0 3 1 4 2 5
  Hugging Face   0 1 2 3 4 5
"""

from collections.abc import Iterator
import dataclasses
import os
import pathlib
from typing import Any

import gguf
import numpy as np

from tract_jax import types

_LAYER_TENSORS = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
# Keys of the architecture that are read below; any other may change what the
# model computes, so it is refused.
_LLAMA_KEYS = frozenset(
  {
    'block_count',
    'context_length',
    'embedding_length',
    'feed_forward_length',
    'attention.head_count',
    'attention.head_count_kv',
    'attention.key_length',
    'attention.value_length',
    'attention.layer_norm_rms_epsilon',
    'rope.dimension_count',
    'rope.freq_base',
    'vocab_size',
  }
)
_CONTROL_TOKEN = 3


@dataclasses.dataclass(frozen=True)
class GgufTokenizer:
  """The tokenizer's tables as the file gives them.

  Attributes:
    model: kind of tokenizer; "gpt2" is byte-level BPE.
    pre: name of the rule that splits text before BPE; "" where none is named.
    tokens: [V] token texts, in the model's own alphabet.
    control_ids: ids of control tokens, such as <|im_end|>.
    merges: BPE merges, first to last, each "left right"; () where no BPE.
    bos_id, eos_id, unk_id, pad_id: None where the file names none.
    chat_template: Jinja template; None where the file has none.
  """

  model: str
  pre: str
  tokens: tuple[str, ...]
  control_ids: tuple[int, ...]
  merges: tuple[str, ...]
  bos_id: int | None
  eos_id: int | None
  unk_id: int | None
  pad_id: int | None
  chat_template: str | None


@dataclasses.dataclass(frozen=True)
class GgufModel:
  """A GGUF file, opened.

  Attributes:
    hf_config: what config.json says of the same model.
    tokenizer: the tokenizer's tables.
    tensors: (Hugging Face name, float32 array [out, in] or [D]), to be walked
      through once; the output matrix is left out where it is tied.
  """

  hf_config: dict[str, Any]
  tokenizer: GgufTokenizer
  tensors: Iterator[tuple[str, np.ndarray]]


def read_gguf(path: str | os.PathLike[str]) -> GgufModel:
  """Opens a GGUF file of the Llama architecture.

  Args:
    path: the file. Its metadata is checked at once; its numbers are read and
      dequantised as `tensors` is walked through.

  Returns:
    Config, tokenizer tables and tensors.

  Raises:
    types.InputError: not a whole GGUF file, another architecture, a key or
      tensor that this model has no use for, or a missing or misshaped tensor.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise types.InputError(f'{path}: no such file')
  try:
    reader = _Reader(path)
    fields = _Fields(path, reader)
  except Exception as error:  # The reader raises whatever it meets.
    raise types.InputError(
      f'{path}: truncated, damaged or no GGUF file ({error})'
    ) from error
  config = _hf_config(fields, reader)
  _check_tensors(path, config, reader.tensors)
  return GgufModel(
    hf_config=config,
    tokenizer=_tokenizer(fields, config['vocab_size']),
    tensors=_tensors(path, config, reader.tensors),
  )


class _Reader(gguf.GGUFReader):
  """GGUFReader that stops at the file's end.

  The base class reads past it without an error, so that a wrong length in a
  damaged file keeps it busy for ever.
  """

  def _get(self, offset, dtype, count=1, override_order=None):
    end = int(offset) + np.dtype(dtype).itemsize * int(count)
    if end > len(self.data):
      raise ValueError(f'{end} bytes expected, {len(self.data)} there')
    return super()._get(offset, dtype, count, override_order)


class _Fields:
  """The file's metadata; a missing or mistyped key is an InputError."""

  def __init__(self, path: pathlib.Path, reader: gguf.GGUFReader):
    self._path = path
    self._values = {k: f.contents() for k, f in reader.fields.items()}

  def fail(self, key: str, reason: str) -> types.InputError:
    return types.InputError(f'{self._path}: {key}: {reason}')

  def required(self, key: str, kind: type) -> Any:
    value = self.optional(key, kind)
    if value is None:
      raise self.fail(key, 'missing')
    return value

  def optional(self, key: str, kind: type) -> Any:
    value = self._values.get(key)
    if value is not None and type(value) is not kind:
      raise self.fail(key, f'{value!r:.40} is no {kind.__name__}')
    return value

  def llama_keys(self) -> list[str]:
    prefix = 'llama.'
    keys = (key for key in self._values if key.startswith(prefix))
    return [key.removeprefix(prefix) for key in keys]


def _hf_config(fields: _Fields, reader: gguf.GGUFReader) -> dict[str, Any]:
  """config.json's fields, from the metadata."""
  architecture = fields.required('general.architecture', str)
  if architecture != 'llama':
    raise fields.fail('general.architecture', f'{architecture!r}, not llama')
  for key in fields.llama_keys():
    if key not in _LLAMA_KEYS:
      raise fields.fail(f'llama.{key}', 'not supported')

  def integer(key: str) -> int:
    value = fields.required(f'llama.{key}', int)
    if value <= 0:
      raise fields.fail(f'llama.{key}', f'{value} is not positive')
    return value

  def real(key: str) -> float:
    # Shortest text of a float32: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(fields.required(f'llama.{key}', float))))

  width = integer('embedding_length')
  num_heads = integer('attention.head_count')
  head_size = fields.optional('llama.attention.key_length', int)
  head_size = head_size or width // num_heads
  if head_size < 2 or head_size % 2:
    raise fields.fail('llama.attention.key_length', f'{head_size} is not even')
  num_layers = integer('block_count')
  if num_layers > len(reader.tensors):
    raise fields.fail('llama.block_count', f'{num_layers}, more than tensors')
  for key in ('attention.value_length', 'rope.dimension_count'):
    value = fields.optional(f'llama.{key}', int)
    if value not in (None, head_size):
      raise fields.fail(f'llama.{key}', f'{value}, not the head size')
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'attention_bias': False,
    'bos_token_id': fields.optional('tokenizer.ggml.bos_token_id', int),
    'eos_token_id': fields.optional('tokenizer.ggml.eos_token_id', int),
    'pad_token_id': fields.optional('tokenizer.ggml.padding_token_id', int),
    'head_dim': head_size,
    'hidden_act': 'silu',
    'hidden_size': width,
    'intermediate_size': integer('feed_forward_length'),
    'max_position_embeddings': integer('context_length'),
    'mlp_bias': False,
    'num_attention_heads': num_heads,
    'num_hidden_layers': num_layers,
    'num_key_value_heads': integer('attention.head_count_kv'),
    'rms_norm_eps': real('attention.layer_norm_rms_epsilon'),
    'rope_scaling': None,
    'rope_theta': real('rope.freq_base'),
    'tie_word_embeddings': all(
      t.name != 'output.weight' for t in reader.tensors
    ),
    'torch_dtype': 'float32',
    'vocab_size': integer('vocab_size'),
  }


def _tokenizer(fields: _Fields, vocab_size: int) -> GgufTokenizer:
  """The tokenizer's tables, from the metadata."""
  prefix = 'tokenizer.ggml.'
  tokens = fields.required(f'{prefix}tokens', list)
  if len(tokens) != vocab_size:
    raise fields.fail(
      f'{prefix}tokens', f'{len(tokens)} tokens, {vocab_size} embeddings'
    )
  kinds = fields.required(f'{prefix}token_type', list)
  if len(kinds) != vocab_size:
    raise fields.fail(f'{prefix}token_type', f'{len(kinds)}, not {vocab_size}')
  merges = fields.optional(f'{prefix}merges', list) or ()
  for key, texts in (('tokens', tokens), ('merges', merges)):
    if not all(isinstance(text, str) for text in texts):
      raise fields.fail(f'{prefix}{key}', 'are no texts')

  def token(name: str) -> int | None:
    value = fields.optional(f'{prefix}{name}_token_id', int)
    if value is not None and not 0 <= value < vocab_size:
      raise fields.fail(
        f'{prefix}{name}_token_id', f'there is no token {value}'
      )
    return value

  return GgufTokenizer(
    model=fields.required(f'{prefix}model', str),
    pre=fields.optional(f'{prefix}pre', str) or '',
    tokens=tuple(tokens),
    control_ids=tuple(
      i for i, kind in enumerate(kinds) if kind == _CONTROL_TOKEN
    ),
    merges=tuple(merges),
    bos_id=token('bos'),
    eos_id=token('eos'),
    unk_id=token('unknown'),
    pad_id=token('padding'),
    chat_template=fields.optional('tokenizer.chat_template', str),
  )


def _expected_tensors(
  config: dict[str, Any],
) -> dict[str, tuple[str, tuple[int, ...]]]:
  """GGUF's name of every tensor, with Hugging Face's name and shape."""
  width, hidden = config['hidden_size'], config['intermediate_size']
  vocab_size, head_size = config['vocab_size'], config['head_dim']
  queries = config['num_attention_heads'] * head_size
  keys = config['num_key_value_heads'] * head_size
  shapes = {
    'attn_norm': (width,),
    'attn_q': (queries, width),
    'attn_k': (keys, width),
    'attn_v': (keys, width),
    'attn_output': (width, queries),
    'ffn_norm': (width,),
    'ffn_gate': (hidden, width),
    'ffn_up': (hidden, width),
    'ffn_down': (width, hidden),
  }
  expected = {
    'token_embd.weight': ('model.embed_tokens.weight', (vocab_size, width)),
    'output_norm.weight': ('model.norm.weight', (width,)),
  }
  if not config['tie_word_embeddings']:
    expected['output.weight'] = ('lm_head.weight', (vocab_size, width))
  for layer in range(config['num_hidden_layers']):
    for name, hf_name in _LAYER_TENSORS.items():
      expected[f'blk.{layer}.{name}.weight'] = (
        f'model.layers.{layer}.{hf_name}.weight',
        shapes[name],
      )
  return expected


def _check_tensors(
  path: pathlib.Path,
  config: dict[str, Any],
  tensors: list[gguf.ReaderTensor],
) -> None:
  """Compares the file's tensors with those that the config gives."""
  expected = _expected_tensors(config)
  shapes = {t.name: tuple(int(n) for n in t.shape[::-1]) for t in tensors}
  for name in expected.keys() - shapes.keys():
    raise types.InputError(f'{path}: {name}: missing')
  for name, shape in shapes.items():
    if name not in expected:
      raise types.InputError(f'{path}: {name}: not supported')
    if shape != expected[name][1]:
      raise types.InputError(
        f'{path}: {name}: shape {list(shape)}, but the metadata gives'
        f' {list(expected[name][1])}'
      )


def _tensors(
  path: pathlib.Path, config: dict[str, Any], tensors: list[gguf.ReaderTensor]
) -> Iterator[tuple[str, np.ndarray]]:
  """Dequantises the tensors, one at a time."""
  expected = _expected_tensors(config)
  num_heads = {
    'attn_q': config['num_attention_heads'],
    'attn_k': config['num_key_value_heads'],
  }
  for tensor in tensors:
    hf_name, shape = expected[tensor.name]
    try:
      array = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise types.InputError(f'{path}: {tensor.name}: {error}') from error
    array = np.array(array, np.float32).reshape(shape)
    kind = tensor.name.split('.')[-2]
    if kind in num_heads:
      array = half_split_rows(array, num_heads[kind])
    yield hf_name, array


def half_split_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows of q_proj or k_proj from GGUF's order into Hugging Face's.

  Args:
    weight: [num_heads * H, D], the two halves of each head interleaved.
    num_heads: N for q_proj, K for k_proj.

  Returns:
    [num_heads * H, D], the halves of each head one after the other.
  """
  heads = weight.reshape(num_heads, -1, 2, weight.shape[-1])
  return heads.swapaxes(1, 2).reshape(weight.shape)
