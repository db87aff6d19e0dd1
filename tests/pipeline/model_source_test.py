"""Tests of finding a model's files: local, on a hub, in a bucket."""

import json
import os
import pathlib
import subprocess
import sys
import time

from huggingface_hub import constants
import ml_collections
import pytest

from tests.models import hf_weights_test as good
from tests.pipeline import fake_gcs, fake_hub
from tract_jax import types
from tract_jax.data import cache
from tract_jax.models import hf_export, hf_weights, json_file
from tract_jax.pipeline import model_source

COMMIT = fake_hub.COMMIT
TOKEN = 'hf_abcdefghijklmnopqrstuvwxyz'

_WANTED = {
  'config.json',
  'tokenizer.json',
  'chat_template.jinja',
  'tokenizer.model',
  'README.md',
  'LICENSE.txt',
}
_UNWANTED = {'pytorch_model.bin', 'modeling_judge.py', 'run.sh', '.netrc'}


@pytest.fixture
def folder(tmp_path):
  """A model's folder, with files in it that nobody should fetch."""
  path = tmp_path / 'served' / 'models' / 'judge'
  path.mkdir(parents=True)
  for name in _WANTED | _UNWANTED:
    (path / name).write_text(f'{{"name": "{name}"}}')
  (path / 'original').mkdir()
  (path / 'original' / 'params.json').write_text('{}')
  (path / 'consolidated.safetensors').write_bytes(b'the same again')
  hf_export.write_tensors(path / 'model.safetensors', good.random_tensors())
  return path


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', TOKEN)
  # The library waits longer and longer before it tries again.
  monkeypatch.setattr(time, 'sleep', lambda secs: None)
  with fake_hub.serve(folder, tmp_path / 'cache', monkeypatch) as server:
    yield server


@pytest.fixture
def bucket(folder, monkeypatch):
  with fake_gcs.serve(folder.parents[1], monkeypatch) as server:
    yield server


def find_error(path, revision=''):
  """The one line of the InputError; no token is in it."""
  with pytest.raises(types.InputError) as caught:
    model_source.find(path, revision)
  (line,) = str(caught.value).splitlines()
  seen, errors = set(), [caught.value]
  while errors:
    error = errors.pop()
    if error is None or id(error) in seen:
      continue
    seen.add(id(error))
    assert TOKEN not in repr(error)
    if not error.__suppress_context__:
      errors.append(error.__context__)
    errors.append(error.__cause__)
  return line


def assert_loads(source):
  params = hf_weights.load_params(source.weights, good.abstract_tree())
  good.assert_same(params, good.expected_params(good.random_tensors()))


def names_in(path):
  return {entry.name for entry in path.iterdir()}


def test_local_folder(folder):
  source = model_source.find(str(folder))
  assert source.name == str(folder)
  assert source.folder == folder
  assert str(source.weights) == str(folder)
  assert_loads(source)


def test_local_folder_comes_before_a_hub_id(folder, monkeypatch):
  monkeypatch.chdir(folder.parents[1])
  assert model_source.find('models/judge').folder == pathlib.Path(
    'models/judge'
  )


@pytest.mark.parametrize('path', ['folder', 'gs://models/judge'])
def test_revision_of_a_folder_is_refused(folder, path):
  path = str(folder) if path == 'folder' else path
  line = find_error(path, COMMIT)
  assert line.startswith(f'model.revision: {COMMIT!r}: {path!r} is a folder')


def test_seed_model_that_was_not_fetched(tmp_path, monkeypatch):
  monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
  line = find_error('smollm2-135m-instruct')
  assert 'to fetch it run: python -m tract_jax.pipeline.seed_model' in line


@pytest.mark.parametrize('path', ['nowhere', '/no/where', 'a/b/c', '../x', ''])
def test_nothing_of_that_name(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert find_error(path) == (
    f'model.path: {path!r}: no such folder, nor a seed model'
    ' (smollm2-135m-instruct), nor a hub id like org/name'
  )


@pytest.mark.parametrize(
  'path, revision, problem',
  [
    ('org/judge', '', 'no such folder, and as a hub id it needs a commit'),
    ('org/judge', 'main', "the revision 'main' is no full commit id"),
    ('org/judge', COMMIT[:7], "the revision '0123456' is no full commit id"),
    ('org/judge@v1.0', '', "the revision 'v1.0' is no full commit id"),
    (
      f'org/judge@{COMMIT}',
      'f' * 40,
      f'two revisions, {COMMIT} and {"f" * 40}',
    ),
  ],
)
def test_hub_id_without_one_commit(hub, path, revision, problem):
  assert find_error(path, revision) == (
    f'model.path: {path!r}: {problem}: give model.revision the 40 digits of one'
    ' commit, since what a branch or a tag names may change'
  )
  assert not hub.tokens


@pytest.mark.parametrize(
  'path, revision',
  [
    ('org/judge', COMMIT),
    (f'org/judge@{COMMIT}', ''),
    (f'org/judge@{COMMIT}', COMMIT),
  ],
)
def test_model_on_the_hub(hub, path, revision):
  source = model_source.find(path, revision)
  assert source.name == f'org/judge@{COMMIT}'
  assert set(hub.gets) == _WANTED | {'model.safetensors'}
  assert names_in(source.folder) == _WANTED | {'model.safetensors'}
  assert_loads(source)


def test_cached_model_needs_no_network(hub, monkeypatch):
  first = model_source.find('org/judge', COMMIT)
  hub.gets.clear()
  assert model_source.find('org/judge', COMMIT) == first
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert model_source.find('org/judge', COMMIT) == first
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  assert model_source.find('org/judge', COMMIT) == first
  assert not hub.gets


@pytest.mark.parametrize(
  'error, said',
  [
    ('gated', 'a gated model: ask for access on its page, and log in with'),
    ('unknown', 'no such model on 127.0.0.1, or a private one and no access'),
    ('revision', 'the model has no such commit (127.0.0.1 answered 404)'),
    ('down', '127.0.0.1 answered 503'),
  ],
)
def test_hub_that_gives_nothing(hub, error, said):
  hub.error = error
  line = find_error('org/judge', COMMIT)
  assert line.startswith(f'org/judge@{COMMIT}: ')
  assert said in line
  # It was sent, so it might have come back in a message.
  assert hub.tokens == {f'Bearer {TOKEN}'}


def test_hub_has_no_such_commit_or_model(hub):
  assert 'no such commit' in find_error('org/judge', 'f' * 40)
  assert 'no such model' in find_error('org/other', COMMIT)


def test_offline_without_the_model(hub, tmp_path, monkeypatch):
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert find_error('org/judge', COMMIT) == (
    f'org/judge@{COMMIT}: HF_HUB_OFFLINE is set, and the model is not wholly in'
    f' {tmp_path}/cache'
  )
  assert not hub.tokens


def test_no_network(hub, tmp_path, monkeypatch):
  monkeypatch.setattr(constants, 'ENDPOINT', f'http://u:{TOKEN}@127.0.0.1:9')
  assert find_error('org/judge', COMMIT) == (
    f'org/judge@{COMMIT}: 127.0.0.1 cannot be reached, and the model is not'
    f' wholly in {tmp_path}/cache'
  )


def test_snapshot_of_which_a_file_is_gone(hub, monkeypatch):
  source = model_source.find('org/judge', COMMIT)
  (source.folder / 'model.safetensors').unlink()
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert 'the model is not wholly in' in find_error('org/judge', COMMIT)


def test_model_in_a_bucket(bucket, folder):
  for name in ('.hidden.json', 'two words.json', 'a\\b.json'):
    (folder / name).write_text('{}')
  source = model_source.find('gs://models/judge/')
  assert source.name == str(source.weights) == 'gs://models/judge'
  assert names_in(source.folder) == _WANTED
  read = json_file.read(source.folder / 'config.json')
  assert read == {'name': 'config.json'}
  assert not any('safetensors' in name for name, _ in bucket.reads)
  assert_loads(source)
  assert 'model.safetensors' in {path.name for path in source.weights.iterdir()}


def test_copy_of_a_bucket_is_removed_at_the_end(bucket, tmp_path):
  code = (
    'import sys; from tract_jax.pipeline import model_source;'
    ' print(model_source.find(sys.argv[1]).folder)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, 'gs://models/judge'],
    cwd=pathlib.Path(__file__).parents[2],
    env={**os.environ, 'TMPDIR': str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=100,
    check=True,
  )
  copy = pathlib.Path(done.stdout.strip())
  assert copy.is_relative_to(tmp_path)
  assert not copy.parent.exists()


def test_bucket_with_a_small_file_that_is_large(bucket, folder, monkeypatch):
  monkeypatch.setattr(model_source, '_MAX_SMALL_FILE_BYTES', 1000)
  (folder / 'tokenizer.json').write_bytes(bytes(1001))
  assert find_error('gs://models/judge') == (
    'gs://models/judge/tokenizer.json: 1001 bytes, and such a file has at most'
    ' 1000'
  )


@pytest.mark.parametrize(
  'path', ['http://host/model', 'hf://org/judge', 'file:///model', 'gs://']
)
def test_address_of_another_kind(path):
  assert 'an address is SCHEME://bucket/folder, with gs, s3, az' in find_error(
    path
  )


def test_library_for_buckets_is_missing(monkeypatch):
  fake_gcs.hide_library(monkeypatch)
  assert 'pip install tract_jax[gcs]' in find_error('gs://bucket/model')


def settings(path, adapter='', revision=''):
  return ml_collections.ConfigDict(
    {'path': str(path), 'adapter': str(adapter), 'revision': revision}
  )


def write_adapter(folder, base, revision=''):
  folder.mkdir()
  fields = {
    'peft_type': 'LORA',
    'r': 2,
    'lora_alpha': 4,
    'target_modules': ['q_proj'],
    'base_model_name_or_path': str(base) if base else None,
    'revision': revision or None,
  }
  (folder / 'adapter_config.json').write_text(json.dumps(fields))
  return folder


def test_adapter_folder_is_found_with_its_base(folder, tmp_path):
  adapter = write_adapter(tmp_path / 'adapter', folder)
  sources = model_source.find_model(settings(adapter))
  assert (sources.base.folder, sources.adapter.folder) == (folder, adapter)
  assert sources.judge_folder == adapter
  assert sources.name == f'{folder} with {adapter}'


def test_adapter_of_the_hub_names_its_base_by_commit(hub, folder, tmp_path):
  adapter = write_adapter(tmp_path / 'adapter', fake_hub.HUB_ID, COMMIT)
  sources = model_source.find_model(settings(adapter))
  assert sources.base.reference == (fake_hub.HUB_ID, COMMIT)
  assert sources.base.name == f'{fake_hub.HUB_ID}@{COMMIT}'


def test_adapter_beside_its_base(folder, tmp_path):
  adapter = write_adapter(tmp_path / 'adapter', '/moved/elsewhere')
  sources = model_source.find_model(settings(folder, adapter))
  assert (sources.base.folder, sources.adapter.folder) == (folder, adapter)
  assert model_source.find_model(settings(folder)).adapter is None


@pytest.mark.parametrize(
  ('base', 'said'),
  [
    ('', 'does not name its base: name the base by config.model.path'),
    ('/moved/elsewhere', "its base: model.path: '/moved/elsewhere': no such"),
    ('{adapter}', 'is an adapter itself'),
  ],
)
def test_adapter_without_a_base_says_what_to_do(tmp_path, base, said):
  adapter = write_adapter(
    tmp_path / 'adapter', base.format(adapter=tmp_path / 'adapter')
  )
  with pytest.raises(types.InputError, match='.*') as caught:
    model_source.find_model(settings(adapter))
  assert said in str(caught.value)
  with pytest.raises(types.InputError, match='is an adapter already'):
    model_source.find_model(settings(adapter, adapter))
