"""A server on 127.0.0.1 that answers as Google Cloud Storage does, for reads.

Buckets are the folders of a local folder. `gcsfs` is sent to it by
STORAGE_EMULATOR_HOST.
"""

import contextlib
import http.server
import importlib
import json
import os
import pathlib
import sys
import threading
import urllib.parse

import pytest


class Server(http.server.ThreadingHTTPServer):
  """Attributes: root; reads, (object, bytes sent) of every download."""

  def __init__(self, root: pathlib.Path):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.root = root
    self.reads: list[tuple[str, int]] = []
    self.status = 200


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    del args

  def _answer(self, status, body, **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def _error(self, status, message):
    error = {'error': {'code': status, 'message': message}}
    self._answer(status, json.dumps(error).encode())

  def do_GET(self):  # noqa: N802
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    parts = url.path.split('/')
    _, _, rest = url.path.partition('/b/')
    bucket, _, name = rest.partition('/o')
    name = urllib.parse.unquote(name.strip('/'))
    if self.server.status != 200:
      self._error(self.server.status, 'no storage.objects.list access')
    elif not name:
      self._list(bucket, query.get('prefix', ''))
    elif not (self.server.root / bucket / name).is_file():
      self._error(404, f'No such object: {bucket}/{name}')
    elif 'download' in parts:
      self._download(bucket, name)
    else:
      self._answer(200, json.dumps(self._info(bucket, name)).encode())

  def _info(self, bucket, name):
    size = (self.server.root / bucket / name).stat().st_size
    return {
      'bucket': bucket,
      'name': name,
      'size': str(size),
      'generation': '1',
      'updated': '2024-01-01T00:00:00.000Z',
      'timeCreated': '2024-01-01T00:00:00.000Z',
    }

  def _list(self, bucket, prefix):
    folder = self.server.root / bucket / prefix
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [f'{prefix.rstrip("/")}/{entry.name}' for entry in entries]
    both = list(zip(names, entries, strict=True))
    answer = {
      'items': [self._info(bucket, n) for n, e in both if e.is_file()],
      'prefixes': [f'{n}/' for n, e in both if e.is_dir()],
    }
    self._answer(200, json.dumps(answer).encode())

  def _download(self, bucket, name):
    content = (self.server.root / bucket / name).read_bytes()
    status = 200
    if asked := self.headers.get('Range'):
      start, stop = asked.removeprefix('bytes=').split('-')
      content, status = content[int(start) : int(stop) + 1], 206
    self.server.reads.append((f'{bucket}/{name}', len(content)))
    self._answer(status, content)


def hide_library(patch):
  """As if gcsfs were not installed."""
  patch.setitem(sys.modules, 'gcsfs', None)
  registry = importlib.import_module('fsspec.registry')
  patch.delitem(registry._registry, 'gs', raising=False)


@contextlib.contextmanager
def serve(root, patch):
  """Serves the folders of `root` as buckets; skips where gcsfs is missing.

  Args:
    root: folder of folders.
    patch: pytest's monkeypatch.
  """
  # Its support of zonal buckets asks Google itself what kind a bucket is.
  os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  gcsfs = pytest.importorskip('gcsfs')
  server = Server(root)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  patch.setenv(
    'STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}'
  )
  gcsfs.GCSFileSystem.clear_instance_cache()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    gcsfs.GCSFileSystem.clear_instance_cache()
