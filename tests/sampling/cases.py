"""Engines on the fake model, and what their samples are checked against."""

import functools

import numpy as np
from scipy import special

from tests.sampling import fakes
from tract_jax.sampling import engine as engine_lib

MARKER_TEXT = f' {fakes.MARKER} 4'
# All sampling is of raw logits unless a test is about the processors.
PLAIN = engine_lib.SamplingParams(
  top_p=1.0, repetition_penalty=1.0, max_new_tokens=24
)


def make_engine(
  *,
  fns=fakes.FNS,
  sampling=PLAIN,
  cot_format=fakes.COT_FORMAT,
  decode_text=fakes.decode_text,
  **settings,
):
  """An engine of 4 slots of 64 tokens, unless `settings` say otherwise."""
  defaults = dict(
    slots=4,
    max_length=64,
    steps_per_call=5,
    length_multiple=16,
    num_valid_tokens=len(fakes.PIECES),
  )
  return engine_lib.Engine(
    fns,
    sampling,
    cot_format,
    fakes.encode_text,
    decode_text,
    **{**defaults, **settings},
  )


@functools.cache
def shared_engine(**settings):
  """The engine of these settings, compiled once for all tests."""
  return make_engine(**settings)


def script_of(text):
  """What the model writes: the text and an end token."""
  return [*fakes.encode_text(text), fakes.EOS]


def make_request(script=0, length=5, name='a', cot_index=0):
  return engine_lib.CotRequest(name, cot_index, fakes.prompt(script, length))


def sample_scripts(scripts, *, requests=None, **settings):
  """Samples of one request per script, checked against full passes."""
  params = fakes.make_params(scripts)
  if requests is None:
    requests = [make_request(k + 1) for k in range(len(scripts))]
  engine = shared_engine(**settings)
  samples = engine.sample(params, requests, 0, 'test')
  for request, sample in zip(requests, samples, strict=True):
    check_distribution(params, request, sample)
  return samples


def check_distribution(params, request, sample):
  """The distribution is that of a pass over prompt and tokens alone."""
  if sample.finish_reason in ('too_long', 'non_finite'):
    assert np.isnan(sample.score_probs).all()
    assert sample.greedy_index == -1
    return
  tokens = [*request.prompt_ids, *sample.tokens]
  logits = fakes.next_logits(params, tokens)
  probs = special.softmax(logits.astype(np.float64))
  np.testing.assert_allclose(
    sample.score_probs, probs[list(fakes.SCORE_IDS)], atol=1e-5
  )
  assert sample.score_probs.dtype == np.float32
  assert sample.greedy_index == fakes.index_of(logits)


def text_of(sample):
  return fakes.decode_text(sample.tokens)


def facts_of(sample):
  """(finish reason, text up to the score, tokens not the model's own)."""
  num_written_for_it = len(sample.tokens) - sample.num_sampled_tokens
  return sample.finish_reason, text_of(sample), num_written_for_it
