"""The tokenizer: prompts and targets as token ids, and back.

In: text. Out: numpy int32 ids. A prompt is the user's turn, rendered by the
model's chat template; a target is plain text after it. The two are tokenised
apart, so that training sees the very prompt ids that sampling starts from.

Judged text may hold anything, "</s>" or "<|eot_id|>" too, and it must stay
text. So all text goes through a twin of the tokenizer, in which a special token
is recognised only with a mark before it, and only the template's get the mark:

  content           good </s>
  rendered          <s>[INST] good </s> [/INST]
  marked            #<s>[INST] good </s> [/INST]      (# is the mark)
  tokens            <s> [INST] good < / s > [/INST]

The twin differs from the tokenizer in nothing else, so benign text gives the
same ids. Axis: l tokens.
"""

from collections.abc import Sequence
import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from typing import Any

import numpy as np
import tokenizers
import transformers

from tract_jax import types

# A noncharacter of Unicode: never part of text that is interchanged.
_MARK = '\ufdd0'
# Llama's templates write a day into the prompt: today's, if not this argument.
# A run that is continued tomorrow must render the same prompts.
DATE_STRING = '26 Jul 2024'
_FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'vocab.txt')


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A fast tokenizer of transformers, as this project uses it.

  Attributes:
    hf: the wrapped tokenizer; never changed.
    system_prompt: stands in the system turn of every prompt or, where the model
      has none, before the user's text with a blank line between; "" for none.
  """

  hf: transformers.PreTrainedTokenizerFast
  system_prompt: str = ''

  def prompt_ids(self, prompt: str) -> np.ndarray:
    """Token ids of the user's turn, up to where the judge begins to write.

    The model's chat template is rendered round the prompt, with the words that
    open the assistant's turn. There is one start token if the model has one:
    the template's, or else the one that the tokenizer itself puts before text.
    Without a template: the start token and the text.

    Args:
      prompt: the whole formatted prompt x.

    Returns:
      [l] int32.

    Raises:
      types.InputError: a template that fails, or a prompt that holds U+FDD0,
        half a surrogate pair or a special token that cannot be written as text.
    """
    system, prompt = self.turns(prompt)
    for text in (system, prompt):
      _check_text(text)
    if self.hf.chat_template:
      turns = [_turn('system', system)] if system else []
      turns = [
        _turn(
          turn['role'],
          self._special_text.sub(lambda m: _MARK + m[0], turn['content']),
        )
        for turn in [*turns, _turn('user', prompt)]
      ]
      rendered = self._render(turns, True)
      # Now the content's special strings have the mark and the template's do
      # not; the twin wants it the other way round.
      text = self._special_text.sub(_toggle_mark, rendered)
      start_wanted = self._adds_start
    else:
      text, start_wanted = prompt, True
    ids = self._ids(self._twin.encode(text, add_special_tokens=False))
    start = self.hf.bos_token_id
    if start_wanted and start is not None and ids[:1].tolist() != [start]:
      ids = np.concatenate([np.asarray([start], np.int32), ids])
    return ids

  def turns(self, prompt: str) -> tuple[str, str]:
    """Texts of the system turn, "" where there is none, and the user's turn."""
    if self.system_prompt and not self.has_system_turn:
      return '', f'{self.system_prompt}\n\n{prompt}'
    return self.system_prompt, prompt

  def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of plain text, without special tokens.

    Args:
      text: any text; a special token's string in it stays text.

    Returns:
      ids [l] int32, and offsets [l, 2] int32: the first and the last-plus-one
      character of each token.

    Raises:
      types.InputError: text that holds U+FDD0, half a surrogate pair or a
        special token that cannot be written as text.
    """
    _check_text(text)
    encoding = self._twin.encode(text, add_special_tokens=False)
    offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    return self._ids(encoding), offsets

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of token ids; special tokens are written out."""
    text: Any = self.hf.decode(
      np.asarray(ids, np.int64).tolist(),
      skip_special_tokens=False,
      clean_up_tokenization_spaces=False,
    )
    return text

  @functools.cached_property
  def has_system_turn(self) -> bool:
    """Whether the chat template writes a system turn, once and as it is."""
    if not self.hf.chat_template:
      return False
    system = 'tract-system'
    turns = [_turn('system', system), _turn('user', 'tract-question')]
    try:
      return self._render(turns, True).count(system) == 1
    except types.InputError:
      return False

  @functools.cached_property
  def eos_id(self) -> int:
    """The token that ends the judge's text.

    With a chat template, the first special token that the template writes after
    an assistant's turn: a tokenizer's own end token is for some chat models
    the end of a document, which they never write at the end of a turn. Without
    a template, or where it closes the turn in words, the tokenizer's own.

    Raises:
      types.InputError: there is neither.
    """
    if self.hf.chat_template:
      answer = 'tract-answer'
      rendered = self._render(
        [_turn('user', 'question'), _turn('assistant', answer)], False
      )
      end = self._special_text.search(rendered.rpartition(answer)[2])
      if end:
        return next(i for i, t in self._special.items() if t.content == end[0])
    if self.hf.eos_token_id is None:
      raise types.InputError(
        f'{self._name}: has no end token, neither '
        'after the chat template\'s assistant turn nor as "eos_token"'
      )
    return int(self.hf.eos_token_id)

  @property
  def pad_id(self) -> int:
    """A filler for positions that masks hide; never read as a sign of an end.

    The tokenizer's padding token, else its unknown token, else the end token.
    """
    for token_id in (self.hf.pad_token_id, self.hf.unk_token_id):
      if token_id is not None:
        return int(token_id)
    return self.eos_id

  @property
  def vocab_size(self) -> int:
    """Number of tokens, added ones included; a model may have more rows."""
    return len(self.hf)

  def save(self, folder: pathlib.Path) -> None:
    """Writes its files as transformers reads them, version 4 too.

    Args:
      folder: that they are written into. Of several chat templates it gets the
        default one, by which prompts are rendered.
    """
    hf = copy.copy(self.hf)
    if isinstance(hf.chat_template, dict):
      hf.chat_template = hf.chat_template.get('default')
    hf.save_pretrained(folder)
    path = folder / 'tokenizer_config.json'
    fields = json.loads(path.read_text(encoding='utf-8'))
    # Names of version 5; either version reads these.
    if fields.get('tokenizer_class') == 'TokenizersBackend':
      fields['tokenizer_class'] = 'PreTrainedTokenizerFast'
    if isinstance(fields.get('extra_special_tokens'), list):
      fields['additional_special_tokens'] = fields.pop('extra_special_tokens')
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    path.write_text(text + '\n', encoding='utf-8')

  def digest(self) -> str:
    """sha256 over vocabulary, rules and template, as 64 hex digits.

    The system prompt is in it, too, where there is one.
    """
    backend = json.loads(self.hf.backend_tokenizer.to_str())
    # transformers sets these two with every call.
    backend['padding'] = backend['truncation'] = None
    parts = [backend, self.hf.chat_template]
    if self.system_prompt:
      parts.append(self.system_prompt)
    content = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()

  @property
  def _name(self) -> str:
    return self.hf.name_or_path or 'tokenizer'

  @functools.cached_property
  def _special(self) -> dict[int, tokenizers.AddedToken]:
    added = self.hf.added_tokens_decoder
    return {i: token for i, token in added.items() if token.special}

  @functools.cached_property
  def _special_text(self) -> re.Pattern:
    """Matches a special token's string, with the mark where it has one."""
    texts = sorted((t.content for t in self._special.values()), key=len)
    longest_first = '|'.join(re.escape(text) for text in reversed(texts))
    return re.compile(f'{_MARK}?(?:{longest_first})' if texts else '(?!)')

  @functools.cached_property
  def _twin(self) -> tokenizers.Tokenizer:
    """The tokenizer in which special tokens need the mark."""
    twin = tokenizers.Tokenizer.from_str(self.hf.backend_tokenizer.to_str())
    twin.no_padding()
    twin.no_truncation()
    # Special tokens are now text; the marked ones are recognised all the same,
    # for they are added as ordinary ones.
    twin.encode_special_tokens = True
    twin.add_tokens(
      [
        tokenizers.AddedToken(
          _MARK + token.content,
          single_word=token.single_word,
          lstrip=token.lstrip,
          rstrip=token.rstrip,
          normalized=token.normalized,
          special=False,
        )
        for token in self._special.values()
      ]
    )
    return twin

  @functools.cached_property
  def _twin_to_own(self) -> np.ndarray:
    """[twin's vocabulary] our id of each of the twin's."""
    # Ids may have gaps, so the vocabulary's size does not bound them.
    largest = max(self._twin.get_vocab().values(), default=-1)
    own = np.arange(largest + 1, dtype=np.int32)
    for token_id, token in self._special.items():
      own[self._twin.token_to_id(_MARK + token.content)] = token_id
    return own

  def _ids(self, encoding: tokenizers.Encoding) -> np.ndarray:
    ids = np.asarray(encoding.ids, np.int64)
    # A vocabulary of whole words can hold "</s>" as a word. (The unknown token
    # is special, too, and stands for text.)
    unmarked = np.isin(ids, list(self._special.keys() - {self.hf.unk_token_id}))
    if unmarked.any():
      text = self._special[int(ids[unmarked][0])].content
      raise types.InputError(
        f'text with {text!r} in it, which {self._name} can only write as the '
        'special token, not as text'
      )
    return self._twin_to_own[ids]

  @functools.cached_property
  def _adds_start(self) -> bool:
    start = self.hf.bos_token_id
    return start is not None and self.hf('a')['input_ids'][:1] == [start]

  @property
  def names_date(self) -> bool:
    """Whether its chat template writes a day, which is always `DATE_STRING`."""
    return 'date_string' in str(self.hf.chat_template)

  def _render(self, turns: list[dict[str, str]], opens_answer: bool) -> str:
    """The chat template's text."""
    template = str(self.hf.chat_template)
    if 'strftime_now' in template and not self.names_date:
      raise types.InputError(
        f'{self._name}: its chat template writes the current date, so prompts '
        'would change overnight; put a fixed date in place of strftime_now'
      )
    try:
      text: Any = self.hf.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=opens_answer,
        date_string=DATE_STRING,
      )
    except Exception as error:  # A template is a program: it may raise any.
      roles = ', '.join(turn['role'] for turn in turns)
      raise types.InputError(
        f'{self._name}: its chat template fails on '
        f'turns of {roles}: {_first_line(error)}'
      ) from error
    return text


def has_tokenizer(folder: pathlib.Path) -> bool:
  """Whether any of a tokenizer's files lies in a folder."""
  return any((folder / name).is_file() for name in _FILES)


def load_tokenizer(path: str) -> Tokenizer:
  """Loads the tokenizer of a Hugging Face folder.

  Args:
    path: a local folder. No code in it is run.

  Returns:
    The tokenizer.

  Raises:
    types.InputError: no such folder, none of a tokenizer's files in it, files
      that cannot be read, or a tokenizer that has no fast version.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise types.InputError(
      f'{path}: no such folder; it has to hold a tokenizer'
    )
  if not has_tokenizer(folder):
    raise types.InputError(
      f'{path}: holds no tokenizer, none of {", ".join(_FILES)}'
    )
  try:
    hf: Any = transformers.AutoTokenizer.from_pretrained(
      str(folder),
      use_fast=True,
      local_files_only=True,
      trust_remote_code=False,
      # Else a tekken.json beside tokenizer.json wins, where its library is.
      mistral_format=False,
    )
  except Exception as error:  # A broken file raises whatever its reader does.
    raise types.InputError(
      f'{path}: the tokenizer cannot be loaded: {_first_line(error)}'
    ) from error
  if not isinstance(hf, transformers.PreTrainedTokenizerFast):
    raise types.InputError(
      f'{path}: {type(hf).__name__} is not a fast tokenizer; save one with '
      'tokenizer.json'
    )
  return Tokenizer(hf)


def _turn(role: str, content: str) -> dict[str, str]:
  return {'role': role, 'content': content}


def _toggle_mark(match: re.Match) -> str:
  text = match[0]
  return text[1:] if text.startswith(_MARK) else _MARK + text


def _check_text(text: str) -> None:
  """Refuses what cannot be tokens."""
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise types.InputError(
      f'text with half a surrogate pair at character {error.start}'
    ) from error
  if _MARK in text:
    raise types.InputError(
      f'text with the noncharacter U+FDD0 at character {text.index(_MARK)}: '
      'it marks special tokens here and may not be part of a text'
    )


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
