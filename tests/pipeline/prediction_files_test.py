"""Files of predictions: what is lost, cut or changed is seen."""

import dataclasses
import json

from etils import epath
import pytest

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.pipeline import prediction_files


@pytest.mark.parametrize('value', [[-1], [1.0], [True], ['1'], 3, [10**400]])
def test_tokens_that_are_no_counts_are_refused(tmp_path, value):
  row = dataclasses.asdict(
    types.Prediction('1', 0, None, None, [], [], [], [], 'none')
  )
  path = epath.Path(tmp_path / 'rows.jsonl')
  path.write_text(json.dumps(row))
  assert prediction_files.read_predictions(path)[0].cot_tokens == []
  path.write_text(json.dumps(row | {'cot_tokens': value}))
  with pytest.raises(types.InputError, match='line 1: cot_tokens: '):
    prediction_files.read_predictions(path)


def write_chunks(folder, *chunks):
  folder.mkdir(parents=True)
  start = 0
  for rows in chunks:
    path = folder / f'chunk_{start:08d}.jsonl'
    path.write_text(prediction_files.with_digest(rows), encoding='utf-8')
    start += rows.count('\n')
  return epath.Path(folder)


def test_a_lost_or_changed_chunk_is_named(tmp_path):
  folder = write_chunks(tmp_path / 'a', 'ä\u2028\n2\n', '3\n4\n', '5\n')
  assert prediction_files.read_chunks(folder, 5) == 'ä\u2028\n2\n3\n4\n5\n'
  # sha256 of the characters "5" and newline, from coreutils.
  assert json.loads((folder / 'chunk_00000004.jsonl').read_text()[2:]) == {
    'sha256': 'f0b5c2c2211c8d67ed15e75e656c7862d086e9245420892a7de62cd9ec582a06'
  }
  with pytest.raises(types.InputError, match='00000005.jsonl: is lost: 5 of 6'):
    prediction_files.read_chunks(folder, 6)
  middle = folder / 'chunk_00000002.jsonl'
  content = middle.read_bytes()
  middle.unlink()
  for num_rows in (5, None):
    with pytest.raises(types.InputError, match=r'00000002\.jsonl: is lost'):
      prediction_files.read_chunks(folder, num_rows)
  for changed in (
    content.replace(b'3', b'7'),
    content.replace(b'3', b'\xff'),
    content.replace(b'\n', b'\r', 1),
    content[:-1],
    content[:-20],
    b'3\n4\n',
    b'',
  ):
    middle.write_bytes(changed)
    with pytest.raises(types.InputError, match=r'00000002\.jsonl: damaged'):
      prediction_files.read_chunks(folder, 5)


def test_the_joined_file_is_that_of_the_chunks(tmp_path, capsys):
  folders = [
    write_chunks(tmp_path / name, f'{name}1\n', f'{name}2\n') for name in 'ab'
  ]
  path = epath.Path(tmp_path / 'rows.jsonl')
  prediction_files.join_chunks(folders[:1], 2, path)
  prediction_files.join_chunks(folders, 2, path)
  assert path.read_text() == 'a1\na2\nb1\nb2\n'
  assert not capsys.readouterr().out
  path.write_text('a1\na2\nb1\nb3\n')
  # Nothing is known before the chunks are finished.
  prediction_files.check_joined(folders, path)
  for folder in folders:
    manifest.write_manifest(folder, 'predictions', {})
  with pytest.raises(
    types.InputError, match=r'rows\.jsonl: not what the chunk'
  ):
    prediction_files.check_joined(folders, path)
  prediction_files.check_joined(folders[:1], path)
  prediction_files.join_chunks(folders, 2, path)
  assert 'rows.jsonl: was not what its chunks hold' in capsys.readouterr().out
  assert path.read_text() == 'a1\na2\nb1\nb2\n'
  prediction_files.check_joined(folders, path)
