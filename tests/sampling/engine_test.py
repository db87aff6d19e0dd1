"""Tests of the sampler on a model whose every answer is known."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import special, stats

from tests.sampling import cases, fakes
from tract_jax.parallel import row_placement
from tract_jax.sampling import engine as engine_lib
from tract_jax.sampling import requests as requests_lib

# Without scripts.
_PARAMS = fakes.make_params()


def test_too_long_prompts():
  num_forced = len(fakes.COT_FORMAT.lead_ids)
  # Room for prompt, one token, the fixed words and the score; and one less.
  lengths = (64 - num_forced - 2, 64 - num_forced - 1, 64, 100)
  requests = [cases.make_request(1, length) for length in lengths]
  samples = cases.sample_scripts([cases.script_of('abc')], requests=requests)
  assert [sample.finish_reason for sample in samples] == ['length'] + 3 * [
    'too_long'
  ]
  assert len(samples[0].tokens) == 1 + num_forced
  assert all(not len(sample.tokens) for sample in samples[1:])


def _free_requests():
  return [
    cases.make_request(0, 5 + 3 * (i % 4), name=f'row {i}', cot_index=j)
    for i in range(7)
    for j in range(2)
  ]


def _free_samples(order=None, **settings):
  requests = _free_requests()
  order = order or range(len(requests))
  samples = cases.shared_engine(**settings).sample(
    _PARAMS, [requests[i] for i in order], 3, 'test'
  )
  return {(s.example_id, s.cot_index): s for s in samples}


def test_same_key_same_text():
  wanted = _free_samples()
  texts = {cases.text_of(sample) for sample in wanted.values()}
  assert len(texts) == len(wanted)
  shuffled = np.random.default_rng(0).permutation(14).tolist()
  for changes in (
    dict(order=shuffled),
    dict(order=[5, 2]),
    dict(slots=1, max_length=200),
    dict(slots=32, steps_per_call=16, length_multiple=8),
    dict(prefill_tokens=64),
  ):
    for name, sample in _free_samples(**changes).items():
      np.testing.assert_equal(vars(sample), vars(wanted[name]), str(changes))


def test_other_key_other_text():
  def text(seed=0, purpose='a', name='a', cot_index=0):
    request = cases.make_request(name=name, cot_index=cot_index)
    engine = cases.shared_engine()
    (sample,) = engine.sample(_PARAMS, [request], seed, purpose)
    return cases.text_of(sample)

  texts = [text(), text(seed=1), text(purpose='b'), text(name='b')]
  texts.append(text(cot_index=1))
  assert len(set(texts)) == 5
  assert text() == texts[0]


def test_keys_are_stable():
  key_data = requests_lib.key_data(
    0, 'self_cot', cases.make_request(name='é', cot_index=1)
  )
  # The first 8 bytes of sha256('[0, "self_cot", "\\u00e9", 1]'), big-endian.
  assert key_data.tolist() == [2737651513, 2612505749]
  assert key_data.dtype == np.uint32


def test_samples_come_in_the_order_of_the_requests():
  requests = _free_requests()
  samples = cases.shared_engine().sample(_PARAMS, requests, 0, 'test')
  assert [(s.example_id, s.cot_index) for s in samples] == [
    (r.example_id, r.cot_index) for r in requests
  ]


def test_greedy_is_an_argmax_loop():
  sampling = dataclasses.replace(
    cases.PLAIN, temperature=0.0, repetition_penalty=1.2
  )
  request = cases.make_request()
  (sample,) = cases.make_engine(sampling=sampling).sample(
    _PARAMS, [request], 0, 'test'
  )
  tokens = request.prompt_ids.tolist()
  for _ in range(sampling.max_new_tokens):
    logits = fakes.next_logits(_PARAMS, tokens)[: len(fakes.PIECES)]
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
  num_draws = 3000
  requests = [cases.make_request(name=str(i)) for i in range(num_draws)]
  sampling = dataclasses.replace(cases.PLAIN, max_new_tokens=1)
  samples = cases.make_engine(sampling=sampling, slots=1000).sample(
    _PARAMS, requests, 0, 'test'
  )
  # A first token of space and the end token are not kept: one class.
  first = [s.tokens[0] for s in samples if s.num_sampled_tokens]
  counts = np.bincount(first, minlength=len(fakes.PIECES))
  logits = fakes.next_logits(_PARAMS, fakes.prompt(0))[: len(fakes.PIECES)]
  expected = num_draws * special.softmax(logits.astype(np.float64))
  is_kept = np.asarray([bool(piece.strip()) for piece in fakes.PIECES])
  is_kept[fakes.EOS] = False
  assert counts[~is_kept].sum() == 0
  counts = [*counts[is_kept], num_draws - len(first)]
  expected = [*expected[is_kept], expected[~is_kept].sum()]
  assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_padded_vocabulary_is_never_sampled():
  params = dict(_PARAMS)
  # The likeliest by far; the distributions still count it.
  params['table'] = params['table'].at[:, len(fakes.PIECES) :].add(9.0)
  requests = [cases.make_request(name=str(i)) for i in range(8)]
  samples = cases.shared_engine().sample(params, requests, 0, 'test')
  for request, sample in zip(requests, samples, strict=True):
    assert sample.tokens.max() < len(fakes.PIECES)
    cases.check_distribution(params, request, sample)
    assert sample.score_probs.sum() < 0.01


def test_score_equals_a_pass_over_each_sequence():
  params = fakes.make_params([[fakes.NAN]])
  lengths = (5, 60, 7, 62, 64, 63, 9)
  sequences = [fakes.prompt(0, length) for length in lengths]
  sequences.append(fakes.prompt(1))
  engine = cases.make_engine(length_multiple=64)
  probs, greedy = engine.score(params, sequences)
  assert probs.dtype == np.float32 and probs.shape == (8, 5)
  # One leaves no room for the score, one is not finite.
  invalid = [4, 7]
  assert np.isnan(probs[invalid]).all() and (greedy[invalid] == -1).all()
  for i in set(range(8)) - set(invalid):
    logits = fakes.next_logits(params, sequences[i])
    wanted = special.softmax(logits.astype(np.float64))
    np.testing.assert_allclose(
      probs[i], wanted[list(fakes.SCORE_IDS)], atol=1e-6
    )
    assert greedy[i] == fakes.index_of(logits)


def watching(see):
  """A placement that shows what it is given to place."""

  class Watching(row_placement.RowPlacement):
    def place(self, rows):
      see(rows)
      return rows

  return Watching()


def test_sequences_of_a_bucket_are_read_together():
  batches = []
  engine = cases.make_engine(
    length_multiple=8, prefill_tokens=48, placement=watching(batches.append)
  )
  lengths = np.random.default_rng(0).permutation(np.arange(3, 60, 3))
  engine.score(_PARAMS, [fakes.prompt(0, length) for length in lengths])
  read = np.concatenate([row_lengths for _, row_lengths in batches])
  # Rows that only fill a batch have one token.
  assert read[read > 1].tolist() == [*range(3, 60, 3)]
  shapes = [tokens.shape for tokens, _ in batches]
  assert shapes[:4] == [(6, 8), (3, 16), (2, 24), (2, 24)]
  assert shapes[-2:] == [(1, 56), (1, 64)]


def test_all_cots_of_an_input_share_a_prefill():
  num_read = []

  def count(rows):
    if isinstance(rows, tuple):
      num_read.append((rows[1] > 1).sum())

  requests = _free_requests()
  engine = cases.make_engine(prefill_tokens=32, placement=watching(count))
  samples = engine.sample(_PARAMS, requests, 3, 'test')
  assert sum(num_read) == 7
  for sample in samples:
    wanted = _free_samples()[sample.example_id, sample.cot_index]
    np.testing.assert_equal(vars(sample), vars(wanted))


def test_stream_gives_each_sample_when_it_is_finished():
  # The second is done long before the first; the slots are two.
  scripts = [
    cases.script_of('ab' * 9 + cases.MARKER_TEXT),
    cases.script_of('a' + cases.MARKER_TEXT),
  ]
  requests = [cases.make_request(1 + i % 2, name=str(i)) for i in range(4)]
  engine = cases.shared_engine(slots=2, steps_per_call=2)
  order = [
    i for i, _ in engine.stream(fakes.make_params(scripts), requests, 0, 'test')
  ]
  assert order[:2] == [1, 0] and sorted(order) == [0, 1, 2, 3]


def test_progress():
  seen = []
  requests = [cases.make_request(1, name=str(i)) for i in range(5)]
  requests.append(cases.make_request(1, 70))
  samples = cases.shared_engine().sample(
    fakes.make_params([cases.script_of('ab')]),
    requests,
    0,
    'test',
    on_progress=seen.append,
  )
  last = seen[-1]
  assert (last.num_done, last.num_total) == (6, 6)
  assert last.finish_reasons == {'too_long': 1, 'end_token': 5}
  # One prompt, five times.
  assert last.prefill_tokens == 5
  # "a", "b" and the end token; then the fixed words and the score's place.
  num_steps = 3 + len(samples[0].tokens) - 2 + 1
  assert last.decode_tokens == 5 * num_steps
  # Four slots: one CoT is written after the other four.
  assert last.slot_steps == 2 * 4 * num_steps
  for before, after in itertools.pairwise(seen):
    assert 0 < before.prefill_secs <= after.prefill_secs
    assert 0 < before.decode_secs < after.decode_secs


def test_failed_cots_are_tried_again_and_then_dropped():
  sampling = dataclasses.replace(cases.PLAIN, max_new_tokens=3)
  # Without script no marker is ever written in three tokens.
  requests = [cases.make_request(name=str(i)) for i in range(6)]

  def sample(**settings):
    seen = []
    engine = cases.shared_engine(sampling=sampling, **settings)
    samples = engine.sample(
      _PARAMS, requests, 0, 'test', on_progress=seen.append
    )
    return samples, seen[-1].num_retries

  once, num_retries = sample()
  assert num_retries == 0 and all(s.is_usable for s in once)
  thrice, num_retries = sample(max_retries=2, unfinished='drop')
  assert num_retries == 12
  for first, last in zip(once, thrice, strict=True):
    assert (first.num_retries, last.num_retries) == (0, 2)
    assert last.finish_reason in ('length', 'end_token')
    assert not last.is_usable and last.greedy_index == -1
    assert len(last.tokens) == last.num_sampled_tokens
    num = min(first.num_sampled_tokens, last.num_sampled_tokens)
    assert first.tokens[:num].tolist() != last.tokens[:num].tolist() or num < 2
  # Given up as it is, a CoT has what the model wrote and no more.
  dropped, _ = sample(unfinished='drop')
  for first, last in zip(once, dropped, strict=True):
    assert fakes.decode_text(last.tokens).startswith(
      fakes.decode_text(first.tokens[: first.num_sampled_tokens])
    )


def test_non_finite_cots_are_tried_again():
  script = [*fakes.encode_text('ab'), fakes.NAN]
  requests = [cases.make_request(1), cases.make_request(2)]
  bad, good = cases.sample_scripts(
    [script, cases.script_of('a' + cases.MARKER_TEXT)],
    requests=requests,
    max_retries=3,
  )
  assert (bad.finish_reason, bad.num_retries) == ('non_finite', 3)
  assert (good.finish_reason, good.num_retries) == ('marker', 0)


def test_greedy_cots_are_not_tried_again():
  sampling = dataclasses.replace(cases.PLAIN, temperature=0.0)
  engine = cases.make_engine(sampling=sampling, max_retries=2)
  (sample,) = engine.sample(_PARAMS, [cases.make_request()], 0, 'test')
  assert sample.finish_reason != 'marker' and sample.num_retries == 0


def test_slots_are_hardly_ever_idle():
  # Rows without end token are as long as their prompts leave them room.
  params = dict(_PARAMS)
  params['table'] = params['table'].at[:, fakes.EOS].add(-99.0)
  lengths = np.random.default_rng(0).integers(10, 301, 256)
  num_forced = len(fakes.COT_FORMAT.lead_ids)
  sampling = dataclasses.replace(cases.PLAIN, max_new_tokens=300)
  engine = cases.make_engine(sampling=sampling, slots=8, max_length=340)
  requests = [
    cases.make_request(length=340 - num_forced - 1 - n, name=str(i))
    for i, n in enumerate(lengths.tolist())
  ]
  seen = []
  samples = engine.sample(params, requests, 0, 'test', on_progress=seen.append)
  written = np.asarray([s.num_sampled_tokens for s in samples])
  # Spaces at the end are not kept.
  assert (written >= lengths - 9).all() and (written <= lengths).all()
  assert seen[-1].decode_tokens / seen[-1].slot_steps > 0.9


def test_nothing_to_do():
  assert cases.shared_engine().sample(_PARAMS, [], 0, 'test') == []
  probs, greedy = cases.shared_engine().score(_PARAMS, [])
  assert probs.shape == (0, 5) and greedy.shape == (0,)


def test_few_shapes_are_compiled():
  num_traces = 0

  def project(params, hidden):
    nonlocal num_traces
    num_traces += 1
    return fakes.FNS.project(params, hidden)

  def prefill(*args):
    shapes.append(args[1].shape)
    return fakes.FNS.prefill(*args)

  shapes = []
  fns = fakes.FNS._replace(project=project, prefill=prefill)
  engine = cases.make_engine(fns=fns, length_multiple=8)
  # Several calls per batch, rewound rows and a short last batch.
  params = fakes.make_params(
    [cases.script_of('ab' + cases.MARKER_TEXT), cases.script_of('abc is so')]
  )
  requests = [
    cases.make_request(1 + i % 2, 3 + i, name=str(i)) for i in range(14)
  ]
  for seed in range(2):
    engine.sample(params, requests, seed, 'test')
  assert num_traces == 1
  # Prompts of 3 to 16 tokens: buckets of 8 and of 16. The third tells what a
  # slot is made of.
  assert sorted(shapes) == [(4, 1), (64, 16), (128, 8)]


def test_a_cache_is_a_multiple_of_the_models_block():
  def lengths(**settings):
    engine = cases.make_engine(**settings)
    return [engine.cache_length(longest) for longest in (1, 8, 9, 64)]

  of_8 = fakes.FNS._replace(cache_block=8)
  assert lengths(fns=of_8) == [8, 8, 16, 64]
  # No longer than the longest row needs.
  assert lengths() == [64] * 4


def test_bad_arguments():
  bad_format = dataclasses.replace(fakes.COT_FORMAT, score_ids=(99,))
  with pytest.raises(ValueError, match='token 99'):
    cases.make_engine(cot_format=bad_format)
  with pytest.raises(ValueError, match='num_valid_tokens=99'):
    cases.make_engine(num_valid_tokens=99)
  with pytest.raises(ValueError, match='slots=0'):
    cases.make_engine(slots=0)
  no_prompt = engine_lib.CotRequest('a', 0, np.zeros(0, np.int32))
  with pytest.raises(ValueError, match='has no tokens'):
    cases.shared_engine().sample(_PARAMS, [no_prompt], 0, 'test')


def test_format_without_marker_can_only_score():
  no_marker = dataclasses.replace(
    fakes.COT_FORMAT, marker='', lead_ids=fakes.COT_FORMAT.prefix_ids
  )
  engine = cases.make_engine(cot_format=no_marker)
  with pytest.raises(ValueError, match='no CoT'):
    engine.sample(_PARAMS, [cases.make_request()], 0, 'test')
  probs, _ = engine.score(_PARAMS, [fakes.prompt(0)])
  assert probs.shape == (1, 5) and np.isfinite(probs).all()
