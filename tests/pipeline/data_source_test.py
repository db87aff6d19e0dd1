"""Data files on a hub: which commit, which file, and what goes wrong."""

import json
import pathlib

import pytest

from tests.pipeline import fake_hub
from tract_jax import types
from tract_jax.pipeline import data_source

DATASET = f'hf://datasets/{fake_hub.HUB_ID}'
AT_COMMIT = f'{DATASET}@{fake_hub.COMMIT}'


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'served'
  (path / 'data').mkdir(parents=True)
  (path / 'README.md').write_text('words')
  (path / 'dataset_infos.json').write_text('{}')
  (path / 'data' / 'rows.json').write_text(json.dumps([{'prompt': 'p'}]))
  return path


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
  with fake_hub.serve(
    folder, tmp_path / 'cache', monkeypatch, 'datasets'
  ) as server:
    yield server


def problem_of(path):
  with pytest.raises(types.InputError) as error:
    data_source.find(path)
  (line,) = str(error.value).splitlines()
  return line


@pytest.mark.parametrize('path', ['/data/x.json', 'gs://bucket/x.json', 'x'])
def test_other_paths_stand_as_they_are(path):
  assert data_source.find(path) == path


@pytest.mark.parametrize('path', [AT_COMMIT, f'{AT_COMMIT}/data/rows.json'])
def test_file_of_a_dataset(hub, folder, path):
  found = pathlib.Path(data_source.find(path))
  assert found.read_bytes() == (folder / 'data' / 'rows.json').read_bytes()
  assert set(hub.gets) == {'data/rows.json'}


def test_of_several_files_the_one_of_training(hub, folder):
  (folder / 'data' / 'train-0.parquet').write_bytes(b'PAR1')
  found = pathlib.Path(data_source.find(AT_COMMIT))
  assert found.name == 'train-0.parquet'
  (folder / 'train.jsonl').write_text('{}')
  assert problem_of(AT_COMMIT) == (
    f'{AT_COMMIT}: several data files: data/rows.json, data/train-0.parquet, '
    'train.jsonl; add "/" and the name of one'
  )


def test_dataset_without_data(hub, folder):
  (folder / 'data' / 'rows.json').rename(folder / 'rows.csv')
  assert problem_of(AT_COMMIT) == (
    f'{AT_COMMIT}: no JSON, JSONL or parquet file: README.md, '
    'dataset_infos.json, rows.csv; add "/" and the name of one'
  )


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    (DATASET, 'needs a commit, as in hf://datasets/owner/name@COMMIT/file'),
    (f'{DATASET}/x.json', 'needs a commit'),
    (f'{DATASET}@main', "the revision 'main' is no full commit id: give"),
    (f'{DATASET}@0123/x.json', 'give "@" after the name the 40 digits of one'),
    ('hf://models/a/b', 'is not like hf://datasets/owner/name@COMMIT'),
    ('hf://datasets/a', 'is not like hf://datasets/owner/name@COMMIT'),
  ],
)
def test_path_without_one_commit(hub, path, message):
  line = problem_of(path)
  assert line.startswith(f'{path}: ')
  assert message in line
  assert not hub.tokens


@pytest.mark.parametrize(
  ('error', 'said'),
  [
    ('gated', 'a gated dataset: ask for access on its page'),
    ('unknown', 'no such dataset on 127.0.0.1'),
    ('revision', 'the dataset has no such commit'),
    ('down', '127.0.0.1 answered 503'),
  ],
)
def test_hub_that_gives_nothing(hub, monkeypatch, error, said):
  monkeypatch.setattr('time.sleep', lambda secs: None)
  hub.error = error
  for path in (AT_COMMIT, f'{AT_COMMIT}/data/rows.json'):
    assert said in problem_of(path)
