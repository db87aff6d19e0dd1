"""Tests of reading GGUF files."""

import gguf
import numpy as np
import pytest

from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import gguf_weights
from tract_jax.models import hf_config as hf_config_lib

WIDTH, HIDDEN, NUM_HEADS, NUM_KV_HEADS, HEAD, LAYERS = 32, 64, 4, 2, 8, 2
TOKENS = [chr(code) for code in range(33, 97)]
VOCAB_SIZE = len(TOKENS)
QUANTISED = gguf.GGMLQuantizationType.Q4_1
TENSORS = {
  'self_attn.q_proj': ('attn_q', (NUM_HEADS * HEAD, WIDTH)),
  'self_attn.k_proj': ('attn_k', (NUM_KV_HEADS * HEAD, WIDTH)),
  'self_attn.v_proj': ('attn_v', (NUM_KV_HEADS * HEAD, WIDTH)),
  'self_attn.o_proj': ('attn_output', (WIDTH, NUM_HEADS * HEAD)),
  'mlp.gate_proj': ('ffn_gate', (HIDDEN, WIDTH)),
  'mlp.up_proj': ('ffn_up', (HIDDEN, WIDTH)),
  'mlp.down_proj': ('ffn_down', (WIDTH, HIDDEN)),
  'input_layernorm': ('attn_norm', (WIDTH,)),
  'post_attention_layernorm': ('ffn_norm', (WIDTH,)),
}


def random_tensors(vocab_size=VOCAB_SIZE, tied=True):
  """{GGUF's name: (Hugging Face's name, array in Hugging Face's layout)}."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  tensors = {
    'token_embd.weight': (
      'model.embed_tokens.weight',
      normal(vocab_size, WIDTH),
    ),
    'output_norm.weight': ('model.norm.weight', normal(WIDTH)),
  }
  for layer in range(LAYERS):
    for hf_name, (name, shape) in TENSORS.items():
      tensors[f'blk.{layer}.{name}.weight'] = (
        f'model.layers.{layer}.{hf_name}.weight',
        normal(*shape),
      )
  if not tied:
    tensors['output.weight'] = ('lm_head.weight', normal(vocab_size, WIDTH))
  return tensors


def interleaved(name, array):
  """Row i of each half of a head goes to rows 2 i and 2 i + 1."""
  if 'attn_q' not in name and 'attn_k' not in name:
    return array
  rows = []
  for start in range(0, len(array), HEAD):
    for i in range(HEAD // 2):
      rows += [array[start + i], array[start + HEAD // 2 + i]]
  return np.stack(rows)


def write_gguf(
  path,
  tensors,
  *,
  tokens=TOKENS,
  vocab_size=None,
  merges=(),
  special=(),
  architecture='llama',
  changes=None,
  quantised=None,
):
  """Writes a small file; `changes` adds metadata of the architecture."""
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_name('tiny')
  writer.add_block_count(LAYERS)
  writer.add_context_length(128)
  writer.add_embedding_length(WIDTH)
  writer.add_feed_forward_length(HIDDEN)
  writer.add_head_count(NUM_HEADS)
  writer.add_head_count_kv(NUM_KV_HEADS)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_rope_freq_base(12345.0)
  writer.add_rope_dimension_count(HEAD)
  writer.add_vocab_size(vocab_size or len(tokens))
  for key, value in (changes or {}).items():
    writer.add_string(f'{architecture}.{key}', value)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  writer.add_token_list(tokens)
  writer.add_token_types([3 if t in special else 1 for t in tokens])
  if merges:
    writer.add_token_merges(merges)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_unk_token_id(0)
  writer.add_pad_token_id(2)
  writer.add_chat_template('{{ messages[0].content }}')
  for name, (_, array) in tensors.items():
    array = interleaved(name, array)
    if quantised and array.ndim == 2:
      data = gguf.quantize(array, quantised)
      writer.add_tensor(name, data, raw_dtype=quantised)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize('tied', [True, False])
def test_float_tensors_come_back_as_they_were(tmp_path, tied):
  tensors = random_tensors(tied=tied)
  model = gguf_weights.read_gguf(write_gguf(tmp_path / 'm.gguf', tensors))
  read = dict(model.tensors)
  expected = dict(tensors.values())
  assert read.keys() == expected.keys()
  for name, array in expected.items():
    assert read[name].dtype == np.float32
    np.testing.assert_array_equal(read[name], array, err_msg=name)
  assert model.hf_config['tie_word_embeddings'] == tied


def test_half_split_rows_by_hand():
  weight = np.array([[0], [3], [1], [4], [2], [5]] * 2, np.float32)
  rows = gguf_weights.half_split_rows(weight, num_heads=2)
  assert rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5] * 2


def test_config_holds_the_metadata(tmp_path):
  path = write_gguf(tmp_path / 'm.gguf', random_tensors())
  config = gguf_weights.read_gguf(path).hf_config
  assert config['rms_norm_eps'] == 1e-5
  assert hf_config_lib.config_from_hf(config) == config_lib.ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=WIDTH,
    intermediate_size=HIDDEN,
    num_layers=LAYERS,
    num_heads=NUM_HEADS,
    num_kv_heads=NUM_KV_HEADS,
    head_dim=HEAD,
    max_position_embeddings=128,
    norm_eps=1e-5,
    rope_theta=12345.0,
    tie_word_embeddings=True,
  )


def test_tokenizer_tables(tmp_path):
  path = write_gguf(
    tmp_path / 'm.gguf', random_tensors(), merges=['a b'], special=TOKENS[1:3]
  )
  assert gguf_weights.read_gguf(path).tokenizer == gguf_weights.GgufTokenizer(
    model='gpt2',
    pre='smollm',
    tokens=tuple(TOKENS),
    control_ids=(1, 2),
    merges=('a b',),
    bos_id=1,
    eos_id=2,
    unk_id=0,
    pad_id=2,
    chat_template='{{ messages[0].content }}',
  )


@pytest.mark.parametrize('quantised', [None, QUANTISED])
@pytest.mark.parametrize('tied', [True, False])
def test_weights_and_config_are_those_of_transformers(
  tmp_path, quantised, tied
):
  torch = pytest.importorskip('torch')
  import transformers

  tensors = random_tensors(tied=tied)
  write_gguf(tmp_path / 'm.gguf', tensors, quantised=quantised)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='m.gguf', dtype=torch.float32
  )
  model = gguf_weights.read_gguf(tmp_path / 'm.gguf')
  state = theirs.state_dict()
  if tied:
    del state['lm_head.weight']
  read = dict(model.tensors)
  assert read.keys() == state.keys()
  for name, array in read.items():
    np.testing.assert_array_equal(array, state[name].numpy(), err_msg=name)
  assert theirs.config.tie_word_embeddings == tied
  assert theirs.config.rope_parameters['rope_theta'] == 12345.0


def gguf_error(path):
  with pytest.raises(types.InputError) as caught:
    gguf_weights.read_gguf(path)
  (line,) = str(caught.value).splitlines()
  return line


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'not a gguf file at all',
    b'version https://git-lfs.github.com/spec/v1\nsize 5\n',
    # Magic, version, no tensors, 2**40 keys.
    b'GGUF' + np.array([3, 0, 0, 0, 256], '<u4').tobytes(),
    # One key "a", of 2**40 bytes in an array.
    b'GGUF'
    + np.array([3], '<u4').tobytes()
    + np.array([0, 1, 1], '<u8').tobytes()
    + b'a'
    + np.array([9, 0], '<u4').tobytes()
    + np.array([2**40], '<u8').tobytes(),
  ],
)
def test_file_that_is_no_gguf(tmp_path, content):
  path = tmp_path / 'm.gguf'
  path.write_bytes(content)
  assert f'{path}: truncated, damaged or no GGUF' in gguf_error(path)


@pytest.mark.parametrize('kept', [0.01, 0.5, 0.999])
def test_truncated_file(tmp_path, kept):
  path = write_gguf(tmp_path / 'm.gguf', random_tensors())
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * kept)])
  assert 'truncated' in gguf_error(path)


def test_missing_file(tmp_path):
  assert 'no such file' in gguf_error(tmp_path / 'm.gguf')


def test_another_architecture(tmp_path):
  path = write_gguf(tmp_path / 'm.gguf', {}, architecture='qwen2')
  assert "general.architecture: 'qwen2', not llama" in gguf_error(path)


def test_metadata_that_would_change_the_model(tmp_path):
  path = write_gguf(
    tmp_path / 'm.gguf',
    random_tensors(),
    changes={'rope.scaling.type': 'yarn'},
  )
  assert 'llama.rope.scaling.type: not supported' in gguf_error(path)


def test_missing_unknown_and_misshaped_tensors(tmp_path):
  path = tmp_path / 'm.gguf'

  def error(change):
    tensors = random_tensors()
    change(tensors)
    return gguf_error(write_gguf(path, tensors))

  name = 'blk.1.ffn_up.weight'
  assert f'{name}: missing' in error(lambda tensors: tensors.pop(name))
  extra = ('', np.zeros(32, np.float32))
  assert 'rope_freqs.weight: not supported' in error(
    lambda tensors: tensors.update({'rope_freqs.weight': extra})
  )
  misshaped = ('', np.zeros((WIDTH, HIDDEN), np.float32))
  assert f'{name}: shape [32, 64], but the metadata gives [64, 32]' in error(
    lambda tensors: tensors.update({name: misshaped})
  )


@pytest.mark.parametrize(
  ('old', 'new', 'said'),
  [
    ('llama.block_count', (4, 2**32 - 1), 'more than tensors'),
    ('llama.attention.head_count', (4, 32), '1 is not even'),
    ('tokenizer.ggml.bos_token_id', (4, VOCAB_SIZE), 'there is no token 64'),
  ],
)
def test_number_that_nothing_could_be_made_of(tmp_path, old, new, said):
  path = write_gguf(tmp_path / 'm.gguf', random_tensors())
  content = bytearray(path.read_bytes())
  # The key, the type (4 bytes, UINT32), the number.
  place = content.index(old.encode()) + len(old) + 4
  size, value = new
  content[place : place + size] = value.to_bytes(size, 'little')
  path.write_bytes(content)
  with pytest.raises(types.InputError) as error:
    gguf_weights.read_gguf(path)
  assert said in str(error.value)


def test_fewer_tokens_than_embeddings(tmp_path):
  path = write_gguf(
    tmp_path / 'm.gguf',
    random_tensors(),
    tokens=TOKENS[:-1],
    vocab_size=VOCAB_SIZE,
  )
  assert 'tokens: 63 tokens, 64 embeddings' in gguf_error(path)
