"""What errors of remote places tell: of the place, or of what lies there."""

import gc
import subprocess
import sys

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


# gcsfs sends 5 MiB at a time.
@pytest.mark.parametrize('num_bytes', [2**20, 11 * 2**20])
def test_a_file_that_is_stopped_half_way_leaves_the_old_one(
  tmp_path, monkeypatch, num_bytes
):
  def stopped(source, target, unused_size):
    while source.tell() < num_bytes:
      target.write(source.read(2**20))
    raise KeyboardInterrupt

  monkeypatch.setattr(remote_files.shutil, 'copyfileobj', stopped)
  (tmp_path / 'new').write_bytes(bytes(12 * 2**20))
  with fake_gcs.serve(tmp_path / 'served', monkeypatch) as server:
    old = server.root / 'bucket' / 'a'
    server.write(old, b'old')
    with pytest.raises(KeyboardInterrupt):
      remote_files.put(tmp_path / 'new', 'gs://bucket/a')
    gc.collect()
    assert old.read_bytes() == b'old'
    assert not server.uploads


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


def test_buckets_are_taken_for_flat_ones():
  # Whoever imports gcsfs first: it looks once.
  code = 'from tract_jax.models import remote_files; import gcsfs;'
  code += 'print(gcsfs.GCSFileSystem.__module__)'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'gcsfs.core\n'
