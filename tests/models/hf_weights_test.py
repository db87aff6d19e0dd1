"""Tests of reading Hugging Face folders that are as they should be."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import safetensors.numpy

from tract_jax.models import hf_config as hf_config_lib
from tract_jax.models import hf_export, hf_weights, tensor_files, transformer

NUM_LAYERS = 2
SIZES = dict(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=NUM_LAYERS,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  max_position_embeddings=128,
)


def abstract_tree(tied=False, dtype=jnp.float32, **kwargs):
  config = hf_config_lib.config_from_hf(
    {'model_type': 'llama', 'tie_word_embeddings': tied, **SIZES}
  )
  return transformer.abstract_params(
    transformer.make_model(config, dtype=dtype, **kwargs)
  )


def random_tensors(tied=False):
  """A model's tensors under Hugging Face's names and layout."""
  rng = np.random.default_rng(0)
  shapes = {'model.embed_tokens.weight': (64, 32), 'model.norm.weight': (32,)}
  for layer in range(NUM_LAYERS):
    for name, shape in {
      'input_layernorm': (32,),
      'self_attn.q_proj': (32, 32),
      'self_attn.k_proj': (16, 32),
      'self_attn.v_proj': (16, 32),
      'self_attn.o_proj': (32, 32),
      'post_attention_layernorm': (32,),
      'mlp.gate_proj': (48, 32),
      'mlp.up_proj': (48, 32),
      'mlp.down_proj': (32, 48),
    }.items():
      shapes[f'model.layers.{layer}.{name}.weight'] = shape
  if not tied:
    shapes['lm_head.weight'] = (64, 32)
  return {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def expected_params(tensors):
  """The parameter tree, spelt out."""
  blocks = [f'model.layers.{layer}' for layer in range(NUM_LAYERS)]

  def stacked(name):
    return {'weight': np.stack([tensors[f'{b}.{name}.weight'] for b in blocks])}

  def kernels(name):
    return {'weight': stacked(name)['weight'].swapaxes(1, 2)}

  params = {
    'embed_tokens': {'weight': tensors['model.embed_tokens.weight']},
    'layers': {
      'input_layernorm': stacked('input_layernorm'),
      'self_attn': {
        name: kernels(f'self_attn.{name}')
        for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj')
      },
      'post_attention_layernorm': stacked('post_attention_layernorm'),
      'mlp': {
        name: kernels(f'mlp.{name}')
        for name in ('gate_proj', 'up_proj', 'down_proj')
      },
    },
    'norm': {'weight': tensors['model.norm.weight']},
  }
  if 'lm_head.weight' in tensors:
    params['lm_head'] = {'weight': tensors['lm_head.weight'].T}
  return params


def write_shards(folder, tensors):
  """Two shards and their index."""
  names = sorted(tensors)
  shards = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  for file, members in shards.items():
    safetensors.numpy.save_file({n: tensors[n] for n in members}, folder / file)
  weight_map = {n: file for file, members in shards.items() for n in members}
  index = {'metadata': {}, 'weight_map': weight_map}
  (folder / hf_weights.INDEX_FILE).write_text(json.dumps(index))
  return weight_map


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('family', ['Llama', 'Mistral'])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('sharded', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_loads_what_transformers_saved(tmp_path, family, tied, sharded, dtype):
  torch = pytest.importorskip('torch')
  import transformers

  config = getattr(transformers, f'{family}Config')(
    **SIZES, tie_word_embeddings=tied
  )
  torch.manual_seed(0)
  model = getattr(transformers, f'{family}ForCausalLM')(config)
  model = model.to(getattr(torch, dtype))
  model.save_pretrained(tmp_path, max_shard_size='10KB' if sharded else '1GB')
  assert (tmp_path / hf_weights.INDEX_FILE).exists() == sharded

  read_config = hf_config_lib.config_from_hf(
    json.loads((tmp_path / 'config.json').read_text())
  )
  fns = transformer.make_model(read_config, dtype=jnp.dtype(dtype))
  params = hf_weights.load_params(tmp_path, transformer.abstract_params(fns))

  state = {k: v.float().numpy() for k, v in model.state_dict().items()}
  if tied:
    del state['lm_head.weight']
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
  as_float = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  assert_same(as_float, expected_params(state))


@pytest.mark.parametrize('stored', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('wanted', ['float32', 'bfloat16'])
def test_casts_to_the_wanted_dtype(tmp_path, stored, wanted):
  tensors = {
    k: v.astype(jnp.dtype(stored)) for k, v in random_tensors().items()
  }
  hf_export.write_tensors(tmp_path / 'model.safetensors', tensors)
  abstract = abstract_tree(dtype=jnp.dtype(wanted))
  params = hf_weights.load_params(tmp_path, abstract)
  expected = jax.tree.map(
    lambda x: x.astype(jnp.dtype(wanted)), expected_params(tensors)
  )
  assert_same(params, expected)


def test_leaves_adapters_as_given(tmp_path):
  tensors = random_tensors()
  hf_export.write_tensors(tmp_path / 'model.safetensors', tensors)
  abstract = abstract_tree(lora_rank=2)
  params = hf_weights.load_params(tmp_path, abstract)
  q_proj = params['layers']['self_attn']['q_proj']
  for name in ('lora_a', 'lora_b'):
    given = abstract['layers']['self_attn']['q_proj'][name]
    assert q_proj[name] is given
  expected = expected_params(tensors)['layers']['self_attn']['q_proj']
  np.testing.assert_array_equal(q_proj['weight'], expected['weight'])


class CountingView:
  """A tensor in a file that notes how many elements each read takes."""

  def __init__(self, view, reads):
    self._view, self._reads = view, reads
    self.get_shape, self.get_dtype = view.get_shape, view.get_dtype

  def __getitem__(self, index):
    part = self._view[index]
    self._reads.append(part.size)
    return part


def count_reads(patch, reads):
  """Fills `reads` with {tensor's name: elements of every read of it}."""
  open_folder = tensor_files.open_folder

  def counting_open_folder(folder, stack):
    return {
      name: tensor._replace(
        view=CountingView(tensor.view, reads.setdefault(name, []))
      )
      for name, tensor in open_folder(folder, stack).items()
    }

  patch(tensor_files, 'open_folder', counting_open_folder)


def sharded_tree(abstract, mesh):
  """Kernels over both axes of the mesh, the embedding over one, norms none."""

  def with_sharding(path, leaf):
    spec = [None] * len(leaf.shape)
    if path[0].key == 'embed_tokens':
      spec[0] = 'x'
    elif len(leaf.shape) > 1 and path[-2].key.endswith(('proj', 'lm_head')):
      spec[-2:] = ['x', 'y']
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(with_sharding, abstract)


@pytest.mark.parametrize('shape', [(2, 1), (2, 4), (1, 8)])
def test_devices_read_their_own_slices_once(tmp_path, monkeypatch, shape):
  tensors = random_tensors()
  write_shards(tmp_path, tensors)
  reads = {}
  count_reads(monkeypatch.setattr, reads)
  devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
  mesh = jax.sharding.Mesh(devices, ('x', 'y'))
  params = hf_weights.load_params(tmp_path, sharded_tree(abstract_tree(), mesh))
  assert_same(params, expected_params(tensors))
  down = params['layers']['mlp']['down_proj']['weight']
  shard_shape = (NUM_LAYERS, 48 // shape[0], 32 // shape[1])
  assert down.sharding.shard_shape(down.shape) == shard_shape
  assert {k: sum(v) for k, v in reads.items()} == {
    k: v.size for k, v in tensors.items()
  }
  assert set(reads['model.layers.1.mlp.down_proj.weight']) == {
    32 * 48 // devices.size
  }


def test_finish_gets_each_leaf_once_before_the_next_is_read(
  tmp_path, monkeypatch
):
  tensors = random_tensors()
  hf_export.write_tensors(tmp_path / 'model.safetensors', tensors)
  reads = {}
  count_reads(monkeypatch.setattr, reads)
  abstract = abstract_tree(lora_rank=2)
  num_read = []
  paths = []

  def finish(path, array):
    paths.append('.'.join(path))
    num_read.append(sum(len(sizes) > 0 for sizes in reads.values()))
    return {'doubled': 2 * array, 'kept': None}

  params = hf_weights.load_params(tmp_path, abstract, finish)
  assert len(paths) == len(set(paths)) == 12
  assert num_read == [
    1 if path == 'embed_tokens.weight' else num_read[i - 1] + number
    for i, path in enumerate(paths)
    for number in [NUM_LAYERS if path.startswith('layers') else 1]
  ]
  assert set(params['norm']['weight']) == {'doubled', 'kept'}
  np.testing.assert_array_equal(
    params['norm']['weight']['doubled'], 2 * tensors['model.norm.weight']
  )
  q_proj = params['layers']['self_attn']['q_proj']
  assert q_proj['lora_a'] is abstract['layers']['self_attn']['q_proj']['lora_a']


def test_at_most_one_shard_is_held_beside_the_devices(tmp_path, monkeypatch):
  hf_export.write_tensors(tmp_path / 'model.safetensors', random_tensors())
  empty, held = np.empty, []

  def tracked_empty(shape, dtype=None, **kwargs):
    # A buffer that was given to a device is freed before the next is made.
    assert all(buffer() is None for buffer in held)
    buffer = empty(shape, dtype, **kwargs)
    held.append(weakref.ref(buffer))
    return buffer

  # A CPU device may take the buffer itself for its array; here it copies.
  put = jax.device_put
  monkeypatch.setattr(
    jax, 'device_put', lambda x, *args: put(np.array(x), *args)
  )
  monkeypatch.setattr(np, 'empty', tracked_empty)
  mesh = jax.make_mesh((2, 4), ('x', 'y'))
  hf_weights.load_params(tmp_path, sharded_tree(abstract_tree(), mesh))
  # Eight shards of each of 8 kernels, two of the embedding, one of each norm.
  assert len(held) == 8 * 8 + 2 + 3


def _load_in_process(process_id, port, folder):
  """One of two processes of two devices; prints the elements it read.

  The local folder is split along the columns of its tensors, the remote one
  along their rows.
  """
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, process_id)
  expected = expected_params(random_tensors())

  def check(array, whole):
    for shard in array.addressable_shards:
      np.testing.assert_array_equal(shard.data, whole[shard.index])

  for address, shape in ((folder, (4, 1)), (f'file://{folder}', (1, 4))):
    reads = {}
    with pytest.MonkeyPatch.context() as patch:
      count_reads(patch.setattr, reads)
      mesh = jax.make_mesh(shape, ('x', 'y'))
      abstract = sharded_tree(abstract_tree(), mesh)
      jax.tree.map(check, hf_weights.load_params(address, abstract), expected)
    print(json.dumps({name: sum(sizes) for name, sizes in reads.items()}))


@pytest.mark.multiprocess
def test_a_process_reads_only_what_its_devices_hold(tmp_path):
  tensors = random_tensors()
  write_shards(tmp_path, tensors)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  code = (
    'import sys; from tests.models import hf_weights_test as t;'
    't._load_in_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])'
  )
  root = pathlib.Path(__file__).parents[2]
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
  }
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code, str(i), str(port), str(tmp_path)],
      cwd=root,
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=100)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  for output in outputs:
    columns, rows = map(json.loads, output.splitlines()[-2:])
    for name, tensor in tensors.items():
      whole = 'norm' in name
      assert columns[name] == tensor.size // (1 if whole else 2), name
      whole = whole or 'embed' in name
      assert rows[name] == tensor.size // (1 if whole else 2), name
