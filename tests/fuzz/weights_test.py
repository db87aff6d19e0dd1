"""Damaged files of weights: refused in words, never run, never read past."""

import functools
import json

from hypothesis import strategies as st
import jax
import numpy as np
import safetensors.numpy

from tests.fuzz import properties, strategies
from tests.models import gguf_weights_test
from tract_jax.models import gguf_weights, hf_config, hf_weights

_TENSORS = {
  'model.embed_tokens.weight': np.arange(12, dtype=np.float32).reshape(3, 4),
  'model.norm.weight': np.arange(4, dtype=np.float32),
}
_ABSTRACT = {
  'embed_tokens': {'weight': jax.ShapeDtypeStruct((3, 4), np.float32)},
  'norm': {'weight': jax.ShapeDtypeStruct((4,), np.float32)},
}
_FILE = safetensors.numpy.save(_TENSORS)
_HEADER = json.loads(_FILE[8 : 8 + int.from_bytes(_FILE[:8], 'little')])
_DATA = _FILE[8 + int.from_bytes(_FILE[:8], 'little') :]


def _with_header(header: object) -> bytes:
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + _DATA


def _check_loads(folder, is_remote) -> None:
  params = hf_weights.load_params(
    f'file://{folder}' if is_remote else folder, _ABSTRACT
  )
  jax.tree.map(
    lambda leaf, wanted: np.testing.assert_equal(leaf.shape, wanted.shape),
    params,
    _ABSTRACT,
  )


@properties.fuzzed(
  8,
  content=st.one_of(
    strategies.damaged(_FILE, head=160),
    strategies.with_changes(_HEADER, most=3).map(_with_header),
    st.binary(max_size=40),
  ),
  is_remote=st.booleans(),
)
def test_safetensors(content, is_remote):
  folder = properties.file_of(content, 'model/model.safetensors').parent
  _check_loads(folder, is_remote)


@properties.fuzzed(
  4,
  content=strategies.json_files(
    {'weight_map': dict.fromkeys(_TENSORS, 'a.safetensors')},
    {'weight_map': {**dict.fromkeys(_TENSORS, 'a.safetensors'), 'x': '../b'}},
  ),
  is_remote=st.booleans(),
)
def test_index(content, is_remote):
  properties.file_of(_FILE, 'sharded/a.safetensors')
  name = f'sharded/{hf_weights.INDEX_FILE}'
  _check_loads(properties.file_of(content, name).parent, is_remote)


@functools.cache
def _gguf() -> bytes:
  path = properties.file_of(b'', 'whole.gguf')
  gguf_weights_test.write_gguf(
    path,
    gguf_weights_test.random_tensors(),
    merges=['A B'],
    special=('!',),
    quantised=gguf_weights_test.QUANTISED,
  )
  return path.read_bytes()


@properties.fuzzed(
  3,
  few=15,
  content=st.deferred(
    lambda: st.one_of(
      strategies.damaged(_gguf(), head=2500),
      strategies.damaged(_gguf(), most=1),
      st.binary(max_size=40).map(lambda tail: b'GGUF\x03\0\0\0' + tail),
    )
  ),
)
def test_gguf(content):
  path = properties.file_of(content, 'model.gguf')
  model = gguf_weights.read_gguf(path)
  config = hf_config.config_from_hf(model.hf_config)
  assert len(model.tokenizer.tokens) == config.vocab_size
  with np.errstate(all='ignore'):
    for _, array in model.tensors:
      assert array.dtype == np.float32
