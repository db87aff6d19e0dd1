import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.data import cache, encoded_cache, encoded_examples, encoding
from tract_jax.text import prompts, score_tokens

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
EXAMPLES = [
  types.Example(f'e{i}', 'question ' * (1 + i), 1.0 + i % 5, 'It is good.')
  for i in range(6)
]


def arguments(**changed):
  tokenizer = changed.pop('tokenizer', small_tokenizers.byte_level())
  marker = changed.pop('marker', prompts.MARKER)
  return {
    'examples': EXAMPLES,
    'tokenizer': tokenizer,
    'score_tokens': score_tokens.find_score_tokens(tokenizer, GRID, marker),
    'max_length': 33,
    'too_long': 'drop',
    'samples': None,
  } | changed


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
  return tmp_path / 'encoded'


def encode(lines, calls):
  """Through the cache; `calls` grows where it had to be made."""
  given = arguments()

  def make():
    calls.append(1)
    return encoding.encode_all(**given)

  return encoded_cache.encoded(
    encoded_cache.digest(**given), make, lines.append
  )


def check_same(one, other):
  assert one[1] == other[1]
  for name in encoded_examples.ARRAYS:
    array, found = getattr(one[0], name), getattr(other[0], name)
    assert type(found) is np.ndarray and found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_second_time_is_read_from_the_disk(folder):
  lines, calls = [], []
  made = encode(lines, calls)
  assert made[1].dropped_ids and made[1].num_kept and not lines
  check_same(made, encode(lines, calls))
  assert len(calls) == 1
  (entry,) = folder.iterdir()
  assert lines == [f'encoded rows: read from {entry}']


def damage_array(entry):
  path = entry / 'tokens.npy'
  content = bytearray(path.read_bytes())
  content[-3] ^= 1
  path.write_bytes(content)


def damage_manifest(entry):
  (entry / 'manifest.json').write_text('{')


def damage_report(entry):
  path = entry / 'manifest.json'
  content = json.loads(path.read_text())
  del content['results']['report']['num_kept']
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ('damage', 'reason'),
  [
    (damage_array, 'sha256 of tokens.npy'),
    (lambda entry: (entry / 'starts.npy').unlink(), 'No such file'),
    (damage_manifest, 'not JSON'),
    (lambda entry: (entry / 'manifest.json').unlink(), 'is not there'),
    (damage_report, 'manifest.json: not as it was written'),
  ],
)
def test_damaged_entry_is_told_and_made_anew(folder, damage, reason):
  calls = []
  made = encode([], calls)
  (entry,) = folder.iterdir()
  damage(entry)
  lines = []
  check_same(made, encode(lines, calls))
  assert len(calls) == 2
  (line,) = lines
  assert line.startswith(f'{entry}: damaged (') and reason in line
  assert line.endswith('its rows are encoded anew')
  check_same(made, encode([], calls))
  assert len(calls) == 2


def test_entry_under_another_name_is_not_taken(folder):
  made = encode([], [])
  (entry,) = folder.iterdir()
  other = encoded_cache.digest(**arguments(max_length=32))
  shutil.copytree(entry, folder / other)
  lines = []
  found = encoded_cache.encoded(other, lambda: made, lines.append)
  assert 'of another entry' in lines[0]
  check_same(made, found)


def test_everything_that_changes_rows_changes_the_digest():
  def with_row(**fields):
    return [dataclasses.replace(EXAMPLES[0], **fields), *EXAMPLES[1:]]

  def templated(template, start=None):
    tokenizer = small_tokenizers.byte_level()
    hf = tokenizer.hf.__class__(tokenizer_object=tokenizer.hf.backend_tokenizer)
    hf.eos_token = '<|endoftext|>'
    hf.bos_token = start
    hf.chat_template = template
    return type(tokenizer)(hf)

  samples = [np.array([1, 2]) for _ in EXAMPLES]
  variants = [
    {},
    {'max_length': 32},
    {'too_long': 'error'},
    {'marker': ''},
    {'marker': 'It is'},
    {'tokenizer': small_tokenizers.byte_level(split_digits=False)},
    {'tokenizer': templated(None)},
    {'tokenizer': templated(None, '<|im_start|>')},
    {'tokenizer': small_tokenizers.characters([])},
    {'tokenizer': small_tokenizers.characters([('x', 'y')])},
    {'tokenizer': templated(small_tokenizers.CHATML + ' ')},
    {'samples': samples},
    {'samples': [np.array([1, 3]), *samples[1:]]},
    {'samples': [np.array([1]), np.array([2, 1, 2]), *samples[2:]]},
    {'examples': EXAMPLES[::-1]},
    {'examples': EXAMPLES[1:]},
    {'examples': with_row(example_id='other')},
    {'examples': with_row(prompt='questions')},
    {'examples': with_row(score=2.0)},
    {'examples': with_row(ratings=(1.0, 1.0))},
    {'examples': with_row(cot='It is so.')},
  ]
  found = [encoded_cache.digest(**arguments(**v)) for v in variants]
  assert len(set(found)) == len(variants)
  assert encoded_cache.digest(**arguments()) == found[0]


def test_half_written_entry_is_never_seen(folder, monkeypatch):
  def fail(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(encoded_cache.manifest, 'write_manifest', fail)
    lines, calls = [], []
    made = encode(lines, calls)
    assert made[1].num_kept
    assert 'not kept for the next run' in lines[0]
    assert 'No space left' in lines[0]
    assert not list(folder.iterdir())
  check_same(made, encode([], calls))
  assert len(calls) == 2


def test_old_entries_make_room(folder, monkeypatch):
  made = encoding.encode_all(**arguments())
  monkeypatch.setattr(encoded_cache, '_MAX_BYTES', 1)

  def touch(key):
    encoded_cache.encoded(key, lambda: made, lambda line: None)

  touch('a')
  assert [p.name for p in folder.iterdir()] == ['a']
  touch('b')
  assert [p.name for p in folder.iterdir()] == ['b']
  size = sum(p.stat().st_size for p in (folder / 'b').iterdir())
  monkeypatch.setattr(encoded_cache, '_MAX_BYTES', 2 * size)
  touch('c')
  for i, name in enumerate(('b', 'c')):
    os.utime(folder / name, (i, i))
  # Read again, b is newer than c.
  touch('b')
  touch('d')
  assert sorted(p.name for p in folder.iterdir()) == ['b', 'd']


def test_folder_of_the_cache(monkeypatch, tmp_path):
  assert cache.cache_folder() == tmp_path
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.delenv(cache.CACHE_VARIABLE)
  assert cache.cache_folder() == tmp_path / 'home' / '.cache' / 'tract_jax'
