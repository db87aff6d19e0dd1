"""Tests of scores of several tokens, on the fake model and on a tiny Llama."""

import dataclasses

import numpy as np
import pytest
from scipy import special

from tests.sampling import cases, decode_loop_test, fakes
from tract_jax.sampling import engine as engine_lib
from tract_jax.text import token_tree

# "1", "12", "21" and "3".
SCORES = tuple(tuple(fakes.encode_text(t)) for t in ('1', '12', '21', '3'))
TREE = token_tree.make_tree([(*ids, fakes.EOS) for ids in SCORES])
TREE_FORMAT = dataclasses.replace(
  fakes.COT_FORMAT, score_ids=(), score_tree=TREE
)
SINGLE_TREE = token_tree.make_tree([(i, fakes.EOS) for i in fakes.SCORE_IDS])


def product_of_steps(next_logits, tokens, ids):
  """p(ids and the end token | tokens), by a pass for each token."""
  product = 1.0
  for i, token in enumerate((*ids, fakes.EOS)):
    logits = next_logits([*tokens, *ids[:i]]).astype(np.float64)
    product *= special.softmax(logits)[token]
  return product


def check(next_logits, request, sample):
  tokens = [*request.prompt_ids, *sample.tokens]
  wanted = [product_of_steps(next_logits, tokens, ids) for ids in SCORES]
  np.testing.assert_allclose(sample.score_probs, wanted, atol=1e-6, rtol=1e-4)
  assert sample.score_probs.dtype == np.float32
  written = []
  while len(written) < 4:
    logits = next_logits([*tokens, *written])[: len(fakes.PIECES)]
    if logits.argmax() == fakes.EOS:
      break
    written.append(int(logits.argmax()))
  found = SCORES.index(tuple(written)) if tuple(written) in SCORES else -1
  assert sample.greedy_index == found


def samples_of(texts, **settings):
  """Checked samples of rows that write these texts."""
  params = fakes.make_params([cases.script_of(text) for text in texts])
  requests = [cases.make_request(1 + i, 5 + 2 * i) for i in range(len(texts))]
  engine = cases.shared_engine(cot_format=TREE_FORMAT, **settings)
  samples = engine.sample(params, requests, 0, 'test')
  for request, sample in zip(requests, samples, strict=True):
    check(
      lambda tokens: np.asarray(fakes.next_logits(params, tokens)),
      request,
      sample,
    )
  return samples


@pytest.mark.parametrize('steps_per_call', [1, 5, 16])
def test_the_score_is_read_where_each_row_ends(steps_per_call):
  lead = f'ab {fakes.MARKER} '
  # Rows that end at different steps, one of them rewound, one completed.
  texts = [f'{lead}1', f'{lead}12', f'{lead[:-1]}. 4', 'cab', f'{lead}211']
  samples = samples_of(texts, slots=8, steps_per_call=steps_per_call)
  assert [s.greedy_index for s in samples[:2]] == [0, 1]
  assert samples[4].greedy_index == -1
  assert samples[0].score_probs[0] > 0.99
  assert samples[1].score_probs[1] > 0.99
  assert all(s.score_probs.sum() <= 1 + 1e-6 for s in samples)
  assert [s.finish_reason for s in samples].count('marker') == 4


def test_a_short_batch_and_several_batches():
  texts = [f'a {fakes.MARKER} {score}' for score in ('1', '12', '21')]
  found = [s.greedy_index for s in samples_of(texts, slots=2)]
  assert found == [0, 1, 2]


def test_score_reads_the_tree_after_given_tokens():
  params = fakes.make_params([[fakes.NAN]])
  engine = cases.make_engine(cot_format=TREE_FORMAT)
  # 62 tokens leave room for the longest score, 63 do not.
  sequences = [fakes.prompt(0, length) for length in (5, 9, 62, 63)]
  sequences.append(fakes.prompt(1))
  probs, greedy = engine.score(params, sequences)
  assert probs.shape == (5, 4) and probs.dtype == np.float32
  for i in range(3):
    wanted = [
      product_of_steps(
        lambda t: np.asarray(fakes.next_logits(params, t)), sequences[i], ids
      )
      for ids in SCORES
    ]
    np.testing.assert_allclose(probs[i], wanted, rtol=1e-4, atol=1e-7)
  assert np.isnan(probs[3:]).all() and (greedy[3:] == -1).all()


def test_non_finite_within_the_score_is_told():
  words = fakes.encode_text(f'ab {fakes.MARKER} 1')
  params = fakes.make_params(
    [[*words, fakes.NAN], cases.script_of(f'ab {fakes.MARKER} 1')]
  )
  requests = [cases.make_request(1), cases.make_request(2)]
  engine = cases.shared_engine(cot_format=TREE_FORMAT)
  bad, good = engine.sample(params, requests, 0, 'test')
  assert (bad.finish_reason, good.finish_reason) == ('non_finite', 'marker')
  assert np.isnan(bad.score_probs).all() and bad.greedy_index == -1
  assert good.greedy_index == 0


def test_prompts_that_leave_no_room_for_the_longest_score():
  engine = cases.shared_engine(cot_format=TREE_FORMAT)
  num_forced = len(TREE_FORMAT.lead_ids)
  requests = [cases.make_request(0, 64 - num_forced - n) for n in (3, 2)]
  samples = engine.sample(fakes.make_params(), requests, 0, 'test')
  assert [s.finish_reason == 'too_long' for s in samples] == [False, True]
  assert np.isnan(samples[1].score_probs).all()
  assert samples[1].score_probs.shape == (4,)


def test_a_format_has_either_tokens_or_a_tree():
  for scores in (
    dict(score_ids=(1,), score_tree=TREE),
    dict(score_ids=(), score_tree=None),
  ):
    with pytest.raises(ValueError, match='either score_ids or score_tree'):
      dataclasses.replace(fakes.COT_FORMAT, **scores)
  assert TREE_FORMAT.score_sequences == SCORES
  assert TREE_FORMAT.longest_score == 2
  assert fakes.COT_FORMAT.longest_score == 1


def llama_engine(**scores):
  fns, params = decode_loop_test._model()
  engine = engine_lib.Engine(
    fns,
    decode_loop_test.SAMPLING,
    dataclasses.replace(decode_loop_test.COT_FORMAT, **scores),
    fakes.encode_text,
    fakes.decode_text,
    slots=8,
    max_length=decode_loop_test.MAX_LENGTH,
    steps_per_call=4,
    length_multiple=decode_loop_test.MAX_LENGTH,
    num_valid_tokens=decode_loop_test.NUM_VALID,
  )
  return engine, params


def llama_requests(num):
  rng = np.random.default_rng(3)
  return [
    engine_lib.CotRequest(
      str(i), 0, rng.integers(3, 40, 4 + i % 9).astype(np.int32)
    )
    for i in range(num)
  ]


def test_distributions_of_a_llama_equal_full_passes():
  engine, params = llama_engine(score_ids=(), score_tree=TREE)
  requests = llama_requests(12)
  for request, sample in zip(
    requests, engine.sample(params, requests, 5, 'test'), strict=True
  ):
    check(decode_loop_test._next_logits, request, sample)


def test_one_token_or_a_tree_of_single_tokens_agree():
  """With the end token in both, they are the same probabilities."""
  requests = llama_requests(8)
  single, params = llama_engine()
  tree, _ = llama_engine(score_ids=(), score_tree=SINGLE_TREE)
  pairs = zip(
    requests,
    single.sample(params, requests, 5, 'test'),
    tree.sample(params, requests, 5, 'test'),
    strict=True,
  )
  for request, by_token, by_tree in pairs:
    np.testing.assert_array_equal(by_token.tokens, by_tree.tokens)
    tokens = [*request.prompt_ids, *by_token.tokens]
    ends = [
      special.softmax(
        decode_loop_test._next_logits([*tokens, i]).astype(np.float64)
      )[fakes.EOS]
      for i in fakes.SCORE_IDS
    ]
    np.testing.assert_allclose(
      by_tree.score_probs, by_token.score_probs * ends, rtol=1e-4, atol=1e-8
    )
