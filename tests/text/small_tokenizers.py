"""Small tokenizers of the kinds that judge models have."""

import functools
import string
from typing import Any

from tokenizers import (
  AddedToken,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  Tokenizer,
  trainers,
)
import transformers

from tract_jax.text import tokenizer as tokenizer_lib

TEXT = (
  'It is good. So the overall score is 4 and the answer is clear.',
  'The response is not complete. So the overall score is 2',
  'the user asks the assistant: 10 12 5, "quoted" [INST] question </s>',
)

CHATML = (
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
  '{{ bos_token }}{% for m in messages %}'
  "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
  "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def wrap(
  backend: Tokenizer, template: str | None = None, **special: str
) -> tokenizer_lib.Tokenizer:
  """A backend as the project's tokenizer; special: bos_token, eos_token ..."""
  hf: Any = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, **special
  )
  hf.chat_template = template
  return tokenizer_lib.Tokenizer(hf)


@functools.cache
def byte_level(split_digits: bool = True) -> tokenizer_lib.Tokenizer:
  """Byte-level BPE with ChatML, like SmolLM2 (digits split) or not."""
  backend = Tokenizer(models.BPE())
  digits = [pre_tokenizers.Digits(individual_digits=True)]
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *(digits if split_digits else []),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    TEXT,
    trainers.BpeTrainer(
      vocab_size=340,
      special_tokens=['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  # The end token is a document's, as in some chat models: not the turn's.
  return wrap(
    backend, CHATML, bos_token='<|im_start|>', eos_token='<|endoftext|>'
  )


@functools.cache
def sentence_piece(
  prefix_everywhere: bool = True, template: str | None = INST
) -> tokenizer_lib.Tokenizer:
  """BPE with "▁" for space and [INST] turns, like Mistral's.

  Args:
    prefix_everywhere: "▁" is put before all text between special tokens, or
      before the first text alone.
    template: the chat template.
  """
  special = ['<unk>', '<s>', '</s>']
  vocab = {piece: i for i, piece in enumerate(special)}
  letters = sorted({c for text in TEXT for c in text} - {' '})
  for piece in ['▁', *letters, *'0136789#|_', '▁S', '▁So', 'is', '▁is']:
    vocab.setdefault(piece, len(vocab))
  merges = [('▁', 'S'), ('▁S', 'o'), ('i', 's'), ('▁', 'is')]
  backend = Tokenizer(models.BPE(vocab, merges, unk_token='<unk>'))
  if prefix_everywhere:
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    )
  else:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme='first', split=False
    )
  backend.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  backend.add_special_tokens(
    [AddedToken(text, special=True, normalized=False) for text in special]
  )
  backend.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  return wrap(
    backend, template, bos_token='<s>', eos_token='</s>', unk_token='<unk>'
  )


def word_level(
  words: str, template: str | None = None, **special: str
) -> tokenizer_lib.Tokenizer:
  """Whole words by number: "<unk>" is 0, "<s>" 1, "</s>" 2, then `words`."""
  pieces = ['<unk>', '<s>', '</s>', *words.split()]
  backend = Tokenizer(
    models.WordLevel({piece: i for i, piece in enumerate(pieces)}, '<unk>')
  )
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  special = special or {'bos_token': '<s>', 'eos_token': '</s>'}
  return wrap(backend, template, unk_token='<unk>', **special)


def lowercase_words(words: str) -> tokenizer_lib.Tokenizer:
  """Whole words, for which "A" and "a" are the same."""
  tokenizer = word_level(words)
  tokenizer.hf.backend_tokenizer.normalizer = normalizers.Lowercase()
  return tokenizer


def characters(merges: list[tuple[str, str]]) -> tokenizer_lib.Tokenizer:
  """BPE over single characters without any splitting before it."""
  letters = sorted(set(string.printable))
  vocab = {piece: i for i, piece in enumerate(['</s>', *letters])}
  for left, right in merges:
    vocab.setdefault(left + right, len(vocab))
  return wrap(Tokenizer(models.BPE(vocab, merges)), None, eos_token='</s>')
