"""Tests of tract_jax.data.saving_process: one process serves many saves."""

import os
import signal
import subprocess
import sys
import time

from etils import epath
import numpy as np
import pytest

from tract_jax.data import orbax_store, saving_process

_ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture(scope='module')
def saver():
  saver = saving_process.SavingProcess()
  yield saver
  saver.close()


def save(saver, folder, step) -> None:
  """As a Store does among several processes."""
  store = orbax_store.Store(folder, local=True)
  store._start = saver.start
  store.save(step, _ARRAYS, {'step': step})
  store.close()


@pytest.mark.slow
def test_saves_are_those_of_the_store_itself(saver, tmp_path):
  for step in (0, 1):
    save(saver, tmp_path, step)
  first = saver._process.pid
  with orbax_store.Store(tmp_path) as store:
    assert store.steps() == [0, 1]
    arrays, metadata = store.load(1)
  np.testing.assert_array_equal(arrays['a'], _ARRAYS['a'])
  assert metadata == {'step': 1}
  # What goes wrong there is told here, and it goes on.
  path = epath.Path(tmp_path / 'file' / '7')
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='file'):
    saver.start(path, _ARRAYS, {}).result()
  save(saver, tmp_path, 2)
  assert saver._process.pid == first


@pytest.mark.slow
def test_a_killed_process_is_told_and_replaced(saver, tmp_path):
  save(saver, tmp_path, 0)
  killed = saver._process.pid
  os.kill(killed, signal.SIGSTOP)
  saver.start(epath.Path(tmp_path / '1'), _ARRAYS, {})
  os.kill(killed, signal.SIGKILL)
  with pytest.raises(OSError, match='was killed'):
    saver.result()
  save(saver, tmp_path, 2)
  assert saver._process.pid != killed


_SERVED = """
import numpy as np
from etils import epath
from tract_jax.data import saving_process
saver = saving_process.SavingProcess()
saver.start(epath.Path({path!r}) / '0', {{'a': np.zeros(2)}}, {{}}).result()
saver.start(epath.Path({path!r}) / '1', {{'a': np.zeros(2**25)}}, {{}})
print(saver._process.pid, flush=True)
input()
"""


@pytest.mark.slow
def test_it_ends_with_the_process_that_it_serves_and_amid_a_save(tmp_path):
  program = _SERVED.format(path=str(tmp_path))
  served = subprocess.Popen(
    [sys.executable, '-c', program],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  pid = int(served.stdout.readline())
  assert os.path.exists(f'/proc/{pid}')
  served.kill()
  served.communicate()
  deadline = time.monotonic() + 20
  while os.path.exists(f'/proc/{pid}'):
    # A zombie that nobody waits for has ended, too.
    if open(f'/proc/{pid}/stat').read().split()[2] == 'Z':
      break
    assert time.monotonic() < deadline
    time.sleep(0.05)
  with orbax_store.Store(tmp_path) as store:
    assert store.steps() == [0]
