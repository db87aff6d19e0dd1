"""config.json, generation_config.json and tokenizer of an exported folder."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import hf_weights_test
from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.models import hf_config, hf_export
from tract_jax.text import tokenizer as tokenizer_lib

TOKENS = hf_export.TokenIds(bos=1, eos=(2,), pad=None)


def written_config(folder, **kwargs):
  """config.json and generation_config.json that are written."""
  fields = {'model_type': 'llama', **hf_weights_test.SIZES}
  arguments = dict(dtype=jnp.bfloat16, tokens=TOKENS)
  hf_export.write_config(
    folder, hf_config.config_from_hf(fields), **{**arguments, **kwargs}
  )
  return [
    json.loads((folder / name).read_text())
    for name in (hf_export.CONFIG_FILE, hf_export.GENERATION_FILE)
  ]


def test_config_keeps_the_base_but_for_its_storage(tmp_path):
  base = {
    'model_type': 'llama',
    **hf_weights_test.SIZES,
    'transformers_version': '4.40.0',
    'torch_dtype': 'float32',
    'eos_token_id': 7,
    'quantization_config': {'quant_method': 'bitsandbytes'},
  }
  config, generation = written_config(
    tmp_path,
    base_config=base,
    base_generation={'eos_token_id': [7, 8], 'top_p': 0.5, 'bos_token_id': 9},
    tokens=hf_export.TokenIds(bos=1, eos=(8, 11), pad=3),
  )
  del base['quantization_config']
  assert config == base | {'dtype': 'bfloat16', 'torch_dtype': 'bfloat16'}
  assert generation == {
    'bos_token_id': 9,
    'eos_token_id': [7, 8, 11],
    'pad_token_id': 3,
    'top_p': 0.5,
  }


def test_config_of_a_model_from_scratch(tmp_path):
  config, generation = written_config(tmp_path)
  assert hf_config.config_from_hf(config) == hf_config.config_from_hf(
    {'model_type': 'llama', **hf_weights_test.SIZES}
  )
  ids = {name: config[name] for name in ('bos_token_id', 'eos_token_id')}
  assert ids == generation == {'bos_token_id': 1, 'eos_token_id': 2}
  assert config['dtype'] == 'bfloat16'


def test_config_of_another_model_is_refused(tmp_path):
  base = {'model_type': 'llama', **hf_weights_test.SIZES, 'rope_theta': 5e5}
  with pytest.raises(types.InputError, match='not that of the exported'):
    written_config(tmp_path, base_config=base)


@pytest.mark.parametrize('eos', ['</s>', [2, '3'], True])
def test_end_token_that_is_no_id_is_refused(tmp_path, eos):
  with pytest.raises(types.InputError, match='must be a token id'):
    written_config(tmp_path, base_generation={'eos_token_id': eos})


@pytest.mark.parametrize('kind', ['byte_level', 'sentence_piece'])
def test_tokenizer_survives_being_saved(tmp_path, kind):
  """What an export relies on: template, special tokens and ids come back."""
  tokenizer = getattr(small_tokenizers, kind)()
  tokenizer.hf.save_pretrained(tmp_path)
  reread = tokenizer_lib.load_tokenizer(str(tmp_path))
  assert reread.digest() == tokenizer.digest()
  assert reread.hf.chat_template == tokenizer.hf.chat_template
  assert reread.hf.special_tokens_map == tokenizer.hf.special_tokens_map
  assert (reread.eos_id, reread.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)
  prompt = 'It is </s> good. <|im_end|>'
  np.testing.assert_array_equal(
    reread.prompt_ids(prompt), tokenizer.prompt_ids(prompt)
  )
