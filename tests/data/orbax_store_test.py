import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import orbax_store


class _Moments(NamedTuple):
  count: jax.Array
  mu: dict


def _tree():
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2**16, (8, 3), dtype=np.uint16)
  return {
    'params': {
      'w': jnp.asarray(bits.view(jnp.bfloat16)),
      'absent': None,
      'no_rows': jnp.zeros((0, 2), jnp.int32),
    },
    'opt': (_Moments(jnp.int32(3), {'w': jnp.ones((8, 3))}), (), {}),
    'host': [np.arange(5), np.float32(np.nan), np.array([True, False])],
  }


def _abstract(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None)
    ),
    tree,
  )


def _assert_same_bits(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _flip(folder: pathlib.Path, needle: bytes) -> None:
  """Flips one bit of the first place in the folder where `needle` stands."""
  for path in sorted(folder.rglob('*')):
    if path.is_file() and needle in (data := path.read_bytes()):
      place = data.index(needle)
      changed = bytes([data[place] ^ 1])
      path.write_bytes(data[:place] + changed + data[place + 1 :])
      return
  raise AssertionError(f'{needle!r} is in no file')


def test_a_tree_comes_back_bit_for_bit(tmp_path):
  tree = _tree()
  with orbax_store.Store(tmp_path) as store:
    store.save(7, tree, {'seed': 1, 'grid': (1, 2)})
    loaded, metadata = store.load(7, _abstract(tree))
    assert metadata == store.metadata(7) == {'seed': 1, 'grid': [1, 2]}
  _assert_same_bits(loaded, tree)
  assert isinstance(loaded['params']['w'], jax.Array)
  assert isinstance(loaded['host'][0], np.ndarray)


def test_without_a_target_it_comes_as_nested_numpy(tmp_path):
  tree = _tree()
  with orbax_store.Store(tmp_path) as store:
    store.save(0, tree, {})
    loaded, _ = store.load(0)
  assert loaded['params'].keys() == {'w', 'absent', 'no_rows'}
  assert loaded['params']['absent'] is None
  np.testing.assert_array_equal(loaded['opt']['0']['mu']['w'], np.ones((8, 3)))
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(loaded))


def test_a_tree_without_arrays_is_kept_too(tmp_path):
  with orbax_store.Store(tmp_path) as store:
    store.save(0, {'a': None, 'b': np.zeros((0, 4))}, {'x': 1})
    loaded, metadata = store.load(0)
  assert loaded['a'] is None
  assert loaded['b'].shape == (0, 4)
  assert metadata == {'x': 1}


def test_a_state_is_loaded_onto_other_devices(tmp_path):
  devices = np.array(jax.devices())
  values = jnp.arange(64, dtype=jnp.int32).reshape(8, 8)
  old = NamedSharding(jax.sharding.Mesh(devices, 'x'), PartitionSpec('x'))
  new = NamedSharding(
    jax.sharding.Mesh(devices[:2], 'y'), PartitionSpec(None, 'y')
  )
  with orbax_store.Store(tmp_path) as store:
    store.save(0, {'w': jax.device_put(values, old)}, {})
    wanted = jax.ShapeDtypeStruct((8, 8), jnp.int32, sharding=new)
    loaded, _ = store.load(0, {'w': wanted})
  assert loaded['w'].sharding == new
  np.testing.assert_array_equal(loaded['w'], values)


def test_what_is_changed_after_save_is_not_in_it(tmp_path):
  host = np.zeros((512, 512), np.float32)
  device = jnp.zeros((512, 512))
  add_one = jax.jit(lambda x: x + 1, donate_argnums=0)
  with orbax_store.Store(tmp_path) as store:
    store.save(0, {'host': host, 'device': device}, {})
    host += 1
    add_one(device).block_until_ready()
    loaded, _ = store.load(0)
  assert not loaded['host'].any()
  assert not loaded['device'].any()


def test_old_steps_are_deleted_and_steps_are_ascending(tmp_path):
  with orbax_store.Store(tmp_path, max_to_keep=2) as store:
    assert store.steps() == []
    for step in (8, 9, 10):
      store.save(step, {'a': np.full(3, step)}, {})
    store.wait()
    assert store.steps() == [9, 10]
  with orbax_store.Store(tmp_path) as store:
    for step in (3, 1):
      store.save(step, {'a': np.full(3, step)}, {})
    store.wait()
    assert store.steps() == [1, 3, 9, 10]
    assert store.load(10)[0]['a'][0] == 10
  assert sorted(os.listdir(tmp_path)) == ['1', '10', '3', '9']


def test_a_step_is_not_written_twice(tmp_path):
  with orbax_store.Store(tmp_path) as store:
    store.save(1, {'a': np.zeros(3)}, {'first': True})
    with pytest.raises(types.InputError, match='step 1 exists already'):
      store.save(1, {'a': np.ones(3)}, {})
    assert store.metadata(1) == {'first': True}
    with pytest.raises(types.InputError, match='there is no step 2'):
      store.load(2)


def test_another_structure_shape_or_dtype_is_named_not_cast(tmp_path):
  with orbax_store.Store(tmp_path) as store:
    saved = {'a': np.zeros((2, 3), np.float32), 'b': np.zeros(2), 'n': None}
    store.save(4, saved, {})
    wanted = {
      'a': jax.ShapeDtypeStruct((2, 3), jnp.bfloat16),
      'b': jax.ShapeDtypeStruct((3,), np.float64),
      'c': jax.ShapeDtypeStruct((), np.int32),
      'n': jax.ShapeDtypeStruct((1,), np.int32),
    }
    with pytest.raises(types.InputError) as error:
      store.load(4, wanted)
  place = f'{tmp_path}: step 4: leaf'
  assert str(error.value).splitlines() == [
    f'{place} a: stored float32[2, 3], wanted bfloat16[2, 3]',
    f'{place} b: stored float64[2], wanted float64[3]',
    f'{place} c: stored nothing, wanted int32[]',
    f'{place} n: stored None, wanted int32[1]',
  ]


def test_a_tree_that_cannot_be_stored_leaves_nothing(tmp_path):
  with orbax_store.Store(tmp_path) as store:
    with pytest.raises(TypeError, match='leaf b: not an array'):
      store.save(0, {'a': np.zeros(1), 'b': 'text'}, {})
    assert store.steps() == []


def test_a_flipped_bit_in_an_array_is_named(tmp_path):
  needle = np.arange(1000, 2000, dtype=np.int32)
  with orbax_store.Store(tmp_path) as store:
    store.save(3, {'good': np.zeros(9), 'bad': {'x': needle}}, {})
    store.wait()
    _flip(tmp_path / '3', needle[500:510].tobytes())
    with pytest.raises(orbax_store.DamagedError) as error:
      store.load(3)
  assert str(error.value).startswith(
    f'{tmp_path}: step 3: leaf bad/x is damaged: checksum'
  )


def test_a_changed_digit_in_the_metadata_is_seen(tmp_path):
  with orbax_store.Store(tmp_path) as store:
    store.save(3, {'a': np.zeros(9)}, {'seed': 12345})
    store.wait()
    _flip(tmp_path / '3', b'12345')
    with pytest.raises(orbax_store.DamagedError, match='metadata is damaged'):
      store.metadata(3)


@pytest.mark.parametrize('victim', ['state/_METADATA', 'state/manifest.ocdbt'])
@pytest.mark.parametrize('how', ['cut', 'removed'])
def test_a_cut_or_missing_file_is_one_line(tmp_path, victim, how):
  with orbax_store.Store(tmp_path) as store:
    store.save(3, {'a': np.zeros(9)}, {})
    store.wait()
    path = tmp_path / '3' / victim
    if how == 'cut':
      path.write_bytes(path.read_bytes()[:20])
    else:
      path.unlink()
    with pytest.raises(orbax_store.DamagedError) as error:
      store.load(3)
  assert str(error.value).startswith(f'{tmp_path}: step 3')
  assert len(str(error.value).splitlines()) == 1


_CANNOT_SAVE = """
import resource
import signal
import sys
import numpy as np
from tract_jax import types
from tract_jax.data import orbax_store
def refused(store, step, size):
  try:
    store.save(step, {'a': np.zeros(size)}, {})
    store.wait()
  except types.InputError as error:
    print(error)
refused(orbax_store.Store(sys.argv[1] + '/a_file/below'), 0, 3)
store = orbax_store.Store(sys.argv[1] + '/full')
store.save(0, {'a': np.zeros(3)}, {})
store.wait()
# A limit on the size of files stands for a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
refused(store, 1, 100_000)
store.save(2, store.load(0)[0], {})
store.wait()
print(store.steps())
"""


def test_a_save_that_fails_is_one_line_and_harms_nothing(tmp_path):
  (tmp_path / 'a_file').write_text('')
  # Also that the program ends: Orbax's threads can hold it for minutes.
  output = subprocess.run(
    [sys.executable, '-c', _CANNOT_SAVE, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    timeout=60,
    check=True,
  ).stdout.splitlines()
  assert output[0].startswith(
    f'{tmp_path}/a_file/below: step 0 cannot be saved: NotADirectoryError'
  )
  assert output[1].startswith(f'{tmp_path}/full: step 1 cannot be saved: ')
  assert output[2:] == ['[0, 2]']


_SAVES_FOR_EVER = """
import sys
import numpy as np
from tract_jax.data import orbax_store
store = orbax_store.Store(sys.argv[1], max_to_keep=3)
for step in range(1, 1000):
  store.save(step, {'a': np.full((256, 1024), step, np.int32)}, {'i': step})
  print(step, flush=True)
"""


@pytest.mark.parametrize('delay', [0.0, 0.02, 0.05])
def test_after_kill_9_what_is_finished_loads(tmp_path, delay):
  process = subprocess.Popen(
    [sys.executable, '-c', _SAVES_FOR_EVER, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  while int(process.stdout.readline()) < 4:
    pass
  time.sleep(delay)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  with orbax_store.Store(tmp_path, max_to_keep=3) as store:
    latest = store.steps()[-1]
    assert latest >= 3
    loaded, metadata = store.load(latest)
    assert metadata == {'i': latest}
    assert (loaded['a'] == latest).all()
    # The step that was cut short is simply saved again.
    store.save(latest + 1, loaded, {})
    store.wait()
    assert store.steps()[-1] == latest + 1
    assert len(store.steps()) == 3


_TWO_PROCESSES = """
import sys
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import jax.numpy as jnp
import numpy as np
from tract_jax import types
from tract_jax.data import orbax_store

def together(folder):
  mesh = jax.make_mesh((4,), ('x',))
  whole = np.arange(32, dtype=np.float32).reshape(4, 8)
  place = lambda spec: NamedSharding(mesh, spec)
  abstract = jax.ShapeDtypeStruct
  state = {
    'rows': jax.device_put(whole, place(P('x'))),
    'all': jax.device_put(whole, place(P())),
    'step': jax.device_put(jnp.int32(3), place(P())),
  }
  wanted = {
    'rows': abstract((4, 8), 'float32', sharding=place(P(None, 'x'))),
    'all': abstract((4, 8), 'float32', sharding=place(P('x'))),
    'step': abstract((), 'int32', sharding=place(P())),
  }
  with orbax_store.Store(folder, max_to_keep=1) as store:
    store.save(0, state, {'x': 0})
    store.save(1, state, {'x': 1})
    loaded, metadata = store.load(1, wanted)
    assert metadata == {'x': 1}
    for shard in loaded['rows'].addressable_shards:
      np.testing.assert_array_equal(shard.data, whole[shard.index])
    assert store.steps() == [1], store.steps()

def apart(folder, rank):
  with orbax_store.Store(folder, local=True) as store:
    for chunk in range(rank, 3, 2):  # Two and one: nobody waits for the other.
      store.save(chunk, {'a': np.full(5, chunk)}, {'by': rank})
      store.wait()
      assert store.load(chunk)[0]['a'][0] == chunk
    with open(folder + '_file', 'w'):
      pass
  with orbax_store.Store(folder + '_file/x', local=True) as store:
    try:
      store.save(0, {'a': np.zeros(5)}, {})
      store.wait()
    except types.InputError as error:
      print('refused', error)

if __name__ == '__main__':
  rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, rank)
  together(folder + '/global')
  apart(folder + '/local', rank)
  print('done', flush=True)
"""


@pytest.mark.multiprocess
def test_two_processes_save_together_and_apart(tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
  }
  script = tmp_path / 'script.py'
  script.write_text(_TWO_PROCESSES)
  processes = [
    subprocess.Popen(
      [sys.executable, str(script), str(r), str(port), str(tmp_path)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for r in range(2)
  ]
  outputs = [process.communicate(timeout=120)[0] for process in processes]
  for output in outputs:
    assert 'done' in output, '\n'.join(outputs)
    assert 'refused' in output, '\n'.join(outputs)
  with orbax_store.Store(tmp_path / 'global') as store:
    loaded, _ = store.load(1)
    np.testing.assert_array_equal(loaded['rows'], np.arange(32.0).reshape(4, 8))
  with orbax_store.Store(tmp_path / 'local') as store:
    assert store.steps() == [0, 1, 2]
    assert [store.metadata(i)['by'] for i in range(3)] == [0, 1, 0]


def test_folder_may_be_relative(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with orbax_store.Store('runs/store') as store:
    store.save(1, {'w': jnp.ones(3)}, {})
  monkeypatch.chdir('/')
  with orbax_store.Store(tmp_path / 'runs' / 'store') as store:
    np.testing.assert_array_equal(store.load(1)[0]['w'], np.ones(3))
