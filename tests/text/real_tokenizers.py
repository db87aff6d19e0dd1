"""Tokenizers of Mistral 7B Instruct v0.2 and Llama 3 Instruct.

Their tables lie in the packages mistral-common and llama-models, which the
tests read them from; nothing of the packages is imported. A test is skipped
where they are not installed (requirements/tokenizers.txt).
"""

import base64
import functools
import importlib
import importlib.util
import pathlib

import pytest
from tokenizers import (
  AddedToken,
  decoders,
  models,
  normalizers,
  processors,
  Tokenizer,
)
import transformers

from tract_jax.text import tokenizer as tokenizer_lib

# Written for the tests, with the turns that the models' own templates write.
_MISTRAL = (
  '{{ bos_token }}{% for m in messages %}'
  "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
  "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA = (
  '{{ bos_token }}{% for m in messages %}'
  "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
  "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
  '{% if add_generation_prompt %}'
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA_SPECIAL = (
  '<|begin_of_text|>',
  '<|end_of_text|>',
  *(f'<|reserved_special_token_{i}|>' for i in range(4)),
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|reserved_special_token_4|>',
  '<|eot_id|>',
)


def _file(package: str, *parts: str) -> pathlib.Path:
  """A file in an installed package, or a skipped test."""
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    pytest.skip(f"could not import '{package}': its tables are not here")
  return pathlib.Path(spec.submodule_search_locations[0], *parts)


def _save(folder, backend, template, **special) -> tokenizer_lib.Tokenizer:
  """Writes tokenizer.json and reads it as any model's."""
  hf = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
  hf.chat_template = template
  hf.save_pretrained(folder)
  return tokenizer_lib.load_tokenizer(str(folder))


def mistral(folder: pathlib.Path) -> tokenizer_lib.Tokenizer:
  """The tokenizer of Mistral 7B Instruct v0.1 and v0.2, through a folder."""
  path = _file('mistral_common', 'data', 'tokenizer.model.v1')
  slow = importlib.import_module('transformers.convert_slow_tokenizer')
  base = importlib.import_module('transformers.tokenization_utils_base')
  proto = slow.import_protobuf().ModelProto()
  proto.ParseFromString(path.read_bytes())
  vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  scores = {piece.piece: piece.score for piece in proto.pieces}
  backend = Tokenizer(
    models.BPE(
      vocab,
      base.generate_merges(vocab, scores),
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  special = ['<unk>', '<s>', '</s>']
  backend.add_special_tokens(
    [AddedToken(text, special=True, normalized=False) for text in special]
  )
  backend.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  names = zip(('unk_token', 'bos_token', 'eos_token'), special, strict=True)
  return _save(folder, backend, _MISTRAL, **dict(names))


@functools.cache
def _llama_ranks(path: pathlib.Path) -> dict[bytes, int]:
  lines = path.read_bytes().splitlines()
  pairs = (line.split() for line in lines)
  return {base64.b64decode(token): int(rank) for token, rank in pairs}


def llama3(folder: pathlib.Path) -> tokenizer_lib.Tokenizer:
  """The tokenizer of Llama 3 Instruct, through a folder."""
  path = _file('llama_models', 'llama3', 'tokenizer.model')
  slow = importlib.import_module('transformers.convert_slow_tokenizer')

  class Converter(slow.TikTokenConverter):
    """Reads the file itself, which tiktoken would do."""

    load_tiktoken_bpe = staticmethod(_llama_ranks)

  converter = Converter(path, extra_special_tokens=_LLAMA_SPECIAL)
  backend = converter.converted()
  start = _LLAMA_SPECIAL[0]
  backend.post_processor = processors.TemplateProcessing(
    single=f'{start} $A',
    special_tokens=[(start, backend.token_to_id(start))],
  )
  return _save(
    folder, backend, _LLAMA, bos_token=start, eos_token='<|end_of_text|>'
  )
