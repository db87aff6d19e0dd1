"""What errors of remote places tell: of the place, or of what lies there."""

import aiohttp
from google.api_core import exceptions as google_errors
from google.auth import exceptions as auth_errors
import pytest

from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.models import remote_files

retry = pytest.importorskip('gcsfs.retry')


def http(code: int) -> Exception:
  return retry.HttpError({'code': code, 'message': 'Backend Error'})


@pytest.mark.parametrize(
  'error',
  [
    http(503),
    http(429),
    google_errors.ServiceUnavailable('no'),
    auth_errors.TransportError('no metadata server'),
    aiohttp.ClientPayloadError('cut off'),
    ConnectionResetError(104, 'reset'),
    TimeoutError(),
    ValueError('UNAVAILABLE: Error writing "gs://b/x": HTTP 503'),
    # As a process that saves for another tells it.
    OSError('HttpError: Backend Error, 503'),
  ],
)
def test_no_answer(error):
  assert remote_files.is_unanswered(error)
  assert not remote_files.is_refused(error)


@pytest.mark.parametrize(
  'error',
  [
    http(401),
    google_errors.Forbidden('storage.buckets.get'),
    OSError('Forbidden: http://host/b'),
    ValueError('PERMISSION_DENIED: Error reading "gs://b/x"'),
  ],
)
def test_refusals(error):
  assert remote_files.is_refused(error)
  assert not remote_files.is_unanswered(error)


@pytest.mark.parametrize(
  'error',
  [
    FileNotFoundError('gs://b/x'),
    http(404),
    ValueError('DATA_LOSS: CRC-32C checksum verification failed'),
    ValueError('FAILED_PRECONDITION: no such array'),
    OSError(28, 'No space left on device'),
    OSError('the process that saves was killed'),
    KeyError('format'),
  ],
)
def test_answers_that_tell_of_the_files(error):
  assert not remote_files.has_no_answer(error)
  with pytest.raises(type(error)):
    with remote_files.answering('gs://b/x'):
      raise error


def test_files_go_there_and_come_back(tmp_path, monkeypatch):
  content = bytes(range(256)) * 100
  (tmp_path / 'a').write_bytes(content)
  with fake_gcs.serve(tmp_path / 'served', monkeypatch) as server:
    for name in ('one', 'two/three'):
      remote_files.put(tmp_path / 'a', f'gs://bucket/run/{name}')
    remote_files.put(tmp_path / 'a', 'gs://bucket/runner')
    names = remote_files.names_below('gs://bucket/run')
    assert names == ['one', 'two/three']
    remote_files.fetch('gs://bucket/run', names, tmp_path / 'back')
    for name in names:
      assert (tmp_path / 'back' / name).read_bytes() == content
    assert remote_files.names_below('gs://bucket/other') == []
    server.status = 403
    with pytest.raises(types.UnreachableError, match='^gs://bucket/run: OSErr'):
      remote_files.names_below('gs://bucket/run')
