"""Steps in a bucket: where nothing is renamed, and others write as well."""

import pathlib
import shutil

from etils import epath
import numpy as np
import pytest

from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.data import fetched_store, orbax_saving, orbax_store

FOLDER = 'gs://bucket/run/checkpoints'


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  (tmp_path / 'bucket').mkdir()
  with fake_gcs.serve(tmp_path, monkeypatch) as server:
    yield server


@pytest.fixture
def local(bucket):
  """The same folder, as the server has it."""
  return bucket.root / 'bucket/run/checkpoints'


def values(step: int) -> dict:
  return {'w': np.arange(step, step + 500, dtype=np.float32)}


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  files = (path for path in folder.rglob('*') if path.is_file())
  return {path: path.read_bytes() for path in files}


def flip_a_bit(step: pathlib.Path) -> None:
  for path in (step / 'state').rglob('d/*'):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save(*steps: int, max_to_keep: int | None = None) -> None:
  with orbax_store.Store(FOLDER, max_to_keep) as store:
    for step in steps:
      store.save(step, values(step), {'step': step})


def assert_loads(step: int) -> None:
  with orbax_store.Store(FOLDER) as store:
    arrays, metadata = store.load(step)
  np.testing.assert_array_equal(arrays['w'], values(step)['w'])
  assert metadata == {'step': step}


def test_steps_are_saved_listed_and_loaded(local):
  save(1, 2, 3)
  with orbax_store.Store(FOLDER) as store:
    assert store.steps() == [1, 2, 3]
  assert_loads(2)
  assert {path.name for path in local.iterdir()} == {'1', '2', '3'}


def test_outdated_steps_are_deleted(local):
  save(1, 2, 3, max_to_keep=2)
  assert {path.name for path in local.iterdir()} == {'2', '3'}


def test_what_is_left_of_outdated_steps_is_deleted_and_nothing_newer(local):
  save(1, 2)
  for step in (1, 9):
    shutil.copytree(local / '2', local / str(step), dirs_exist_ok=True)
    (local / str(step) / 'commit_success.txt').unlink()
  save(3, 4, max_to_keep=2)
  assert {path.name for path in local.iterdir()} == {'3', '4', '9'}


def test_a_step_that_was_killed_amid_its_save_is_saved_again(local):
  save(1, 2)
  (local / '2/commit_success.txt').unlink()
  with orbax_store.Store(FOLDER) as store:
    assert store.steps() == [1]
    with pytest.raises(types.InputError, match='there is no step 2'):
      store.load(2)
  save(2)
  assert_loads(2)


def test_a_finished_step_is_not_replaced(local):
  save(1)
  before = contents(local)
  with pytest.raises(types.InputError, match='step 1 exists already'):
    save(1)
  assert before and contents(local) == before


def test_what_another_host_wrote_is_seen(bucket, local):
  save(1)
  with orbax_store.Store(FOLDER) as store:
    assert store.steps() == [1]
    mark = epath.Path(FOLDER, 'mark')
    assert mark not in list(mark.parent.iterdir())
    assert not mark.exists()
    for path, content in contents(local / '1').items():
      bucket.write(local / '2' / path.relative_to(local / '1'), content)
    bucket.write(local / 'mark', b'')
    assert store.steps() == [1, 2]
    assert mark.exists()
    assert mark in list(mark.parent.iterdir())


def test_a_changed_bit_is_found(local):
  save(1)
  flip_a_bit(local / '1')
  with pytest.raises(orbax_store.DamagedError, match='step 1.*damaged'):
    assert_loads(1)


def test_all_finished_steps_are_fetched_at_once(bucket, local):
  save(1, 2, 10, 3)
  (local / '3/commit_success.txt').unlink()
  with fetched_store.opened(FOLDER) as store:
    num_reads = len(bucket.reads)
    assert store.steps() == [1, 2, 10]
    for step in store.steps():
      arrays, metadata = store.load(step)
      np.testing.assert_array_equal(arrays['w'], values(step)['w'])
      assert metadata == {'step': step}
    with pytest.raises(types.InputError, match=f'^{FOLDER}: .* no step 3$'):
      store.load(3)
    assert len(bucket.reads) == num_reads
  assert not store.folder.exists()


def test_a_fetched_step_that_is_damaged_is_named_by_its_address(local):
  save(1)
  flip_a_bit(local / '1')
  with fetched_store.opened(FOLDER) as store:
    with pytest.raises(orbax_store.DamagedError, match=f'^{FOLDER}: step 1'):
      store.load(1)


def test_nothing_is_fetched_of_a_folder_that_is_not_there(bucket):
  with fetched_store.opened(FOLDER) as store:
    assert store.steps() == []
  bucket.status = 403
  with pytest.raises(types.UnreachableError, match=f'^{FOLDER}: '):
    with fetched_store.opened(FOLDER):
      pytest.fail('it was opened')


def test_a_bucket_that_lets_nobody_in_has_no_damaged_steps(bucket):
  save(1)
  with orbax_store.Store(FOLDER) as store:
    bucket.status = 403
    for ask in (
      store.steps,
      lambda: store.load(1),
      lambda: store.metadata(1),
      lambda: store.save(2, values(2), {}),
    ):
      with pytest.raises(types.UnreachableError, match=f'^{FOLDER}: .*Forbid'):
        ask()
    monkeypatch_exists(store)
    with pytest.raises(types.UnreachableError, match=f'^{FOLDER}: .*orbidden'):
      store.load(1)
    bucket.status = 200


def monkeypatch_exists(store: orbax_store.Store) -> None:
  """It was there; and then the bucket was closed."""
  store._exists = lambda step: True


@pytest.mark.parametrize('folder', [FOLDER, '/run/checkpoints'])
def test_in_a_bucket_no_host_looks_by_itself_what_is_overwritten(folder):
  # One that looks when another deletes already would wait for all others.
  context = orbax_saving.make_context(folder, local=False)
  is_bucket = folder == FOLDER
  assert context.file.skip_sync_file_validations == is_bucket
