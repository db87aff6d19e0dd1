"""Tests of Hugging Face folders with something wrong in them."""

import json
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.numpy

from tests.models import hf_weights_test as good
from tract_jax import types
from tract_jax.models import hf_weights


def folder_error(folder, abstract=None):
  """The lines of the InputError that loading ends with."""
  with pytest.raises(types.InputError) as caught:
    hf_weights.load_params(folder, abstract or good.abstract_tree())
  return str(caught.value).splitlines()


def test_missing_folder_and_remote_folder(tmp_path):
  (line,) = folder_error(tmp_path / 'none')
  assert 'none: no such local folder' in line
  (line,) = folder_error('gs://bucket/model')
  assert 'no such local folder' in line


def test_link_to_a_file_that_is_gone(tmp_path):
  (tmp_path / 'model.safetensors').symlink_to(tmp_path / 'blob')
  assert folder_error(tmp_path) == [
    f'{tmp_path}/model.safetensors: no such file'
  ]


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
  hf_weights.write_tensors(tmp_path / 'model.safetensors', tensors)
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


@pytest.mark.parametrize(
  'content, said',
  [
    (b'', 'truncated, damaged'),
    (b'\x01\x02', 'truncated, damaged'),
    ((2**62).to_bytes(8, 'little') + b'{}', 'header too large'),
    (_header(_ONE_TENSOR % (2**60, 2**62)), 'truncated, damaged'),
    (_header(_ONE_TENSOR % (4, 4)) + b'1234', 'truncated, damaged'),
    (_header('[' * 100_000), 'truncated, damaged'),
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


def test_truncated_file(tmp_path):
  path = tmp_path / 'model.safetensors'
  hf_weights.write_tensors(path, good.random_tensors())
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


@pytest.mark.parametrize('content', ['{', '[]', '{}', '{"weight_map": {}}'])
def test_index_that_is_no_index(tmp_path, content):
  (tmp_path / hf_weights.INDEX_FILE).write_text(content)
  (line,) = folder_error(tmp_path)
  assert hf_weights.INDEX_FILE in line


def test_missing_shard(tmp_path):
  good.write_shards(tmp_path, good.random_tensors())
  (tmp_path / 'b.safetensors').unlink()
  assert folder_error(tmp_path) == [f'{tmp_path}/b.safetensors: no such file']


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
  hf_weights.write_tensors(folder / 'model.safetensors', tensors)


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
