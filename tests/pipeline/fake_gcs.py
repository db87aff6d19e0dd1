"""A server on 127.0.0.1 that answers as Google Cloud Storage does.

Buckets are the folders of a local folder, objects the files in them. `gcsfs` is
sent to it by STORAGE_EMULATOR_HOST, TensorStore, by which Orbax writes arrays,
by TENSORSTORE_GCS_HTTP_URL; so are the processes that a test starts.

Of uploads it knows the three kinds that these libraries use: the content alone
("media"), after a JSON object ("multipart"), and in requests of its own
("resumable"). An object is there when all of it came.
"""

import contextlib
import email
import hashlib
import http.server
import importlib
import json
import os
import pathlib
import re
import sys
import threading
from typing import Any
import urllib.parse

import pytest

_PATH = re.compile(r'(?:/\w+)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+))?)?(/.*)?')
_TIME = '2024-01-01T00:00:00.000Z'


class Server(http.server.ThreadingHTTPServer):
  """A server of the folders of `root`.

  Attributes:
    root: folder of folders.
    reads: (object, bytes sent) of every download.
    status: what every request for reading is answered with, if not 200.
    status_of_buckets: the same of requests about a bucket itself.
  """

  # Many files come at once; what does not fit waits for seconds.
  request_queue_size = 1024

  def __init__(self, root: pathlib.Path):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.root = root
    self.reads: list[tuple[str, int]] = []
    self.status = self.status_of_buckets = 200
    self.uploads: dict[str, list[Any]] = {}
    self.changes = threading.RLock()

  def handle_error(self, *unused):
    """gcsfs asks what a name is in two ways, and hears one answer alone."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(*unused)

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_port}'

  def names(self, bucket: str, prefix: str) -> list[str]:
    """The names of a bucket's objects that begin with `prefix`, in order."""
    top = self.root / bucket
    folder = top / prefix.rpartition('/')[0]
    paths = (pathlib.Path(at, f) for at, _, fs in os.walk(folder) for f in fs)
    names = (str(path.relative_to(top)) for path in paths)
    return sorted(name for name in names if name.startswith(prefix))

  def write(self, path: pathlib.Path, content: bytes) -> None:
    with self.changes:
      path.parent.mkdir(parents=True, exist_ok=True)
      # Beside all buckets, until it is whole.
      whole = self.root / f'.upload{threading.get_ident()}'
      whole.write_bytes(content)
      os.replace(whole, path)

  def delete(self, path: pathlib.Path) -> None:
    with self.changes:
      path.unlink()
      # A bucket has no folders, and so no empty ones.
      for folder in path.parents:
        if folder.parent == self.root or any(folder.iterdir()):
          break
        folder.rmdir()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True
  server: Server

  def log_message(self, *args):
    del args

  def parse_request(self):
    """Splits what is asked for into bucket, object, the rest and the query."""
    if not super().parse_request():
      return False
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    self.bucket, name, self.rest = _PATH.fullmatch(url.path).groups(default='')
    self.name = urllib.parse.unquote(name)
    self.file = self.server.root / self.bucket / self.name
    self.is_download = 'download' in url.path or 'alt' in self.query
    return True

  def _answer(self, status, body=b'', headers=None):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _error(self, status, message):
    self._answer(status, {'error': {'code': status, 'message': message}})

  def do_GET(self):  # noqa: N802
    if self.server.status != 200:
      self._error(self.server.status, 'no storage.objects.list access')
    elif self.path.partition('?')[0].endswith(f'/b/{self.bucket}'):
      self._about_bucket()
    elif not self.name:
      self._list(self.query.get('prefix', ''), self.query.get('delimiter'))
    elif not self.file.is_file():
      self._error(404, f'No such object: {self.bucket}/{self.name}')
    elif self.is_download:
      self._download()
    else:
      self._answer(200, self._info(self.name))

  def _about_bucket(self):
    if self.server.status_of_buckets == 200:
      self._answer(200, {'name': self.bucket, 'kind': 'storage#bucket'})
    else:
      self._error(
        self.server.status_of_buckets, 'no storage.buckets.get access'
      )

  def _info(self, name):
    path = self.server.root / self.bucket / name
    found = path.stat()
    return {
      'bucket': self.bucket,
      'name': name,
      'size': str(found.st_size),
      'generation': str(found.st_mtime_ns),
      'metageneration': '1',
      'updated': _TIME,
      'timeCreated': _TIME,
    }

  def _list(self, prefix, delimiter):
    names, prefixes = [], set()
    for name in self.server.names(self.bucket, prefix):
      head, found, _ = name[len(prefix) :].partition(delimiter or '\n')
      if found:
        prefixes.add(f'{prefix}{head}{delimiter}')
      else:
        names.append(name)
    # An object may go while it is listed.
    with self.server.changes:
      known = [
        n for n in names if (self.server.root / self.bucket / n).exists()
      ]
      items = [self._info(name) for name in known]
    self._answer(200, {'items': items, 'prefixes': sorted(prefixes)})

  def _download(self):
    with self.file.open('rb') as file:
      generation = str(os.fstat(file.fileno()).st_mtime_ns)
      content, status = file.read(), 200
    if self.query.get('ifGenerationNotMatch') == generation:
      self._answer(304)
      return
    headers = {'x-goog-generation': generation}
    if asked := self.headers.get('Range'):
      start, stop = asked.removeprefix('bytes=').split('-')
      size = len(content)
      begin = int(start) if start else max(size - int(stop), 0)
      end = min(int(stop) + 1, size) if start and stop else size
      content, status = content[begin:end], 206
      headers['Content-Range'] = f'bytes {begin}-{end - 1}/{size}'
    self.server.reads.append((f'{self.bucket}/{self.name}', len(content)))
    self._answer(status, content, headers)

  def do_DELETE(self):  # noqa: N802
    if key := self.query.get('upload_id'):
      self.server.uploads.pop(key)
      self._answer(499)
      return
    try:
      self.server.delete(self.file)
    except (FileNotFoundError, IsADirectoryError):
      self._error(404, f'No such object: {self.bucket}/{self.name}')
    else:
      self._answer(204)

  def do_POST(self):  # noqa: N802
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    kind = self.query.get('uploadType')
    if self.rest:
      self._copy()
    elif kind == 'media':
      self._upload(self.query['name'], body)
    elif kind == 'multipart':
      kind = f'Content-Type: {self.headers["Content-Type"]}\n\n'.encode()
      about, content = email.message_from_bytes(kind + body).get_payload()
      name = json.loads(about.get_payload())['name']
      self._upload(name, content.get_payload(decode=True))
    elif 'upload_id' in self.query:
      self._go_on(body)
    else:
      name = self.query.get('name') or json.loads(body)['name']
      key = hashlib.sha256(os.urandom(8)).hexdigest()
      self.server.uploads[key] = [name, b'']
      place = f'{self.server.url}{self.path}&upload_id={key}'
      self._answer(200, {}, {'Location': place})

  do_PUT = do_POST  # noqa: N815

  def _upload(self, name, content):
    path = self.server.root / self.bucket / name
    with self.server.changes:
      there = str(path.stat().st_mtime_ns) if path.exists() else '0'
      if self.query.get('ifGenerationMatch', there) != there:
        self._error(412, 'conditionNotMet')
        return
      self.server.write(path, content)
      self._answer(200, self._info(name))

  def _go_on(self, body):
    """A piece of an object; "bytes 0-9/20" are the first ten of twenty."""
    upload = self.server.uploads[self.query['upload_id']]
    upload[1] += body
    if self.headers.get('Content-Range', '').endswith('/*'):
      self._answer(308, headers={'Range': f'bytes=0-{len(upload[1]) - 1}'})
    else:
      self._upload(*upload)

  def _copy(self):
    """As `rewriteTo`, `copyTo` and `moveTo` do: /HOW/b/BUCKET/o/NAME."""
    *_, to = self.rest.partition('/o/')
    self._upload(urllib.parse.unquote(to), self.file.read_bytes())
    if 'moveTo' in self.rest:
      self.server.delete(self.file)


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
  gcsfs = pytest.importorskip('gcsfs')
  server = Server(root)
  thread = threading.Thread(
    target=server.serve_forever, args=(0.01,), daemon=True
  )
  thread.start()
  # Nobody is asked for credentials for some seconds.
  patch.setenv('NO_GCE_CHECK', 'true')
  patch.setenv('STORAGE_EMULATOR_HOST', server.url)
  patch.setenv('TENSORSTORE_GCS_HTTP_URL', server.url)
  gcsfs.GCSFileSystem.clear_instance_cache()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    gcsfs.GCSFileSystem.clear_instance_cache()
