"""An engine on the fake model, and what its samples are checked against."""

import jax
import numpy as np
from scipy import special

from tests.sampling import fakes
from tract_jax.sampling import engine as engine_lib

MARKER_TEXT = f' {fakes.MARKER} 4'
# All sampling is of raw logits unless a test is about the processors.
PLAIN = engine_lib.SamplingParams(
  top_p=1.0, repetition_penalty=1.0, max_new_tokens=24
)


def script(text, *, ends=True):
  return [*fakes.encode_text(text), *([fakes.EOS] if ends else [])]


def engine(fns, *, sampling=PLAIN, **changes):
  settings = dict(rows=4, max_length=64, steps_per_call=5, length_multiple=16)
  changes.setdefault('num_valid_tokens', len(fakes.PIECES))
  cot_format = changes.pop('cot_format', fakes.COT_FORMAT)
  decode_text = changes.pop('decode_text', fakes.decode_text)
  return engine_lib.make_engine(
    fns,
    sampling,
    cot_format,
    fakes.encode_text,
    decode_text,
    **{**settings, **changes},
  )


def request(script=0, length=5, name='a', cot_index=0):
  return engine_lib.CotRequest(name, cot_index, fakes.prompt(script, length))


def params(fns):
  return fns.init(jax.random.key(0))


def sample(scripts, *, requests=None, **changes):
  """Samples of one request per script, checked against full passes."""
  fns = fakes.make_fns(scripts)
  params = params(fns)
  if requests is None:
    requests = [request(k + 1) for k in range(len(scripts))]
  samples = engine(fns, **changes).sample(params, requests, 0, 'test')
  for request, sample in zip(requests, samples, strict=True):
    check_distribution(fns, params, request, sample)
  return samples


def check_distribution(fns, params, request, sample):
  """The distribution is that of a pass over prompt and tokens alone."""
  if sample.finish_reason in ('too_long', 'non_finite'):
    assert np.isnan(sample.score_probs).all()
    assert sample.greedy_token == -1
    return
  tokens = [*request.prompt_ids, *sample.tokens]
  logits = fakes.next_logits(fns, params, tokens)
  probs = special.softmax(logits.astype(np.float64))
  np.testing.assert_allclose(
    sample.score_probs, probs[list(fakes.SCORE_IDS)], atol=1e-5
  )
  assert sample.score_probs.dtype == np.float32
  assert sample.greedy_token == logits[: len(fakes.PIECES)].argmax()


def text(sample):
  return fakes.decode_text(sample.tokens)


def facts(sample):
  return (
    sample.finish_reason,
    text(sample),
    len(sample.tokens) - sample.num_sampled_tokens,
  )
