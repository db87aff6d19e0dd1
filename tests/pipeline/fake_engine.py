"""Stands for the engine in tests of what is done with CoTs."""

import hashlib
import json

import numpy as np

from tract_jax import types
from tract_jax.sampling import engine as engine_lib
from tract_jax.text import score_tokens


class Engine:
  """CoTs made of their requests, in an order of its own.

  Attributes:
    setup: of the run, whose tokenizer writes the words.
    order: seed of the order in which CoTs end.
    on_request: is told how many were given before each.
    asked: (example_id, cot_index) of all requests.
    in_all: `num_in_all` of each stream.
  """

  def __init__(self, setup, order=0, on_request=lambda i: None):
    self.setup = setup
    self.order = order
    self.on_request = on_request
    self.asked = []
    self.in_all = []

  def stream(
    self,
    params,
    requests,
    seed,
    purpose,
    *,
    on_progress,
    max_length,
    num_in_all,
  ):
    assert max_length == self.setup.config.data.max_length
    self.in_all.append(num_in_all)
    self.asked += [(r.example_id, r.cot_index) for r in requests]
    # Finished out of order, but not before those that came long before.
    jitter = np.random.default_rng(self.order).uniform(0, 6, len(requests))
    reasons = {'marker': 0}
    for done, i in enumerate(np.argsort(np.arange(len(requests)) + jitter)):
      self.on_request(done)
      found = self.sample(params, requests[i], seed, purpose)
      reasons['marker'] += 1
      on_progress(
        engine_lib.Progress(
          num_done=done + 1,
          num_total=len(requests),
          prefill_tokens=100,
          prefill_secs=0.5,
          decode_tokens=40,
          decode_secs=2.0,
          num_slots=4,
          slot_steps=50,
          num_retries=1,
          finish_reasons=reasons,
        )
      )
      yield int(i), found

  def sample(self, params, request, seed, purpose):
    name = [params, request.example_id, request.cot_index, seed, purpose]
    draw = hashlib.sha256(json.dumps(name).encode()).digest()
    words = ['good', 'bad', 'red', 'blue'][: 1 + draw[0] % 3]
    target = score_tokens.encode_target(
      self.setup.tokenizer, ' '.join(words), '1', self.setup.cot_scores.marker
    )
    is_given_up = draw[1] % 4 == 0
    return types.CotSample(
      example_id=request.example_id,
      cot_index=request.cot_index,
      tokens=target.ids[:-1],
      num_sampled_tokens=len(target.ids) - 1,
      finish_reason='length' if is_given_up else 'marker',
      score_probs=np.full(5, np.nan if is_given_up else 0.2, np.float32),
      greedy_index=-1 if is_given_up else draw[2] % 5,
      num_retries=draw[3] % 2,
    )
