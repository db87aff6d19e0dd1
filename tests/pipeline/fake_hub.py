"""A server on 127.0.0.1 that answers as the Hugging Face hub does.

It serves one commit of one model or dataset, the files of a local folder.
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

from huggingface_hub import constants

HUB_ID = 'org/judge'
COMMIT = '0123456789abcdef0123456789abcdef01234567'

# What the hub says when it gives nothing.
_ERRORS = {
  'gated': (403, 'GatedRepo'),
  'unknown': (401, 'RepoNotFound'),
  'revision': (404, 'RevisionNotFound'),
  'down': (503, ''),
}


class Server(http.server.ThreadingHTTPServer):
  """A server with what it was asked.

  Attributes: folder; kind, "models" or "datasets"; error, a key of _ERRORS or
  ""; gets, names; tokens.
  """

  def __init__(self, folder, kind):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.folder = folder
    self.kind = kind
    self.error = ''
    self.gets: list[str] = []
    self.tokens: set[str] = set()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    del args

  def _answer(self, status, body=b'', **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(body)

  def do_HEAD(self):  # noqa: N802
    self.do_GET()

  def do_GET(self):  # noqa: N802
    self.server.tokens.add(self.headers.get('Authorization', ''))
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    api = f'/api/{self.server.kind}/{HUB_ID}/'
    root = '/datasets' if self.server.kind == 'datasets' else ''
    tree = f'{api}tree/{COMMIT}'
    files = f'{root}/{HUB_ID}/resolve/{COMMIT}/'
    if self.server.error:
      status, code = _ERRORS[self.server.error]
      self._answer(status, X_Error_Code=code)
    elif path == tree:
      self._answer(200, json.dumps(self._entries()).encode())
    elif path.startswith(files):
      self._file(path.removeprefix(files))
    elif path.startswith((api, f'{root}/{HUB_ID}/')):
      self._answer(404, X_Error_Code='RevisionNotFound')
    else:
      self._answer(404, X_Error_Code='RepoNotFound')

  def _entries(self):
    names = [
      path.relative_to(self.server.folder).as_posix()
      for path in sorted(self.server.folder.rglob('*'))
      if path.is_file()
    ]
    return [
      {
        'type': 'file',
        'path': name,
        'size': (self.server.folder / name).stat().st_size,
        'oid': self._digest(name),
      }
      for name in names
    ]

  def _digest(self, name):
    content = (self.server.folder / name).read_bytes()
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()

  def _file(self, name):
    if self.command == 'GET':
      self.server.gets.append(name)
    self._answer(
      200,
      (self.server.folder / name).read_bytes(),
      ETag=f'"{self._digest(name)}"',
      X_Repo_Commit=COMMIT,
    )


@contextlib.contextmanager
def serve(folder, cache, patch, kind='models'):
  """Serves `folder` as the model or dataset, and sends huggingface_hub here.

  Args:
    folder: the files.
    cache: takes the place of the hub's cache.
    patch: pytest's monkeypatch.
    kind: "models" or "datasets".
  """
  server = Server(folder, kind)
  threading.Thread(
    target=server.serve_forever, args=(0.01,), daemon=True
  ).start()
  url = f'http://127.0.0.1:{server.server_port}'
  patch.setattr(constants, 'ENDPOINT', url)
  patch.setattr(
    constants,
    'HUGGINGFACE_CO_URL_TEMPLATE',
    url + '/{repo_id}/resolve/{revision}/{filename}',
  )
  patch.setattr(constants, 'HF_HUB_CACHE', str(cache))
  patch.setattr(constants, 'HF_HUB_OFFLINE', False)
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
