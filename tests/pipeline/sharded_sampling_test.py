"""Sampling and scoring on several devices: as on one, rows and heads split."""

import dataclasses

import jax
import numpy as np
import pytest

from tract_jax.models import lora
from tract_jax.pipeline import base_weights, build, read_data, sample
from tract_jax.pipeline import config as config_lib

# Rows of six slots cannot be split over four or eight devices.
SETTINGS = {
  'data': {
    'source': 'synthetic',
    'synthetic_train': 8,
    'synthetic_test': 1,
    'length_multiple': 16,
    'max_length': 64,
  },
  'model': {
    'lora_rank': 0,
    'hidden_size': 32,
    'intermediate_size': 32,
    'num_layers': 1,
    'num_heads': 4,
    'num_kv_heads': 2,
    'initializer_range': 0.3,
  },
  'sampling': {
    'slots': 6,
    'max_new_tokens': 10,
    'max_retries': 1,
    'prefill_tokens': 64,
  },
}


def make_sampler(mesh, devices=None, mapping='jit'):
  settings = {**SETTINGS, 'mapping': mapping}
  settings['sampling'] = {**SETTINGS['sampling'], 'mesh': mesh}
  setup = build.build(config_lib.merge(settings), trains=False, devices=devices)
  return sample.Sampler(setup, lambda: False)


def sampled(sampler):
  """([n] CoTs, [m] scores without CoT) of the training rows."""
  params = lora.merge(*base_weights.init_params(sampler.setup.model, seed=0))
  examples = read_data.read_data(sampler.setup).train
  cots = sampler.cots(params, examples, 2, seed=0, purpose='test')
  return cots, sampler.given(params, examples, with_cot=False)


@pytest.fixture(scope='module')
def alone():
  mesh = {'data': 1, 'fsdp': 1, 'tensor': 1}
  return sampled(make_sampler(mesh, jax.devices()[:1]))


@pytest.mark.parametrize(
  ('data', 'fsdp', 'tensor', 'mapping'),
  [(8, 1, 1, 'jit'), (8, 1, 1, 'pmap'), (4, 1, 2, 'jit'), (2, 2, 2, 'jit')],
)
def test_several_devices_sample_what_one_does(
  alone, data, fsdp, tensor, mapping
):
  mesh = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  sampler = make_sampler(mesh, mapping=mapping)
  engine = sampler._cot_engine
  # (shape, a device's part) of the cache; the buffers themselves are donated.
  caches = set()

  def watched(fn):
    def watching(*args):
      out = fn(*args)
      state = out[0] if isinstance(out, tuple) else out
      shape = state.cache.keys.shape
      caches.add((shape, state.cache.keys.sharding.shard_shape(shape)))
      return out

    return watching

  names = ('empty_state', 'insert', 'decode_steps')
  fns = engine.fns
  engine.fns = dataclasses.replace(
    fns, **{name: watched(getattr(fns, name)) for name in names}
  )
  cots, scores = sampled(sampler)
  assert fns.decode_steps._cache_size() == 1
  assert any(s.num_retries for s in cots)
  for found, wanted in zip(cots + scores, alone[0] + alone[1], strict=True):
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert found.finish_reason == wanted.finish_reason
    assert found.num_retries == wanted.num_retries
    np.testing.assert_allclose(
      found.score_probs, wanted.score_probs, rtol=0, atol=1e-5
    )
  # Layers, rows, key/value heads, entries, head size.
  ((whole, part),) = caches
  assert part[1:3] == (whole[1] // (data * fsdp), whole[2] // tensor)
