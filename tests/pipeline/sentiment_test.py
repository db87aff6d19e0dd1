"""Tests of the command that prepares the rated texts."""

import dataclasses
import hashlib
import io
import json
import pathlib
import tarfile

import pytest

from tract_jax import types
from tract_jax.data import sentiment as rows_lib
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import (
  config_check,
  prepared_folder,
  sentiment,
)

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'sentiment.py'
LEXICON = b'good\t1.9\t0.9\t[2, 2, 1]\nbad\t-2.5\t0.6\t[-2, -3]\n'
NUM_TEXTS = 12


def archive(files, links=()):
  """A tar.gz of {name: content}, and links to /etc/hostname."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
    for name in links:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = tarfile.SYMTYPE, '/etc/hostname'
      tar.addfile(info)
  return buffer.getvalue()


def texts_archive():
  """The inner archive in its true layout, with made-up texts."""
  files = {'../escape.txt': b'never written'}
  for source, stem in rows_lib.SOURCES.items():
    texts = ''.join(
      f'{i}\t1.5\tA good {source} é {i}\r\n' for i in range(NUM_TEXTS)
    )
    ratings = ''.join(f'{i}\t1.5\t0.5\t[1, 2]\r\n' for i in range(NUM_TEXTS))
    files[f'hutto_ICWSM_2014/{stem}_GroundTruth.txt'] = texts.encode()
    files[f'hutto_ICWSM_2014/{stem}_anonDataRatings.txt'] = (
      b'\xef\xbb\xbf' + ratings.encode()
    )
  return archive(files)


def sha256(content):
  return hashlib.sha256(content).hexdigest()


@pytest.fixture(name='made')
def fixture_made(tmp_path, monkeypatch):
  """A small source distribution, and what is expected of it."""
  inner = texts_archive()
  package = sentiment.PACKAGE
  content = archive(
    {package.texts_member: inner, package.lexicon_member: LEXICON}
  )
  sdist = tmp_path / 'sdist.tar.gz'
  sdist.write_bytes(content)
  monkeypatch.setenv('TRACT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  return sdist, dataclasses.replace(
    package,
    sdist_sha256=sha256(content),
    texts_sha256=sha256(inner),
    lexicon_sha256=sha256(LEXICON),
  )


def fetch(made):
  sdist, package = made
  lines = []
  return sentiment.fetch(sdist, lines.append, package), lines


def test_makes_rows_of_all_sources(made, tmp_path):
  folder, lines = fetch(made)
  assert folder == tmp_path / 'cache' / 'sentiment'
  assert {path.name for path in folder.iterdir()} == {
    'train.jsonl', 'test.jsonl', 'manifest.json',
  }  # fmt: skip
  assert list(folder.parent.iterdir()) == [folder]
  assert {path.name for path in tmp_path.iterdir()} == {'sdist.tar.gz', 'cache'}
  rows = [
    json.loads(line)
    for name in ('train.jsonl', 'test.jsonl')
    for line in (folder / name).read_text(encoding='utf-8').splitlines()
  ]
  assert len(rows) == 4 * NUM_TEXTS
  by_id = {row['example_id']: row for row in rows}
  row = by_id['product_reviews-3']
  assert 'rate:\nA good product_reviews é 3\n\n###Score' in row['prompt']
  assert (row['category'], row['score']) == ('product_reviews', [1, 2])
  assert row['cot'] == (
    '"good" is clearly positive. On the whole: clearly positive.'
  )
  assert 'tweets: 12 texts' in lines
  assert lines[-1] == f'{folder}: ready'
  source = json.loads((folder / 'manifest.json').read_text())['source']
  assert source == dataclasses.asdict(made[1])


def test_second_call_verifies_and_mends(made):
  folder, _ = fetch(made)
  path = folder / 'test.jsonl'
  content = path.read_bytes()
  assert fetch(made)[1] == [f'{folder}: there, and as its manifest says']
  path.write_bytes(content[:-1])
  _, lines = fetch(made)
  assert lines[0] == f'{path}: damaged (size): making it again'
  assert path.read_bytes() == content


@pytest.mark.parametrize(
  'field', ['sdist_sha256', 'texts_sha256', 'lexicon_sha256']
)
def test_other_digest_is_refused_and_leaves_nothing(made, tmp_path, field):
  sdist, package = made
  with pytest.raises(types.InputError, match='sha256 is .*, expected 0000'):
    fetch((sdist, dataclasses.replace(package, **{field: '0' * 64})))
  assert list((tmp_path / 'cache').iterdir()) == []


def test_members_are_regular_files_of_bounded_size():
  content = archive({'a': b'12', 'b': b'123'}, links=['link'])
  assert sentiment.read_members(content, ['a', 'b'], 3) == {
    'a': b'12', 'b': b'123',
  }  # fmt: skip
  with pytest.raises(types.InputError) as error:
    sentiment.read_members(content, ['a', 'b', 'link', 'c'], 2)
  assert str(error.value).splitlines() == [
    'b: has 3 bytes, 2 at most',
    'link: is no regular file in the archive',
    'c: not in the archive',
  ]


@pytest.mark.parametrize('content', [b'no archive', b'', texts_archive()[:-99]])
def test_what_is_no_archive(content):
  with pytest.raises(types.InputError, match='a: its archive: '):
    sentiment.read_members(content, ['a'])


def test_no_package_index(made, monkeypatch, capsys):
  del made
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  assert sentiment.main([]) == 2
  output = capsys.readouterr()
  assert 'downloading vaderSentiment==3.3.2' in output.out
  (line,) = output.err.splitlines()
  assert 'pip download vaderSentiment==3.3.2: ERROR' in line
  assert '--sdist=FILE' in line


def test_command_refuses_another_file(made, capsys):
  sdist, _ = made
  assert sentiment.main([f'--sdist={sdist}']) == 2
  assert f'{sdist.name}: sha256 is ' in capsys.readouterr().err


def test_data_path(made, tmp_path):
  path = 'sentiment/train.jsonl'
  with pytest.raises(types.InputError) as error:
    prepared_folder.data_path(path)
  assert str(error.value) == (
    f'{path}: {tmp_path}/cache/sentiment: not there; to prepare it run:'
    ' python -m tract_jax.pipeline.sentiment'
  )
  folder, _ = fetch(made)
  assert prepared_folder.data_path(path) == str(folder / 'train.jsonl')
  for other in ('', 'rows.json', 'gs://bucket/sentiment', '/sentiment/a'):
    assert prepared_folder.data_path(other) == other
  (tmp_path / 'sentiment').mkdir()
  (tmp_path / path).write_text('mine')
  assert prepared_folder.data_path(path) == path


def test_config_loads_and_checks():
  config = config_lib.read_config(str(CONFIG))
  config_check.check(config)
  assert config.score.grid == tuple(range(-4, 5))
  assert config.train.score_target == 'mean'
