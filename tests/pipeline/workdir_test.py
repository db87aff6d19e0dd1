"""The workdir's lock and probe, and the signals that end a run."""

import os
import signal

from etils import epath
from etils.epath import backend
import pytest

from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.parallel import distributed
from tract_jax.pipeline import interruption, workdir


def test_second_run_in_a_workdir_is_refused(tmp_path):
  folder = epath.Path(tmp_path / 'run')
  with workdir.use(folder):
    with pytest.raises(types.InputError, match='another run is in it'):
      with workdir.use(folder):
        pass
  with workdir.use(folder):
    assert not list(folder.glob('.probe*'))


def test_workdir_that_takes_no_bytes_is_told(tmp_path, monkeypatch):
  folder = epath.Path(tmp_path / 'run')

  def full(unused_path, data):
    if len(data) >= 4096:  # An empty file can still be made.
      raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(folder), 'write_bytes', full)
  with pytest.raises(types.InputError, match='No space left.* are free there'):
    with workdir.use(folder):
      pytest.fail('it was used')


def test_hosts_share_a_workdir_but_no_number_twice(tmp_path):
  folder = epath.Path(tmp_path / 'run')
  first, second = (distributed.Host(i, 2) for i in range(2))
  with workdir.use(folder, first):
    with workdir.use(folder, second):
      pass
    # The number is free again, and its lock is held once more.
    with workdir.use(folder, second):
      for other in (first, second, distributed.ONLY_HOST):
        with pytest.raises(types.InputError, match='another run is in it'):
          with workdir.use(folder, other):
            pass
  with workdir.use(folder):
    with pytest.raises(types.InputError, match=r'is in it \(\.lock\)'):
      with workdir.use(folder, second):
        pass
    assert not list(folder.glob('.probe*'))


def test_workdir_that_is_a_file_is_named(tmp_path):
  (tmp_path / 'run').write_text('')
  with pytest.raises(types.InputError, match='workdir .*run'):
    with workdir.use(epath.Path(tmp_path / 'run')):
      pass


@pytest.mark.parametrize(
  ('error', 'reason'),
  [
    (PermissionError(13, 'Permission denied'), 'Permission denied'),
    # As gcsfs says it, and as fsspec does where gcsfs is missing.
    (OSError('Forbidden: https://storage.googleapis.com/b'), 'Forbidden: http'),
    (ValueError('Bad Request: Invalid bucket name'), 'Invalid bucket name'),
    (ImportError('Please install gcsfs to access Google Storage'), 'install'),
  ],
)
def test_bucket_that_cannot_be_written_is_told_at_once(
  monkeypatch, error, reason
):
  def refuse(unused_scheme):
    raise error

  monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', refuse)
  with pytest.raises(types.InputError) as refused:
    with workdir.use(epath.Path('gs://bucket/run')):
      pytest.fail('it was used')
  assert str(refused.value).startswith('workdir gs://bucket/run: ')
  assert reason in str(refused.value)


@pytest.mark.parametrize(
  'error',
  [ConnectionResetError('reset'), ValueError('UNAVAILABLE: HTTP 503')],
)
def test_bucket_that_does_not_answer_is_no_mistake(monkeypatch, error):
  def refuse(unused_scheme):
    raise error

  monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', refuse)
  with pytest.raises(
    types.UnreachableError, match='^workdir gs://bucket/run: '
  ):
    with workdir.use(epath.Path('gs://bucket/run')):
      pytest.fail('it was used')


def test_other_remote_places_are_refused():
  with pytest.raises(types.InputError, match='give a local folder, or gs://'):
    with workdir.use(epath.Path('s3://bucket/run')):
      pytest.fail('it was used')


def test_bucket_that_orbax_may_not_ask_about_is_told_at_once(
  tmp_path, monkeypatch
):
  with fake_gcs.serve(tmp_path, monkeypatch) as server:
    server.status_of_buckets = 403
    with pytest.raises(types.InputError, match='storage.buckets.get'):
      with workdir.use(epath.Path('gs://forbidden/run')):
        pytest.fail('it was used')
    assert not any(path.is_file() for path in tmp_path.rglob('*'))


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_signals_ask_to_stop_with_their_exit_code(number, code):
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  stop = interruption.StopSignal()
  try:
    stop.install()
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert stop.exit_code == code
    if number == signal.SIGINT:
      with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
  finally:
    for n, handler in before.items():
      signal.signal(n, handler)
