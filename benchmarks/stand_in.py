"""Gives an engine without `stream` the interface of one that has it.

To be deleted, with its two uses in sampling_jax, where the engine has it.
"""

import dataclasses
import time
from typing import Any

import jax

from tract_jax.pipeline import config as config_lib


@dataclasses.dataclass
class Progress:
  """The fields of the engine's own that are used here."""

  prefill_tokens: int = 0
  prefill_secs: float = 0.0
  decode_tokens: int = 0
  decode_secs: float = 0.0


def named(settings: dict[str, Any]) -> dict[str, Any]:
  """Settings by the names that the configuration has."""
  known = config_lib.keys(config_lib.default_config())
  rows = 'sampling.rows'
  return {
    rows if k == 'sampling.slots' and rows in known else k: v
    for k, v in settings.items()
  }


def adapted(engine):
  """The engine, its device calls timed."""
  return engine if hasattr(engine, 'stream') else _Adapted(engine)


class _Adapted:
  def __init__(self, engine):
    self._engine = engine
    self._told = Progress()
    prefill, steps = engine._prefill, engine._decode_steps

    def timed_prefill(params, tokens, lengths, cache_length):
      begin = time.perf_counter()
      out = jax.block_until_ready(
        prefill(params, tokens, lengths, cache_length)
      )
      self._told.prefill_secs += time.perf_counter() - begin
      self._told.prefill_tokens += int(lengths.sum())
      return out

    def timed_steps(*args):
      begin = time.perf_counter()
      out = jax.block_until_ready(steps(*args))
      self._told.decode_secs += time.perf_counter() - begin
      self._told.decode_tokens += int(out[1].counts.sum())
      return out

    engine._prefill, engine._decode_steps = timed_prefill, timed_steps

  def sample(self, params, requests, seed, purpose, on_progress):
    self._told = Progress()
    samples = self._engine.sample(params, requests, seed, purpose)
    on_progress(self._told)
    return samples
