"""A headless Chromium, driven over pipes with its own protocol.

https://chromedevtools.github.io/devtools-protocol: JSON objects, each ended by
a NUL, on file descriptors 3 and 4.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_TIMEOUT_SECS = 60


def find():
  """The browser of this machine, or None."""
  return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
  """A page, with what was said and asked for since it was opened."""

  def __init__(self, process, to_browser, from_browser):
    self._process = process
    self._to, self._from = to_browser, from_browser
    self._buffer, self._number, self._session = b'', 0, None
    self.problems: list = []
    self.requests: list[str] = []
    self._loaded = False
    target = self._call('Target.createTarget', url='about:blank')['targetId']
    self._session = self._call(
      'Target.attachToTarget', targetId=target, flatten=True
    )['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self._call(f'{domain}.enable')

  def open(self, url, width, height):
    """Opens a page; returns the seconds until it was loaded."""
    self._call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )
    self._loaded, start = False, time.monotonic()
    self.problems, self.requests = [], []
    self._call('Page.navigate', url=url)
    while not self._loaded:
      self._read()
    return time.monotonic() - start

  def run(self, script):
    """The value of a script's last expression."""
    found = self._call(
      'Runtime.evaluate', expression=script, returnByValue=True
    )
    assert 'exceptionDetails' not in found, found
    return found['result'].get('value')

  def _call(self, method, **params):
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._to, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._read()
      if answer.get('id') == self._number:
        assert 'result' in answer, answer
        return answer['result']

  def _read(self):
    end = time.monotonic() + _TIMEOUT_SECS
    while b'\0' not in self._buffer:
      ready, _, _ = select.select([self._from], [], [], end - time.monotonic())
      assert ready and self._process.poll() is None, 'the browser is silent'
      self._buffer += os.read(self._from, 1 << 20)
    text, self._buffer = self._buffer.split(b'\0', 1)
    message = json.loads(text)
    method, params = message.get('method'), message.get('params', {})
    if method in ('Runtime.consoleAPICalled', 'Runtime.exceptionThrown'):
      self.problems.append(params)
    elif method == 'Log.entryAdded':
      self.problems.append(params['entry'])
    elif method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])
    elif method == 'Page.loadEventFired':
      self._loaded = True
    return message


@contextlib.contextmanager
def page(profile):
  """A page of a browser that ends with the block.

  Args:
    profile: a folder for what it keeps.
  """
  read_end, to_browser = os.pipe()
  from_browser, write_end = os.pipe()
  command = [
    *('bash', '-c', f'exec "$@" 3<&{read_end} 4>&{write_end}', 'bash'),
    *(find(), '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run'),
    *('--disable-dev-shm-usage', '--remote-debugging-pipe'),
    f'--user-data-dir={profile}',
  ]
  process = subprocess.Popen(
    command,
    pass_fds=(read_end, write_end),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(read_end)
  os.close(write_end)
  try:
    yield Page(process, to_browser, from_browser)
  finally:
    process.kill()
    process.wait()
    os.close(to_browser)
    os.close(from_browser)
