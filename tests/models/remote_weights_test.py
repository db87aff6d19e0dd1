"""Tests of reading weights by byte ranges, from gs:// and by several processes.

The bucket is a server on 127.0.0.1; file:// takes the same way through the
project without any network.
"""

import pathlib

import jax
import numpy as np
import pytest

from tests.models import hf_weights_test as good
from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.models import (
  hf_export,
  hf_weights,
  remote_files,
  safetensors_file,
  shard_reads,
)

# What of a file's bytes is its header, at most.
HEADER_BYTES = 8 << 10


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A served bucket "models" that is a local folder."""
  folder = tmp_path / 'served' / 'models'
  folder.mkdir(parents=True)
  with fake_gcs.serve(tmp_path / 'served', monkeypatch) as server:
    yield folder, server


@pytest.mark.parametrize('sharded', [False, True])
def test_model_in_a_bucket_is_the_local_one(bucket, sharded):
  folder, _ = bucket
  model = folder / 'judge'
  model.mkdir()
  tensors = good.random_tensors()
  if sharded:
    good.write_shards(model, tensors)
  else:
    hf_export.write_tensors(model / 'model.safetensors', tensors)
  params = hf_weights.load_params('gs://models/judge/', good.abstract_tree())
  good.assert_same(params, good.expected_params(tensors))


def test_only_the_needed_rows_of_a_bucket_are_fetched(bucket, monkeypatch):
  folder, server = bucket
  (folder / 'judge').mkdir()
  tensors = good.random_tensors()
  hf_export.write_tensors(folder / 'judge' / 'model.safetensors', tensors)
  # So that nothing but the header comes with it.
  monkeypatch.setattr(safetensors_file, '_FIRST_BYTES', 8)
  # As if only the first device of the mesh were this process's.
  keep = shard_reads.process_shards
  monkeypatch.setattr(
    shard_reads, 'process_shards', lambda *args: keep(*args)[:1]
  )
  monkeypatch.setattr(
    jax, 'make_array_from_single_device_arrays', lambda *args, **_: args[2]
  )
  mesh = jax.make_mesh((2, 4), ('x', 'y'))
  abstract = good.sharded_tree(good.abstract_tree(), mesh)
  params = hf_weights.load_params('gs://models/judge', abstract)
  up = good.expected_params(tensors)['layers']['mlp']['up_proj']['weight']
  (shard,) = params['layers']['mlp']['up_proj']['weight']
  np.testing.assert_array_equal(shard, up[:, :16, :12])
  fetched = sum(size for _, size in server.reads)
  expected = hf_weights.host_memory(abstract, remote=True).read_bytes
  assert expected < sum(t.nbytes for t in tensors.values()) / 2
  assert expected < fetched < expected + HEADER_BYTES


def test_no_permission_and_nothing_there(bucket):
  _, server = bucket
  with pytest.raises(types.InputError, match='^gs://models/none: not there$'):
    remote_files.open_folder('gs://models/none')
  server.status = 403
  with pytest.raises(types.InputError) as caught:
    remote_files.open_folder('gs://models/judge')
  assert str(caught.value).startswith('gs://models/judge: cannot be read')
  assert 'no storage.objects.list access' in str(caught.value)


def test_file_that_shrinks_after_it_was_listed(bucket):
  folder, _ = bucket
  (folder / 'judge').mkdir()
  path = folder / 'judge' / 'model.safetensors'
  path.write_bytes(bytes(100))
  opened = remote_files.open_folder('gs://models/judge')
  path.write_bytes(bytes(60))
  with pytest.raises(types.InputError, match='bytes 50 to 90: 10 came'):
    opened.read('model.safetensors', 50, 90)


def test_each_row_comes_once_where_columns_are_split(tmp_path, monkeypatch):
  tensors = good.random_tensors()
  hf_export.write_tensors(tmp_path / 'model.safetensors', tensors)
  reads = {}
  good.count_reads(monkeypatch.setattr, reads)
  mesh = jax.make_mesh((8, 1), ('x', 'y'))
  abstract = good.sharded_tree(good.abstract_tree(), mesh)
  params = hf_weights.load_params(f'file://{tmp_path}', abstract)
  good.assert_same(params, good.expected_params(tensors))
  assert {k: sum(v) for k, v in reads.items()} == {
    k: v.size for k, v in tensors.items()
  }
  assert reads['model.layers.0.mlp.up_proj.weight'] == [48 * 32]


def test_strips_of_a_tensor_make_up_the_whole(tmp_path, monkeypatch):
  tensors = good.random_tensors()
  hf_export.write_tensors(tmp_path / 'model.safetensors', tensors)
  monkeypatch.setattr(shard_reads, '_STRIP_BYTES', 7 * 32 * 4)
  for folder in (tmp_path, f'file://{tmp_path}'):
    reads = {}
    with monkeypatch.context() as patch:
      good.count_reads(patch.setattr, reads)
      params = hf_weights.load_params(folder, good.abstract_tree())
    good.assert_same(params, good.expected_params(tensors))
    assert reads['lm_head.weight'].count(7 * 32) == 64 // 7


def test_address_is_told_from_a_path():
  assert remote_files.is_remote('gs://bucket/model')
  assert not remote_files.is_remote(pathlib.Path('gs://bucket/model'))
  assert not remote_files.is_remote('/models/a:b')
