"""Locks of workdirs in buckets: alive, killed, and left."""

import contextlib
import threading
import time

from etils import epath
import pytest

from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.parallel import distributed
from tract_jax.pipeline import bucket_lock, workdir

QUICK = {'renew_secs': 0.02, 'watch_secs': 10}


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
  monkeypatch.setattr(bucket_lock, '_SECS_BETWEEN_LOOKS', 0.01)


def test_second_run_is_refused_while_the_first_is_alive(tmp_path):
  path = epath.Path(tmp_path / '.lock')
  with bucket_lock.held(path, **QUICK):
    with pytest.raises(types.InputError, match=r'another run is in it \(.lock'):
      with bucket_lock.held(path, **QUICK):
        pytest.fail('it was taken')
    assert path.exists()
  assert not path.exists()


def test_lock_of_a_killed_run_is_taken_over(tmp_path, capsys):
  path = epath.Path(tmp_path / '.lock')
  path.write_text('killed 7')
  begin = time.monotonic()
  with bucket_lock.held(path, renew_secs=0.02, watch_secs=0.1):
    assert time.monotonic() - begin >= 0.1
    assert 'killed' not in path.read_text()
  assert 'watching for 0 s whether it still is' in capsys.readouterr().out


def test_lock_that_was_taken_over_is_left_to_who_took_it(tmp_path):
  path = epath.Path(tmp_path / '.lock')
  with bucket_lock.held(path, **QUICK):
    path.write_text('another 000001')
    time.sleep(0.2)
    assert path.read_text() == 'another 000001'
  assert path.read_text() == 'another 000001'


def test_lock_that_is_left_meanwhile_is_free_at_once(tmp_path):
  path = epath.Path(tmp_path / '.lock')
  path.write_text('leaves 7')
  threading.Timer(0.05, path.unlink).start()
  begin = time.monotonic()
  with bucket_lock.held(path, renew_secs=9, watch_secs=60):
    assert time.monotonic() - begin < 10


def test_a_renewal_that_fails_does_not_end_the_next(tmp_path):
  folder, away = tmp_path / 'folder', tmp_path / 'away'
  folder.mkdir()
  path = epath.Path(folder / '.lock')
  with bucket_lock.held(path, **QUICK):
    folder.rename(away)
    time.sleep(0.1)
    before = (away / '.lock').read_text()
    away.rename(folder)
    deadline = time.monotonic() + 10
    while path.read_text() == before:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_workdir_in_a_bucket_is_locked_by_one_run_or_by_each_host(
  tmp_path, monkeypatch
):
  taken = []

  @contextlib.contextmanager
  def held(path):
    taken.append(path.name)
    yield

  monkeypatch.setattr(bucket_lock, 'held', held)
  folder = epath.Path('gs://bucket/run')
  with fake_gcs.serve(tmp_path, monkeypatch):
    for host in (
      distributed.ONLY_HOST,
      distributed.Host(0, 2, joined=True),
      distributed.Host(1, 2, joined=True),
      distributed.Host(1, 3),
    ):
      with workdir.use(folder, host):
        pass
  assert taken == ['.lock', '.lock', '.lock_host2of3']
