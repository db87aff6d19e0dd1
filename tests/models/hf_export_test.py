"""Folders written here are read by transformers, and here, bit for bit."""

import json
import os
import pathlib
import socket
import subprocess
import sys

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tests.models import hf_weights_test
from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.models import (
  hf_config,
  hf_export,
  hf_weights,
  transformer,
)

FAMILIES = ('Llama', 'Mistral', 'Qwen2', 'Qwen3')
TOKENS = hf_export.TokenIds(bos=1, eos=(2,), pad=None)


def hf_folder(folder, family='Llama', tied=False, dtype='bfloat16', **kwargs):
  """A random model that transformers saved."""
  torch = pytest.importorskip('torch')
  import transformers

  config = getattr(transformers, f'{family}Config')(
    **hf_weights_test.SIZES, tie_word_embeddings=tied
  )
  torch.manual_seed(0)
  model = getattr(transformers, f'{family}ForCausalLM')(config)
  model.to(getattr(torch, dtype)).save_pretrained(folder, **kwargs)
  return model


def read_folder(folder, dtype):
  """The folder's config.json, architecture and params."""
  fields = json.loads((folder / 'config.json').read_text())
  config = hf_config.config_from_hf(fields)
  fns = transformer.make_model(config, dtype=jnp.dtype(dtype))
  params = hf_weights.load_params(folder, transformer.abstract_params(fns))
  return fields, config, params


def tensors_of(folder):
  """Every tensor of a folder by name, whatever the file."""
  tensors = {}
  for path in sorted(folder.glob('*.safetensors')):
    tensors |= safetensors.numpy.load_file(path)
  return tensors


def random_params(tied=False):
  """Float32 params, and the tensors that they are."""
  tensors = hf_weights_test.random_tensors(tied)
  params = hf_weights_test.expected_params(tensors)
  return jax.tree.map(jnp.asarray, params), tensors


def assert_same_bits(actual, expected):
  assert actual.keys() == expected.keys()
  for name, tensor in expected.items():
    assert actual[name].dtype == tensor.dtype, name
    assert actual[name].shape == tensor.shape, name
    assert actual[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('sharded', [False, True])
def test_folder_of_transformers_comes_back_bit_for_bit(
  tmp_path, family, tied, sharded
):
  given, written = tmp_path / 'given', tmp_path / 'written'
  max_shard_bytes = 10_000 if sharded else 10**9
  model = hf_folder(given, family, tied, max_shard_size=max_shard_bytes)
  fields, config, params = read_folder(given, 'bfloat16')
  hf_export.write_weights(
    written, params, dtype=jnp.bfloat16, max_shard_bytes=max_shard_bytes
  )
  hf_export.write_config(
    written, config, dtype=jnp.bfloat16, tokens=TOKENS, base_config=fields
  )

  assert_same_bits(tensors_of(written), tensors_of(given))
  assert ('lm_head.weight' in tensors_of(written)) != tied
  assert (written / hf_weights.INDEX_FILE).exists() == sharded
  reread = type(model).from_pretrained(written, dtype='auto')
  assert reread.config.to_dict() == {
    **model.config.to_dict(),
    '_name_or_path': str(written),
  }
  for name, tensor in model.state_dict().items():
    found = reread.state_dict()[name]
    assert found.dtype == tensor.dtype and found.equal(tensor), name


def test_shards_are_small_and_their_index_is_true(tmp_path):
  params, tensors = random_params()
  names = hf_export.write_weights(
    tmp_path, params, dtype=jnp.float32, max_shard_bytes=16_000
  )
  assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
  assert names[-1] == hf_weights.INDEX_FILE
  shards = names[:-1]
  assert shards[0] == f'model-00001-of-{len(shards):05d}.safetensors'
  index = json.loads((tmp_path / names[-1]).read_text())
  num_bytes = sum(tensor.nbytes for tensor in tensors.values())
  assert index['metadata'] == {'total_size': num_bytes}
  where = {}
  for shard in shards:
    with safetensors.safe_open(tmp_path / shard, 'numpy') as file:
      assert file.metadata() == {'format': 'pt'}
      where |= dict.fromkeys(file.keys(), shard)
    loaded = safetensors.numpy.load_file(tmp_path / shard)
    assert sum(t.nbytes for t in loaded.values()) <= 16_000
  assert where == index['weight_map']
  assert where.keys() == tensors.keys()


def test_cast_rounds_to_nearest(tmp_path):
  params, tensors = random_params()
  hf_export.write_weights(tmp_path, params, dtype='bfloat16')
  expected = {k: v.astype(jnp.bfloat16) for k, v in tensors.items()}
  assert_same_bits(tensors_of(tmp_path), expected)


@pytest.mark.parametrize('shape', [(2, 4), (8, 1)])
def test_sharded_params_are_written_as_whole_ones(tmp_path, shape):
  params, tensors = random_params()
  mesh = jax.make_mesh(shape, ('x', 'y'))
  placed = hf_weights_test.sharded_tree(params, mesh)
  params = jax.tree.map(
    lambda x, s: jax.device_put(x, s.sharding), params, placed
  )
  up_proj = params['layers']['mlp']['up_proj']['weight']
  assert not up_proj.is_fully_replicated
  hf_export.write_weights(tmp_path, params, dtype=jnp.float32)
  assert_same_bits(tensors_of(tmp_path), tensors)


def test_gathers_one_tensor_at_a_time_and_holds_one_shard(
  tmp_path, monkeypatch
):
  """The host never has more tensors than those of the shard being written."""
  params, tensors = random_params()
  events = []
  host_tensor, write_tensors = hf_export.host_tensor, hf_export.write_tensors

  def counting_host_tensor(*args, **kwargs):
    tensor = host_tensor(*args, **kwargs)
    events.append(tensor.shape)
    return tensor

  def counting_write_tensors(path, shard):
    assert [t.shape for t in shard.values()] == events
    events.clear()
    write_tensors(path, shard)

  monkeypatch.setattr(hf_export, 'host_tensor', counting_host_tensor)
  monkeypatch.setattr(hf_export, 'write_tensors', counting_write_tensors)
  names = hf_export.write_weights(
    tmp_path, params, dtype=jnp.float32, max_shard_bytes=20_000
  )
  assert len(names) > 3 and not events
  assert_same_bits(tensors_of(tmp_path), tensors)


def _write_in_process(process_id, port, folder):
  """One of two processes of two devices that together hold the params."""
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, process_id)
  mesh = jax.make_mesh((4, 1), ('x', 'y'))
  params, _ = random_params()
  placed = hf_weights_test.sharded_tree(params, mesh)

  def place(value, abstract):
    value = np.asarray(value)
    return jax.make_array_from_callback(
      value.shape, abstract.sharding, lambda index: value[index]
    )

  params = jax.tree.map(place, params, placed)
  assert not params['lm_head']['weight'].is_fully_addressable
  names = hf_export.write_weights(
    folder, params, dtype=jnp.float32, max_shard_bytes=20_000
  )
  print(json.dumps(names))


@pytest.mark.multiprocess
def test_two_processes_write_one_folder(tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  code = (
    'import sys; from tests.models import hf_export_test as t;'
    't._write_in_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])'
  )
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
  }
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code, str(i), str(port), str(tmp_path)],
      cwd=pathlib.Path(__file__).parents[2],
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=100)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  names = [json.loads(output.splitlines()[-1]) for output in outputs]
  assert names[0] == names[1] and len(names[0]) > 3
  assert sorted(names[0]) == sorted(path.name for path in tmp_path.iterdir())
  assert_same_bits(tensors_of(tmp_path), random_params()[1])


def test_adapters_and_other_dtypes_are_refused(tmp_path):
  params, _ = random_params()
  with pytest.raises(types.InputError, match="export dtype 'int8': must be"):
    hf_export.write_weights(tmp_path, params, dtype=jnp.int8)
  params['layers']['mlp']['up_proj']['lora_a'] = jnp.zeros((2, 32, 4))
  with pytest.raises(ValueError, match='up_proj/lora_a: merge adapters'):
    hf_export.write_weights(tmp_path, params, dtype=jnp.float32)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'present',
  ['model-00001-of-00002.safetensors', 'model.safetensors.index.json'],
)
def test_weights_of_another_export_are_not_left_to_mislead(tmp_path, present):
  (tmp_path / present).write_text('{}')
  params, _ = random_params()
  with pytest.raises(types.InputError, match=f'{present} is in the way'):
    hf_export.write_weights(tmp_path, params, dtype=jnp.float32)
  assert (tmp_path / present).read_text() == '{}'


def test_same_export_again_replaces_its_files(tmp_path):
  params, tensors = random_params()
  zeros = jax.tree.map(jnp.zeros_like, params)
  for tree in (zeros, params):
    hf_export.write_weights(
      tmp_path, tree, dtype=jnp.float32, max_shard_bytes=20_000
    )
  assert_same_bits(tensors_of(tmp_path), tensors)


def test_stopped_amid_shards_is_not_taken_for_whole(tmp_path, monkeypatch):
  params, _ = random_params()
  arguments = dict(dtype=jnp.float32, max_shard_bytes=20_000)
  hf_export.write_weights(tmp_path, params, **arguments)
  save_file, calls = safetensors.numpy.save_file, []

  def full_disk(tensors, path, metadata):
    calls.append(path)
    if len(calls) == 2:
      pathlib.Path(path).write_bytes(b'half')
      raise safetensors.SafetensorError('No space left on device')
    save_file(tensors, path, metadata)

  monkeypatch.setattr(safetensors.numpy, 'save_file', full_disk)
  other = jax.tree.map(lambda x: x + 1, params)
  with pytest.raises(OSError, match=r'00002-of.*: No space left'):
    hf_export.write_weights(tmp_path, other, **arguments)
  assert not list(tmp_path.glob('.*'))
  abstract = hf_weights_test.abstract_tree()
  with pytest.raises(types.InputError, match='neither model.safetensors nor'):
    hf_weights.load_params(tmp_path, abstract)


def test_folder_in_a_bucket(tmp_path, monkeypatch):
  params, tensors = random_params()
  folder = epath.Path('gs://bucket/export')
  with fake_gcs.serve(tmp_path, monkeypatch):
    for _ in range(2):
      names = hf_export.write_weights(
        folder, params, dtype=jnp.float32, max_shard_bytes=20_000
      )
    hf_export.write_json(folder / 'config.json', {'a': 1})
  served = tmp_path / 'bucket' / 'export'
  assert json.loads((served / 'config.json').read_text()) == {'a': 1}
  assert sorted(p.name for p in served.iterdir()) == sorted(
    [*names, 'config.json']
  )
  assert_same_bits(tensors_of(served), tensors)


def test_written_file_has_transposed_views_right_and_others_may_read_it(
  tmp_path,
):
  path = tmp_path / 'model.safetensors'
  matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
  hf_export.write_tensors(path, {'t': matrix.T})
  np.testing.assert_array_equal(
    safetensors.numpy.load_file(path)['t'], matrix.T
  )
  with safetensors.safe_open(path, 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}
  (tmp_path / 'other').touch()
  assert path.stat().st_mode == (tmp_path / 'other').stat().st_mode
  assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, 'other']
