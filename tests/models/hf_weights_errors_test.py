"""Tests of Hugging Face folders with something wrong in them.

Nearly all are read twice: as local folders, and by byte ranges as remote ones,
with file:// in the place of gs://.
"""

import json
import os
import pathlib
import pickle
import re

import numpy as np
import pytest
import safetensors.numpy

from tests.models import hf_weights_test as good
from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.models import hf_export, hf_weights, remote_files


def local_error(folder):
  """The lines of the InputError that loading ends with.

  Of two tensors that overlap, the library names either.
  """
  with pytest.raises(types.InputError) as caught:
    hf_weights.load_params(folder, good.abstract_tree())
  return re.sub('tensor `[ab]`', 'tensor', str(caught.value)).splitlines()


def folder_error(folder):
  """The same, and a remote folder gives the same lines."""
  lines = local_error(folder)
  address = f'file://{folder}'
  assert local_error(address) == [
    line.replace(str(folder), address) for line in lines
  ]
  return lines


def test_missing_folder(tmp_path):
  (line,) = local_error(tmp_path / 'none')
  assert 'none: no such local folder' in line
  (line,) = local_error(f'file://{tmp_path}/none')
  assert line == f'file://{tmp_path}/none: not there'


def test_address_of_an_unknown_kind():
  (line,) = local_error('gopher://bucket/model')
  assert line.startswith('gopher://bucket/model: cannot be read')


def test_library_of_an_address_is_missing(monkeypatch):
  fake_gcs.hide_library(monkeypatch)
  assert local_error('gs://bucket/model') == [
    'gs://bucket/model: a library is missing that reads such addresses: pip'
    ' install tract_jax[gcs]'
  ]


def test_link_to_a_file_that_is_gone(tmp_path):
  (tmp_path / 'model.safetensors').symlink_to(tmp_path / 'blob')
  assert local_error(tmp_path) == [
    f'{tmp_path}/model.safetensors: no such file'
  ]


def test_links_are_followed_as_in_the_hub_cache(tmp_path):
  folder = tmp_path / 'snapshots/0123'
  folder.mkdir(parents=True)
  (tmp_path / 'blobs').mkdir()
  hf_export.write_tensors(tmp_path / 'blobs/abc', good.random_tensors())
  (folder / 'model.safetensors').symlink_to('../../blobs/abc')
  params = hf_weights.load_params(folder, good.abstract_tree())
  good.assert_same(params, good.expected_params(good.random_tensors()))


@pytest.mark.parametrize(
  'present, said',
  [
    ('pytorch_model.bin', 'pytorch_model.bin is a pickle and is not read'),
    ('consolidated.safetensors', 'consolidated.safetensors is not read'),
    ('readme.txt', 'neither model.safetensors nor'),
  ],
)
def test_folder_without_weights(tmp_path, present, said):
  (tmp_path / present).write_bytes(b'x')
  (line,) = folder_error(tmp_path)
  assert said in line


def test_consolidated_file_beside_the_model_is_ignored(tmp_path):
  tensors = good.random_tensors()
  hf_export.write_tensors(tmp_path / 'model.safetensors', tensors)
  (tmp_path / 'consolidated.safetensors').write_bytes(b'not even safetensors')
  params = hf_weights.load_params(tmp_path, good.abstract_tree())
  good.assert_same(params, good.expected_params(tensors))


class _WritesAFile:
  """Its pickle writes a file when it is loaded."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return (pathlib.Path.touch, (self._path,))


def _header(text):
  return len(text).to_bytes(8, 'little') + text.encode()


_ONE_TENSOR = '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, %s]}}'
_TWO_TENSORS = """{
  "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
  "%s": {"dtype": "F32", "shape": [2], "data_offsets": [%d, %d]}
}"""


@pytest.mark.parametrize(
  'content, said',
  [
    (b'', 'truncated, damaged'),
    (b'\x01\x02', 'truncated, damaged'),
    ((2**60).to_bytes(8, 'little') + b'{}', 'header too large'),
    (_header(_ONE_TENSOR % (2**60, 2**62)), 'truncated, damaged'),
    (_header(_ONE_TENSOR % (4, 4)) + b'1234', 'truncated, damaged'),
    (_header('[' * 100_000), 'truncated, damaged'),
    (_header(_TWO_TENSORS % ('b', 4, 12)) + b'1' * 12, 'invalid offset'),
    (_header(_TWO_TENSORS % ('b', 0, 8)) + b'1' * 8, 'invalid offset'),
    (_header(_TWO_TENSORS % ('b', 16, 24)) + b'1' * 24, 'invalid offset'),
    (_header(_TWO_TENSORS % ('a', 8, 16)) + b'1' * 16, 'invalid offset'),
    (
      b'version https://git-lfs.github.com/spec/v1\nsize 5\n',
      'a git-lfs pointer',
    ),
  ],
)
def test_file_that_is_no_safetensors(tmp_path, content, said):
  (tmp_path / 'model.safetensors').write_bytes(content)
  (line,) = folder_error(tmp_path)
  assert 'model.safetensors: ' in line and said in line


def test_header_of_200_megabytes_is_not_read(tmp_path, monkeypatch):
  path = tmp_path / 'model.safetensors'
  path.write_bytes((200_000_000).to_bytes(8, 'little') + b'{')
  os.truncate(path, 300_000_000)
  read, sizes = remote_files.RemoteFolder.read, []

  def counting_read(self, name, start, stop):
    sizes.append(stop - start)
    return read(self, name, start, stop)

  monkeypatch.setattr(remote_files.RemoteFolder, 'read', counting_read)
  assert all('header too large' in line for line in folder_error(tmp_path))
  assert 0 < sum(sizes) < 1_000_000


def test_truncated_file(tmp_path):
  path = tmp_path / 'model.safetensors'
  hf_export.write_tensors(path, good.random_tensors())
  path.write_bytes(path.read_bytes()[:-4])
  (line,) = folder_error(tmp_path)
  assert 'truncated' in line


def test_code_in_a_pickle_does_not_run(tmp_path):
  marker = tmp_path / 'ran'
  content = pickle.dumps(_WritesAFile(marker))
  (tmp_path / 'model.safetensors').write_bytes(content)
  (line,) = folder_error(tmp_path)
  assert 'a pickle, not safetensors' in line
  assert not marker.exists()
  # So it would have, had the file been loaded as what it is.
  pickle.loads(content)  # noqa: S301
  assert marker.exists()


@pytest.mark.parametrize(
  'name', ['../x.safetensors', '/etc/passwd', '..', 'a/b', '', 3, None]
)
def test_index_that_leaves_the_folder(tmp_path, name):
  safetensors.numpy.save_file(good.random_tensors(), tmp_path / 'x.safetensors')
  folder = tmp_path / 'model'
  folder.mkdir()
  weight_map = good.write_shards(folder, good.random_tensors())
  weight_map['model.norm.weight'] = name
  index = json.dumps({'weight_map': weight_map})
  (folder / hf_weights.INDEX_FILE).write_text(index)
  (line,) = folder_error(folder)
  assert repr(name) in line and 'model.norm.weight' in line


@pytest.mark.parametrize(
  'content', ['{', '[]', '{}', '{"weight_map": {}}', '[' * 100_000]
)
def test_index_that_is_no_index(tmp_path, content):
  (tmp_path / hf_weights.INDEX_FILE).write_text(content)
  (line,) = folder_error(tmp_path)
  assert hf_weights.INDEX_FILE in line


def test_index_that_is_too_large(tmp_path):
  path = tmp_path / hf_weights.INDEX_FILE
  path.touch()
  os.truncate(path, 100_000_000)
  (line,) = folder_error(tmp_path)
  assert '100000000 bytes, and an index has at most' in line


def test_missing_shard(tmp_path):
  good.write_shards(tmp_path, good.random_tensors())
  (tmp_path / 'b.safetensors').unlink()
  assert folder_error(tmp_path) == [f'{tmp_path}/b.safetensors: no such file']


def test_tensor_in_two_shards(tmp_path):
  tensors = good.random_tensors()
  weight_map = good.write_shards(tmp_path, tensors)
  shard = weight_map['model.norm.weight']
  other = ({'a.safetensors', 'b.safetensors'} - {shard}).pop()
  members = {n: tensors[n] for n, file in weight_map.items() if file == other}
  members['model.norm.weight'] = tensors['model.norm.weight'] + 1
  safetensors.numpy.save_file(members, tmp_path / other)
  assert folder_error(tmp_path) == [
    f'{tmp_path}/{other}: model.norm.weight: {hf_weights.INDEX_FILE} places it'
    f' in {shard}'
  ]


def test_index_and_shards_disagree(tmp_path):
  weight_map = good.write_shards(tmp_path, good.random_tensors())
  del weight_map['model.norm.weight']
  weight_map['lm_head.weight'] = 'b.safetensors'
  weight_map['nowhere'] = 'a.safetensors'
  index = json.dumps({'weight_map': weight_map})
  (tmp_path / hf_weights.INDEX_FILE).write_text(index)
  lines = folder_error(tmp_path)
  assert len(lines) == 4
  text = '\n'.join(lines)
  assert 'model.norm.weight: model.safetensors.index.json does not' in text
  assert 'lm_head.weight: model.safetensors.index.json places it in b' in text
  assert 'b.safetensors: lm_head.weight: named by' in text
  assert 'a.safetensors: nowhere: named by' in text


def write_changed(folder, change):
  tensors = good.random_tensors()
  change(tensors)
  hf_export.write_tensors(folder / 'model.safetensors', tensors)


def test_missing_extra_and_misshaped_tensors_are_named_together(tmp_path):
  def change(tensors):
    del tensors['model.layers.1.mlp.up_proj.weight']
    tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((48, 32), 'f4')
    tensors['model.layers.0.self_attn.q_proj.bias'] = np.zeros(32, 'f4')
    tensors['model.embed_tokens.weight'] = np.zeros((65, 32), 'f4')
    tensors['model.norm.weight'] = np.zeros(32, np.int8)

  write_changed(tmp_path, change)
  lines = folder_error(tmp_path)
  file = tmp_path / 'model.safetensors'
  assert sorted(lines) == sorted(
    [
      f'{tmp_path}: model.layers.1.mlp.up_proj.weight: missing, expected'
      ' [48, 32]',
      f'{file}: model.layers.2.mlp.up_proj.weight: the model has no such'
      ' parameter',
      f'{file}: model.layers.0.self_attn.q_proj.bias: the model has no such'
      ' parameter',
      f'{file}: model.embed_tokens.weight: shape [65, 32], but the config'
      ' gives [64, 32]',
      f'{file}: model.norm.weight: dtype I8, which is none of F32, F16, BF16',
    ]
  )


def test_many_problems_are_cut_short(tmp_path):
  write_changed(tmp_path, dict.clear)
  lines = folder_error(tmp_path)
  assert len(lines) == 11
  assert lines[-1] == 'and 11 more of the kind'


def test_tolerated_tensors(tmp_path):
  def change(tensors):
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    tensors[name] = np.zeros(4, np.float32)

  write_changed(tmp_path, change)
  # lm_head.weight is there, too, and gives way to the tied embedding.
  params = hf_weights.load_params(tmp_path, good.abstract_tree(tied=True))
  good.assert_same(params, good.expected_params(good.random_tensors(tied=True)))


def test_output_matrix_missing_from_an_untied_model(tmp_path):
  write_changed(tmp_path, lambda tensors: tensors.pop('lm_head.weight'))
  assert folder_error(tmp_path) == [
    f'{tmp_path}: lm_head.weight: missing, expected [64, 32]'
  ]
