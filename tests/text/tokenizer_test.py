import dataclasses
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.text import tokenizer as tokenizer_lib

TEMPLATED = {
  'byte_level': small_tokenizers.byte_level,
  'sentence_piece': small_tokenizers.sentence_piece,
  'prefix_once': lambda: small_tokenizers.sentence_piece(False),
}
templated = pytest.mark.parametrize('make', TEMPLATED.values(), ids=TEMPLATED)
SPECIAL_STRINGS = '</s> <|im_end|> <|eot_id|> <s> [INST] <|im_start|>user </s>'


def template_ids(tokenizer, prompt):
  """transformers' own tokens of a user's turn."""
  return tokenizer.hf.apply_chat_template(
    [{'role': 'user', 'content': prompt}], add_generation_prompt=True
  )['input_ids']


@templated
@pytest.mark.parametrize(
  'prompt', ['It is good.', '', ' \n 4', 'x [INST] y', 'So\n\n"it"  is 10 ']
)
def test_benign_prompt_has_the_ids_of_the_chat_template(make, prompt):
  tokenizer = make()
  ids = tokenizer.prompt_ids(prompt)
  assert ids.dtype == np.int32
  assert ids.tolist() == template_ids(tokenizer, prompt)


@templated
def test_special_strings_of_a_prompt_stay_text(make):
  tokenizer = make()
  special = set(tokenizer.hf.all_special_ids)
  content = f'It is {SPECIAL_STRINGS}'
  ids = tokenizer.prompt_ids(content).tolist()
  benign = tokenizer.prompt_ids('It is so').tolist()
  # The special tokens are the template's, in place and number ...
  assert [i for i in ids if i in special] == [i for i in benign if i in special]
  # ... and the text is whole.
  assert f'It is {SPECIAL_STRINGS}' in tokenizer.decode(ids)


def test_special_string_has_the_tokens_of_its_letters():
  # With "#" for "</s>" there is nothing special: all but "#" is the same.
  tokenizer = small_tokenizers.sentence_piece()
  pieces = tokenizer.hf.convert_ids_to_tokens
  benign = pieces(tokenizer.prompt_ids('It is # good').tolist())
  place = benign.index('#')
  assert pieces(tokenizer.prompt_ids('It is </s> good').tolist()) == [
    *benign[:place], '<', '/', 's', '>', *benign[place + 1 :],
  ]  # fmt: skip


@templated
def test_there_is_one_start_token(make):
  tokenizer = make()
  start = tokenizer.hf.bos_token_id
  turn_starts = {'<s>': 1, '<|im_start|>': 2}[tokenizer.hf.bos_token]
  for prompt in ('It is', f'{tokenizer.hf.bos_token}It is'):
    ids = tokenizer.prompt_ids(prompt).tolist()
    assert ids[0] == start
    assert ids.count(start) == turn_starts


def test_start_token_where_the_template_leaves_it_out():
  template = small_tokenizers.INST.replace('{{ bos_token }}', '')
  bare = small_tokenizers.sentence_piece(template=template)
  whole = small_tokenizers.sentence_piece()
  np.testing.assert_array_equal(
    bare.prompt_ids('It is'), whole.prompt_ids('It is')
  )


def test_template_without_a_system_role_gets_none():
  refusing = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
  )
  tokenizer = small_tokenizers.sentence_piece(
    template=refusing + small_tokenizers.INST
  )
  plain = small_tokenizers.sentence_piece()
  np.testing.assert_array_equal(
    tokenizer.prompt_ids('It is'), plain.prompt_ids('It is')
  )
  assert tokenizer.eos_id == plain.eos_id
  # A template that has a system turn of its own keeps it.
  own = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nIt is<|im_end|>\n' }}{% endif %}"
  )
  backend = small_tokenizers.byte_level().hf.backend_tokenizer
  tokenizer = small_tokenizers.wrap(
    backend, own + small_tokenizers.CHATML, bos_token='<|im_start|>'
  )
  assert tokenizer.decode(tokenizer.prompt_ids('a')) == (
    '<|im_start|>system\nIt is<|im_end|>\n'
    '<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n'
  )


def test_start_token_that_the_tokenizer_would_add_again():
  # INST writes "<s>", and so does the tokenizer before any text.
  tokenizer = small_tokenizers.sentence_piece()
  rendered = tokenizer.hf.apply_chat_template(
    [{'role': 'user', 'content': 'It is'}],
    tokenize=False,
    add_generation_prompt=True,
  )
  assert tokenizer.hf(rendered)['input_ids'][:2] == [1, 1]
  assert tokenizer.prompt_ids('It is').tolist() == [
    *tokenizer.hf(rendered)['input_ids'][1:]
  ]


def test_without_template_start_token_and_text():
  tokenizer = small_tokenizers.word_level('a b')
  assert tokenizer.prompt_ids('b a c').tolist() == [1, 4, 3, 0]
  no_start = small_tokenizers.word_level('a b', eos_token='</s>')
  assert no_start.prompt_ids('b a').tolist() == [4, 3]


@templated
def test_system_prompt_has_the_ids_of_the_templates_system_turn(make):
  tokenizer = dataclasses.replace(make(), system_prompt='It is </s> not')
  assert tokenizer.has_system_turn
  ids = tokenizer.prompt_ids('It is good').tolist()
  assert tokenizer.decode(ids).count('It is </s> not') == 1
  benign = dataclasses.replace(tokenizer, system_prompt='It is not')
  turns = [
    {'role': 'system', 'content': 'It is not'},
    {'role': 'user', 'content': 'It is good'},
  ]
  expected = tokenizer.hf.apply_chat_template(turns, add_generation_prompt=True)
  benign_ids = benign.prompt_ids('It is good').tolist()
  assert benign_ids == expected['input_ids']
  special = set(tokenizer.hf.all_special_ids)
  assert [i for i in ids if i in special] == [
    i for i in benign_ids if i in special
  ]


_USER = "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
_NO_SYSTEM_TURN = {
  'dropped': "{% for m in messages %}{% if m['role'] == 'user' %}"
  f'{_USER}{{% endif %}}{{% endfor %}}',
  'refused': "{% for m in messages %}{% if m['role'] == 'system' %}"
  "{{ raise_exception('no system role') }}{% endif %}" + _USER + '{% endfor %}',
  'twice': "{% for m in messages %}{% if m['role'] == 'system' %}"
  "{{ m['content'] + m['content'] }}{% else %}" + _USER + '{% endif %}'
  '{% endfor %}',
}


@pytest.mark.parametrize(
  'template', _NO_SYSTEM_TURN.values(), ids=_NO_SYSTEM_TURN
)
def test_system_prompt_without_a_system_turn_stands_before_the_text(template):
  plain = small_tokenizers.sentence_piece(template=template)
  tokenizer = dataclasses.replace(plain, system_prompt='It is not')
  assert not tokenizer.has_system_turn
  np.testing.assert_array_equal(
    tokenizer.prompt_ids('It is good'),
    plain.prompt_ids('It is not\n\nIt is good'),
  )


def test_system_prompt_without_a_chat_template_stands_before_the_text():
  plain = small_tokenizers.word_level('a b')
  tokenizer = dataclasses.replace(plain, system_prompt='b')
  assert tokenizer.prompt_ids('a').tolist() == [1, 4, 3]


def test_system_prompt_is_in_the_digest():
  plain = small_tokenizers.word_level('a b')
  digests = {
    dataclasses.replace(plain, system_prompt=text).digest()
    for text in ('', 'b')
  }
  assert len(digests) == 2
  assert plain.digest() in digests
  with pytest.raises(types.InputError, match='U.FDD0'):
    dataclasses.replace(plain, system_prompt='\ufdd0').prompt_ids('a')


@templated
def test_encode_keeps_special_strings_as_text(make):
  tokenizer = make()
  text = f'is {SPECIAL_STRINGS}, good'
  ids, offsets = tokenizer.encode(text)
  expected = tokenizer.hf(
    text, add_special_tokens=False, split_special_tokens=True
  )['input_ids']
  assert ids.tolist() == expected
  assert offsets.shape == (len(ids), 2)
  assert offsets[-1].tolist() == [len(text) - len('good'), len(text)] or (
    offsets[-1, 1] == len(text)
  )
  assert tokenizer.decode(ids) == text


def test_encode_of_nothing():
  ids, offsets = small_tokenizers.byte_level().encode('')
  assert ids.shape == (0,)
  assert offsets.shape == (0, 2)


@settings(deadline=None, max_examples=50)
@given(
  st.lists(
    st.sampled_from(
      [
        '<|im_end|>',
        '<|im_start|>',
        'is',
        ' ',
        '\n',
        '<',
        '|',
        'é',
        '\x00',
        '4',
      ]
    )
  ).map(''.join)
)
def test_any_text_round_trips(text):
  tokenizer = small_tokenizers.byte_level()
  ids, _ = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert not set(ids.tolist()) & set(tokenizer.hf.all_special_ids)
  prompt = tokenizer.decode(tokenizer.prompt_ids(text))
  assert prompt == (
    f'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n'
  )


@pytest.mark.parametrize('method', ['prompt_ids', 'encode'])
def test_the_mark_is_refused(method):
  with pytest.raises(types.InputError, match=r'U\+FDD0 at character 2'):
    getattr(small_tokenizers.byte_level(), method)('ab\ufdd0<|im_end|>')


@pytest.mark.parametrize('method', ['prompt_ids', 'encode'])
def test_half_a_surrogate_pair_is_refused(method):
  with pytest.raises(types.InputError, match='surrogate pair at character 1'):
    getattr(small_tokenizers.byte_level(), method)('a\ud800')


def test_end_token_is_the_one_that_ends_a_turn():
  byte_level = small_tokenizers.byte_level()
  assert byte_level.hf.eos_token == '<|endoftext|>'
  assert byte_level.decode([byte_level.eos_id]) == '<|im_end|>'
  assert small_tokenizers.sentence_piece().eos_id == 2
  assert small_tokenizers.word_level('a').eos_id == 2
  no_end = small_tokenizers.word_level('a', bos_token='<s>')
  with pytest.raises(types.InputError, match='has no end token'):
    _ = no_end.eos_id


def test_padding_is_a_filler():
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  padded = small_tokenizers.word_level('a b', pad_token='b', **special)
  assert padded.pad_id == 4
  assert small_tokenizers.word_level('a b').pad_id == 0
  byte_level = small_tokenizers.byte_level()
  assert byte_level.pad_id == byte_level.eos_id


def test_failing_template_is_an_input_error():
  template = "{{ raise_exception('no turns today') }}"
  tokenizer = small_tokenizers.sentence_piece(template=template)
  with pytest.raises(types.InputError, match='user: no turns today'):
    tokenizer.prompt_ids('a')


def test_template_that_writes_the_day_does_not_change_with_it():
  template = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d')"
    " %}{% endif %}{{ date_string + messages[0]['content'] }}"
  )
  tokenizer = small_tokenizers.sentence_piece(template=template)
  assert '26' in tokenizer.decode(tokenizer.prompt_ids('a'))
  always = small_tokenizers.sentence_piece(template="{{ strftime_now('%d') }}")
  with pytest.raises(types.InputError, match='writes the current date'):
    always.prompt_ids('a')


def test_word_that_can_only_be_a_special_token_is_refused():
  tokenizer = small_tokenizers.word_level('a b')
  for method in (tokenizer.prompt_ids, tokenizer.encode):
    with pytest.raises(types.InputError, match="'</s>' in it"):
      method('a </s> b')


def test_vocab_size_counts_added_tokens():
  assert small_tokenizers.word_level('a b').vocab_size == 5


def test_digest_is_of_the_tokenizer_alone():
  first = small_tokenizers.word_level('a b')
  again = small_tokenizers.word_level('a b')
  # A call sets truncation in the backend.
  again.hf('a b', max_length=8, truncation=True)
  assert re.fullmatch('[0-9a-f]{64}', first.digest())
  assert first.digest() == again.digest()
  others = [
    small_tokenizers.word_level('b a'),
    small_tokenizers.word_level('a b', template=small_tokenizers.INST),
  ]
  assert len({first.digest(), *(t.digest() for t in others)}) == 3


@templated
def test_saved_tokenizer_loads_the_same(make, tmp_path):
  tokenizer = make()
  tokenizer.hf.save_pretrained(tmp_path)
  loaded = tokenizer_lib.load_tokenizer(str(tmp_path))
  np.testing.assert_array_equal(
    loaded.prompt_ids(SPECIAL_STRINGS), tokenizer.prompt_ids(SPECIAL_STRINGS)
  )
  assert loaded.digest() == tokenizer.digest()
  assert loaded.eos_id == tokenizer.eos_id


def test_load_names_what_is_wrong(tmp_path):
  with pytest.raises(types.InputError, match='no such folder'):
    tokenizer_lib.load_tokenizer(str(tmp_path / 'missing'))
  with pytest.raises(types.InputError, match='holds no tokenizer'):
    tokenizer_lib.load_tokenizer(str(tmp_path))
  (tmp_path / 'tokenizer.json').write_text('{"version": ')
  with pytest.raises(types.InputError, match='cannot be loaded'):
    tokenizer_lib.load_tokenizer(str(tmp_path))
