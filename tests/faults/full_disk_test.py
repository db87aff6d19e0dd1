"""A full disk: an error with path and room left, and nothing is lost."""

import errno
import json
import pathlib
import shutil
import signal
import subprocess

from etils import epath
import numpy as np
import pytest

from tests.faults import harness
from tract_jax import types
from tract_jax.data import manifest, orbax_store
from tract_jax.pipeline import workdir as workdir_lib

BALLAST = 'ballast'
EXPORT = 'export/tract'
# (task, what shows that it is under way, what shows that it is over).
MOMENTS = [
  *[('run', *harness.PHASES[p]) for p in ('stage 1', 'sampling', 'prediction')],
  ('export', f'{EXPORT}/manifest.json', f'{EXPORT}/README.md'),
]


@pytest.fixture
def disk(tmp_path):
  """A disk of 60 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = shutil.which('mount')
  if mount is None:
    pytest.skip('no disk of 60 MB: there is no mount')
  options = ['-t', 'tmpfs', '-o', 'size=60m', 'tmpfs', str(folder)]
  made = subprocess.run([mount, *options], capture_output=True, text=True)
  if made.returncode:
    pytest.skip(f'no disk of 60 MB: {made.stderr.strip()}')
  yield folder
  subprocess.run(['umount', '--lazy', str(folder)], check=True)


def fill(disk: pathlib.Path) -> None:
  """Leaves no byte; `empty` undoes it."""
  with open(disk / BALLAST, 'ab', buffering=0) as file:
    try:
      while True:
        file.write(bytes(2**20))
    except OSError as error:
      assert error.errno == errno.ENOSPC


def empty(disk: pathlib.Path) -> None:
  (disk / BALLAST).unlink()


def test_a_full_workdir_is_found_before_anything_begins(disk):
  folder = epath.Path(disk / 'run')
  folder.mkdir()
  fill(disk)
  with pytest.raises(types.InputError, match='0.0 MB are free there') as error:
    with workdir_lib.use(folder):
      pass
  assert f'workdir {folder}' in str(error.value)
  assert not list(folder.glob('.probe*'))
  empty(disk)
  with workdir_lib.use(folder):
    pass


def test_a_full_disk_leaves_steps_and_files_as_they_were(disk):
  path = disk / 'a.json'
  arrays = {'a': np.arange(10_000)}
  with orbax_store.Store(disk / 'steps') as store:
    store.save(0, arrays, {})
    manifest.write_json_atomic(path, {'x': 1})
    store.wait()
    fill(disk)
    with pytest.raises(types.InputError, match='step 1 cannot be saved') as e:
      store.save(1, arrays, {})
      store.wait()
    assert 'MB are free there' in str(e.value) and str(disk) in str(e.value)
    with pytest.raises(types.InputError, match='No space left') as e:
      manifest.write_json_atomic(path, {'x': 'y' * 10_000})
    assert str(e.value).startswith(f'{path}: cannot be written: ')
    assert 'MB are free there' in str(e.value)
    assert json.loads(path.read_bytes()) == {'x': 1}
    assert store.steps() == [0]
    np.testing.assert_array_equal(store.load(0)[0]['a'], arrays['a'])
    empty(disk)
    store.save(1, arrays, {})
    store.wait()
    assert store.steps() == [0, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_disk_that_fills_up_in_each_phase_loses_nothing(disk, undisturbed):
  workdir = disk / 'run'
  before: dict = {}
  for task, begun, over in MOMENTS:
    process = harness.start(workdir, task)
    harness.wait_for(workdir / begun, process)
    process.send_signal(signal.SIGSTOP)
    assert not (workdir / over).exists(), f'{begun}: it was over before'
    fill(disk)
    process.send_signal(signal.SIGCONT)
    output = harness.finish(process, 2)
    # Orbax logs the trouble of its threads beside our line.
    errors = [x for x in output.splitlines() if x.startswith('error: ')]
    assert len(errors) == 1, output
    assert errors[0].startswith(f'error: {workdir}'), errors
    assert errors[0].endswith(' MB are free there'), errors
    assert harness.read_all(workdir) > 0
    after = harness.pieces(workdir)
    assert not harness.redone(before, after)
    before = after
    empty(disk)
  harness.finish(harness.start(workdir))
  assert harness.results(workdir) == harness.results(undisturbed)
