"""Tests of the sampler on a model whose every answer is known."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import special

from tests.sampling import cases, fakes
from tract_jax.sampling import engine as engine_lib

# A model without scripts, and what the tests that need no other share.
FREE_FNS = fakes.make_fns()
FREE_PARAMS = FREE_FNS.init(jax.random.key(0))


@functools.cache
def _free_engine():
  return cases.engine(FREE_FNS)


def test_too_long_prompts():
  num_forced = len(fakes.COT_FORMAT.lead_ids)
  # Room for prompt, one token, the fixed words and the score; and one less.
  lengths = (64 - num_forced - 2, 64 - num_forced - 1, 64, 100)
  requests = [cases.request(1, length) for length in lengths]
  samples = cases.sample([cases.script('abc')], requests=requests)
  assert [sample.finish_reason for sample in samples] == ['length'] + 3 * [
    'too_long'
  ]
  assert len(samples[0].tokens) == 1 + num_forced
  assert all(not len(sample.tokens) for sample in samples[1:])


def _free_requests():
  return [
    cases.request(0, 5 + 3 * (i % 4), name=f'row {i}', cot_index=j)
    for i in range(7)
    for j in range(2)
  ]


def _free_samples(order=None, **changes):
  fns = fakes.make_fns()
  requests = _free_requests()
  order = order or range(len(requests))
  engine = cases.engine(fns, **changes)
  samples = engine.sample(
    cases.params(fns), [requests[i] for i in order], 3, 'test'
  )
  return {(s.example_id, s.cot_index): s for s in samples}


def test_same_key_same_text():
  wanted = _free_samples()
  texts = {cases.text(sample) for sample in wanted.values()}
  assert len(texts) == len(wanted)
  shuffled = np.random.default_rng(0).permutation(14).tolist()
  for changes in (
    dict(order=shuffled),
    dict(order=[5, 2]),
    dict(rows=1, max_length=200),
    dict(rows=32, steps_per_call=16, length_multiple=8),
  ):
    for name, sample in _free_samples(**changes).items():
      np.testing.assert_equal(vars(sample), vars(wanted[name]), str(changes))


def test_other_key_other_text():
  engine, params = _free_engine(), FREE_PARAMS
  request = cases.request()
  texts = {
    cases.text(engine.sample(params, [request], seed, purpose)[0])
    for seed, purpose in [(0, 'a'), (1, 'a'), (0, 'b')]
  }
  texts |= {
    cases.text(
      engine.sample(params, [cases.request(name=n, cot_index=c)], 0, 'a')[0]
    )
    for n, c in [('b', 0), ('a', 1)]
  }
  assert len(texts) == 5


def test_keys_are_stable():
  key_data = engine_lib._key_data(
    0, 'self_cot', cases.request(name='é', cot_index=1)
  )
  # The first 8 bytes of sha256('[0, "self_cot", "\\u00e9", 1]'), big-endian.
  assert key_data.tolist() == [2737651513, 2612505749]
  assert key_data.dtype == np.uint32


def test_samples_come_in_the_order_of_the_requests():
  requests = _free_requests()
  samples = _free_engine().sample(FREE_PARAMS, requests, 0, 'test')
  assert [(s.example_id, s.cot_index) for s in samples] == [
    (r.example_id, r.cot_index) for r in requests
  ]


def test_greedy_is_an_argmax_loop():
  fns = fakes.make_fns()
  params = cases.params(fns)
  sampling = dataclasses.replace(
    cases.PLAIN, temperature=0.0, repetition_penalty=1.2
  )
  request = cases.request()
  (sample,) = cases.engine(fns, sampling=sampling).sample(
    params, [request], 0, 'test'
  )
  tokens = request.prompt_ids.tolist()
  for _ in range(sampling.max_new_tokens):
    logits = fakes.next_logits(fns, params, tokens)[: len(fakes.PIECES)]
    seen = np.unique(tokens)
    logits[seen] *= np.where(logits[seen] < 0, 1.2, 1 / 1.2)
    if logits.argmax() == fakes.EOS:
      break
    tokens.append(int(logits.argmax()))
  num = sample.num_sampled_tokens
  assert num > 3
  assert sample.tokens[:num].tolist() == tokens[5 : 5 + num]
  assert not fakes.decode_text(tokens[5 + num :]).strip()


def test_sampled_frequencies_follow_the_model():
  fns = fakes.make_fns()
  params = cases.params(fns)
  requests = [cases.request(name=str(i)) for i in range(3000)]
  sampling = dataclasses.replace(cases.PLAIN, max_new_tokens=1)
  samples = cases.engine(fns, sampling=sampling, rows=1000).sample(
    params, requests, 0, 'test'
  )
  counts = np.zeros(len(fakes.PIECES))
  for sample in samples:
    if sample.num_sampled_tokens:
      counts[sample.tokens[0]] += 1
  logits = fakes.next_logits(fns, params, fakes.prompt(0))
  probs = special.softmax(logits[: len(fakes.PIECES)].astype(np.float64))
  # The end token and white space are not kept.
  is_kept = np.asarray([bool(piece.strip()) for piece in fakes.PIECES])
  is_kept[fakes.EOS] = False
  kept = is_kept & (probs * 3000 > 5)
  deviations = (counts - 3000 * probs)[kept] / np.sqrt(
    3000 * probs * (1 - probs)
  )[kept]
  assert np.square(deviations).mean() < 2.0
  assert counts[~is_kept].sum() == 0


def test_padded_vocabulary_is_never_sampled():
  params = dict(FREE_PARAMS)
  # The likeliest by far; the distributions still count it.
  params['table'] = params['table'].at[:, len(fakes.PIECES) :].add(9.0)
  requests = [cases.request(name=str(i)) for i in range(8)]
  samples = _free_engine().sample(params, requests, 0, 'test')
  for request, sample in zip(requests, samples, strict=True):
    assert sample.tokens.max() < len(fakes.PIECES)
    cases.check_distribution(FREE_FNS, params, request, sample)
    assert sample.score_probs.sum() < 0.01


def test_score_equals_a_pass_over_each_sequence():
  fns = fakes.make_fns([[fakes.NAN]])
  params = cases.params(fns)
  lengths = (5, 60, 7, 62, 64, 63, 9)
  sequences = [fakes.prompt(0, length) for length in lengths]
  sequences.append(fakes.prompt(1))
  probs, greedy = cases.engine(fns, length_multiple=64).score(params, sequences)
  assert probs.dtype == np.float32 and probs.shape == (8, 5)
  # One leaves no room for the score, one is not finite.
  invalid = [4, 7]
  assert np.isnan(probs[invalid]).all() and (greedy[invalid] == -1).all()
  for i in set(range(8)) - set(invalid):
    logits = fakes.next_logits(fns, params, sequences[i])
    wanted = special.softmax(logits.astype(np.float64))
    np.testing.assert_allclose(
      probs[i], wanted[list(fakes.SCORE_IDS)], atol=1e-6
    )
    assert greedy[i] == logits[: len(fakes.PIECES)].argmax()


def test_progress():
  fns = fakes.make_fns([cases.script('ab')])
  seen = []
  requests = [
    *(cases.request(1, name=str(i)) for i in range(5)),
    cases.request(1, 70),
  ]
  samples = cases.engine(fns).sample(
    cases.params(fns), requests, 0, 'test', on_batch=seen.append
  )
  assert [(p.num_done, p.num_total) for p in seen] == [(5, 6), (6, 6)]
  assert seen[-1].num_tokens == sum(len(s.tokens) for s in samples)
  assert 0 < seen[0].secs <= seen[1].secs


def test_nothing_to_do():
  assert _free_engine().sample(FREE_PARAMS, [], 0, 'test') == []
  probs, greedy = _free_engine().score(FREE_PARAMS, [])
  assert probs.shape == (0, 5) and greedy.shape == (0,)


def test_few_shapes_are_compiled():
  scripts = [cases.script('ab' + cases.MARKER_TEXT), cases.script('abc is so')]
  fns = fakes.make_fns(scripts)
  num_traces = 0

  def project(params, hidden):
    nonlocal num_traces
    num_traces += 1
    return fns.project(params, hidden)

  engine = cases.engine(fns._replace(project=project), length_multiple=8)
  requests = [cases.request(1 + i % 2, 3 + i, name=str(i)) for i in range(14)]
  for seed in range(2):
    engine.sample(cases.params(fns), requests, seed, 'test')
  # Prompts of 3 to 16 tokens: buckets of 8 and of 16.
  assert num_traces == 2


def test_bad_arguments():
  fns = fakes.make_fns()
  with pytest.raises(ValueError, match='token 99'):
    cases.engine(
      fns, cot_format=dataclasses.replace(fakes.COT_FORMAT, score_ids=(99,))
    )
  with pytest.raises(ValueError, match='below 1'):
    cases.engine(fns, rows=0)
  no_prompt = engine_lib.CotRequest('a', 0, np.zeros(0, np.int32))
  with pytest.raises(ValueError, match='has no tokens'):
    cases.engine(fns).sample(cases.params(fns), [no_prompt], 0, 'test')
  no_marker = dataclasses.replace(
    fakes.COT_FORMAT, marker='', lead_ids=fakes.COT_FORMAT.prefix_ids
  )
  engine = cases.engine(fns, cot_format=no_marker)
  with pytest.raises(ValueError, match='no CoT'):
    engine.sample(cases.params(fns), [cases.request()], 0, 'test')
  assert engine.score(cases.params(fns), [fakes.prompt(0)])[0].shape == (1, 5)
