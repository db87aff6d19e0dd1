"""What the sampler is asked for, and how it says how far it is."""

import dataclasses
import hashlib
import json

import numpy as np

from tract_jax import types


@dataclasses.dataclass(frozen=True)
class CotRequest:
  """One CoT to sample.

  Attributes:
    example_id, cot_index: which input, and which of its CoTs.
    prompt_ids: [l] int32, up to where the CoT begins.
  """

  example_id: str
  cot_index: int
  prompt_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a call of `Engine.stream` is; given after each device call.

  Attributes:
    num_done, num_total: requests.
    prefill_tokens, prefill_secs: tokens of the prompts that were read, and the
      time that it took, compilation included.
    decode_tokens, decode_secs: tokens that were written, also for CoTs that
      failed, and the time that it took, compilation included.
    num_slots: that are written in together.
    slot_steps: decoding steps, counted for each slot.
    num_retries: attempts that failed and were made again.
    finish_reasons: of the finished samples, how many ended for which reason.
  """

  num_done: int
  num_total: int
  prefill_tokens: int
  prefill_secs: float
  decode_tokens: int
  decode_secs: float
  num_slots: int
  slot_steps: int
  num_retries: int
  finish_reasons: dict[str, int]


def key_data(
  seed: int, purpose: str, request: CotRequest, num_retries: int = 0
) -> np.ndarray:
  """The key of a CoT, the same in any process: Python's own hash is not.

  Args:
    seed: of the run.
    purpose: keeps keys of different uses apart, such as "self_cot".
    request: which CoT.
    num_retries: attempts that failed before.

  Returns:
    [2] uint32.
  """
  name = [seed, purpose, request.example_id, request.cot_index]
  if num_retries:
    name.append(num_retries)
  digest = hashlib.sha256(json.dumps(name).encode()).digest()
  return np.frombuffer(digest[:8], '>u4').astype(np.uint32)


def too_long(request: CotRequest, num_scores: int) -> types.CotSample:
  """The sample of a prompt that leaves no room for a CoT.

  Args:
    request: which CoT.
    num_scores: Y.

  Returns:
    A sample without tokens.
  """
  return types.CotSample(
    example_id=request.example_id,
    cot_index=request.cot_index,
    tokens=np.zeros(0, np.int32),
    num_sampled_tokens=0,
    finish_reason='too_long',
    score_probs=np.full(num_scores, np.nan, np.float32),
    greedy_index=-1,
  )
