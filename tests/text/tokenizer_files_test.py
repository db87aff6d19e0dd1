"""A tokenizer's files, as they are written, and beside files of others."""

import copy
import json

import pytest
from transformers.integrations.mistral import tokenizer as mistral
from transformers.models.auto import tokenization_auto

from tests.text import small_tokenizers
from tract_jax.text import tokenizer as tokenizer_lib

PROMPT = 'It is good <|x|>.'


@pytest.fixture
def tokenizer():
  """One with special tokens of its own, and two chat templates."""
  hf = copy.deepcopy(small_tokenizers.byte_level().hf)
  hf.add_special_tokens({'extra_special_tokens': ['<|x|>', '<|y|>']})
  hf.chat_template = {'default': hf.chat_template, 'tool_use': 'none'}
  return tokenizer_lib.Tokenizer(hf)


def test_saved_files_give_the_same_tokens_again(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  # Files alone: an export is read file by file.
  assert all(path.is_file() for path in tmp_path.iterdir())
  found = tokenizer_lib.load_tokenizer(str(tmp_path))
  ids = tokenizer.prompt_ids(PROMPT).tolist()
  assert found.prompt_ids(PROMPT).tolist() == ids
  assert found.hf.all_special_tokens == tokenizer.hf.all_special_tokens
  assert isinstance(tokenizer.hf.chat_template, dict)


def test_saved_names_are_those_of_version_4(tokenizer, tmp_path):
  # It knows no TokenizersBackend, and wants a dictionary of what is extra.
  tokenizer.save(tmp_path)
  fields = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert fields['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert fields['additional_special_tokens'] == ['<|x|>', '<|y|>']
  assert 'extra_special_tokens' not in fields


def test_tokenizer_json_is_read_beside_tekken_json(
  tokenizer, tmp_path, monkeypatch
):
  tokenizer.save(tmp_path)
  (tmp_path / 'tekken.json').write_text('{}')
  (tmp_path / 'config.json').write_text('{"model_type": "mistral"}')
  # As where mistral-common is installed.
  names = tokenization_auto.TOKENIZER_MAPPING_NAMES
  monkeypatch.setitem(names, 'mistral', 'MistralCommonBackend')
  monkeypatch.setattr(mistral, 'is_mistral_common_available', lambda: True)
  found = tokenizer_lib.load_tokenizer(str(tmp_path))
  assert len(found.hf) == len(tokenizer.hf)
