"""The gap between annotator's and own CoTs: invalid rows, and perplexity."""

import math
import types as python_types

import jax
import numpy as np
import pytest

from tests.pipeline import tiny_model
from tract_jax import types
from tract_jax.data import encoding, manifest
from tract_jax.models import lora
from tract_jax.pipeline import base_weights, build, cot_gap, read_data, sample
from tract_jax.pipeline import config as config_lib
from tract_jax.text import prompts

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])


def scored(score):
  """A CoT after which a score is sure; None: it came to no end."""
  probs = np.full(5, np.nan, np.float32)
  if score:
    probs = np.eye(5, dtype=np.float32)[score - 1]
  reason = 'marker' if score else 'non_finite'
  tokens = np.array([score or 0], np.int32)
  return types.CotSample('a', 0, tokens, 1, reason, probs, -1)


class Sampler:
  """Says what it is told to; asked for the cross-entropy, it takes notes."""

  setup = python_types.SimpleNamespace(grid=GRID)

  def __init__(self, given, own, nats=(1.0, 2.0)):
    self._given = [scored(score) for score in given]
    self._own = [scored(score) for score in own]
    self._nats = iter(nats)
    self.asked = []

  def given(self, *_, with_cot):
    return self._given

  def cots(self, *_, seed, purpose):
    return self._own

  def cross_entropy(self, params, examples, tokens=None):
    ids = [e.example_id for e in examples]
    self.asked.append((ids, tokens and [t.tolist() for t in tokens]))
    return next(self._nats)


def test_invalid_rows_are_the_midpoint_and_counted(tmp_path, capsys):
  examples = [types.Example(str(s), 'p', float(s)) for s in (1, 5, 4)]
  sampler = Sampler(given=(1, 5, 3), own=(1, None, None))
  results = cot_gap.measure(sampler, None, examples, seed=0)
  assert results['rmse_annotator_cot'] == pytest.approx((1 / 3) ** 0.5)
  # Errors 0, 3 - 5 and 3 - 4.
  assert results['rmse_self_cot'] == pytest.approx((5 / 3) ** 0.5)
  assert results['num_invalid'] == {'annotator_cot': 0, 'self_cot': 2}
  cot_gap.write(tmp_path, {}, results, 'stage')
  assert 'with its own (2 invalid)' in capsys.readouterr().out
  gap = cot_gap.read(tmp_path, 'tract', 1, 0)
  assert (gap.num_examples, gap.gap) == (
    3,
    results['rmse_self_cot'] - results['rmse_annotator_cot'],
  )
  # Of usable CoTs alone, own ones by the tokens that were sampled.
  assert sampler.asked == [(['1', '5', '4'], None), (['1'], [[1]])]
  assert gap.perplexity_annotator_cot == pytest.approx(math.e)
  assert gap.perplexity_self_cot == pytest.approx(math.e**2)
  assert gap.reason is None


@pytest.mark.parametrize('nats', [None, 1e4])
def test_without_a_perplexity_there_is_a_reason(tmp_path, nats):
  examples = [types.Example('1', 'p', 1.0)]
  sampler = Sampler(given=(1,), own=(1,), nats=(0.5, nats))
  results = cot_gap.measure(sampler, None, examples, seed=0)
  cot_gap.write(tmp_path, {}, results, 'stage')
  gap = cot_gap.read(tmp_path, 'tract', 1, 0)
  assert gap.perplexity_annotator_cot == pytest.approx(math.exp(0.5))
  assert gap.perplexity_self_cot is None
  assert gap.reason == 'perplexity_self_cot: no usable CoT, or not finite'


def test_a_gap_on_another_number_of_rows_is_measured_anew(tmp_path):
  assert not cot_gap.is_done(tmp_path, {'seed': 0}, 2)
  results = {'num_examples': 2}
  manifest.write_manifest(tmp_path, 'cot_gap', {'seed': 0}, results=results)
  assert cot_gap.is_done(tmp_path, {'seed': 0}, 2)
  assert not cot_gap.is_done(tmp_path, {'seed': 0}, 3)
  assert not cot_gap.is_done(tmp_path, {'seed': 1}, 2)


def test_a_gap_of_an_earlier_version_has_no_perplexity(tmp_path):
  old = {'num_examples': 1, 'rmse_annotator_cot': 0.5, 'rmse_self_cot': 0.5}
  manifest.write_manifest(tmp_path, 'cot_gap', {}, results=old)
  gap = cot_gap.read(tmp_path, 'tract', 1, 0)
  assert gap.perplexity_annotator_cot is gap.perplexity_self_cot is None
  assert gap.reason == (
    'perplexity_annotator_cot, perplexity_self_cot: not measured'
  )


@pytest.fixture(scope='module', params=['{:g}', '{:.1f}'])
def real(request):
  """A sampler of a tiny model, its params, and its training rows."""
  overrides = {
    'data': {
      'source': 'synthetic',
      'synthetic_train': 10,
      'synthetic_test': 1,
      'validation_fraction': 0.0,
      'length_multiple': 64,
    },
    'score': {'format': request.param},
    'model': {
      **tiny_model.SETTINGS,
      'initializer_range': 0.3,
    },
    'train': {'batch_size': 8, 'logit_chunk': 48},
    # Perplexity is that of the weights as they are.
    'sampling': {'slots': 4, 'max_new_tokens': 6, 'weights': 'int8'},
  }
  setup = build.build(config_lib.merge(overrides))
  params = lora.merge(*base_weights.init_params(setup.model, seed=0))
  examples = read_data.read_data(setup).train
  return sample.Sampler(setup, lambda: False), params, examples


def by_hand(sampler, params, examples, tokens):
  """Nats per token, a row at a time, each token by its own softmax."""
  fns, losses = sampler.setup.model.fns, []

  @jax.jit
  def log_probs_of(inputs):
    positions = np.arange(len(inputs))
    row = [x[None] for x in (inputs, positions, np.ones_like(positions))]
    hidden = fns.hidden(params, *row)
    return jax.nn.log_softmax(fns.project(params, hidden)[0])

  for example, cot in zip(examples, tokens, strict=True):
    encoded = encoding.encode_example(
      *(example, sampler.setup.tokenizer, sampler.setup.cot_scores, cot)
    )
    # What follows a row changes nothing in it.
    inputs = np.pad(encoded.inputs, (0, 128 - len(encoded.inputs)))
    log_probs = log_probs_of(inputs)
    losses += [
      -float(log_probs[i, encoded.targets[i]])
      for i in np.flatnonzero(encoded.cot_mask)
    ]
  return np.mean(losses)


def test_cross_entropy_is_that_of_each_token_by_itself(real):
  sampler, params, examples = real
  own = sampler.cots(params, examples, 1, seed=0, purpose='test')
  tokens = [s.tokens for s in own]
  # Ten rows: a batch of eight, and one that is mostly padding.
  for cots in (None, tokens):
    found = sampler.cross_entropy(params, examples, cots)
    expected = by_hand(sampler, params, examples, cots or [None] * 10)
    assert found == pytest.approx(expected, rel=1e-5)
  assert sampler.cross_entropy(params, [], []) is None


def test_perplexity_of_own_cots_is_below_that_of_strange_ones(real):
  sampler, params, examples = real
  results = cot_gap.measure(sampler, params, examples, seed=0)
  own = results['perplexity_self_cot']
  assert 1 < own < results['perplexity_annotator_cot']
