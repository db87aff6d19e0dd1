"""Encodes rows at any scale: in several processes, and once for all runs.

Neither changes a result, so neither is part of a fingerprint.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from tract_jax import types
from tract_jax.data import encoded_cache, encoding, row_pool
from tract_jax.pipeline import (
  build,
  interruption,
  progress,
)
from tract_jax.text import score_tokens


def encode_rows(
  setup: build.Setup,
  examples: Sequence[types.Example],
  scores: score_tokens.ScoreTokens,
  samples: Sequence[np.ndarray] | None,
  label: str,
  should_stop: Callable[[], bool] = lambda: False,
) -> encoded_cache.Encoded:
  """`encoding.encode_all` as the config wants it.

  Args:
    setup: of the run.
    examples: the rows.
    scores: score tokens after a CoT, or without one.
    samples: a self-CoT for each row; None: the rows' own CoTs.
    label: names the rows in progress lines, which a long job has.
    should_stop: asked after each chunk of rows.

  Returns:
    The encoded examples, with their ids, and the report.

  Raises:
    types.InputError: as `encoding.encode_all`.
    loop.Interrupted: stopped; the same call starts again.
  """
  data = setup.config.data
  num_chars = sum(len(e.prompt) + len(e.cot) for e in examples)
  num_processes = row_pool.num_processes(data.encode_processes, num_chars)
  is_large = row_pool.is_large(num_chars)
  # Prompts are cut already; what is still too long cannot be cut.
  arguments: dict[str, Any] = {
    'tokenizer': setup.tokenizer,
    'score_tokens': scores,
    'max_length': data.max_length,
    'too_long': 'error' if data.too_long == 'error' else 'drop',
    'samples': samples,
  }

  def make() -> encoded_cache.Encoded:
    return encoding.encode_all(
      examples,
      **arguments,
      num_processes=num_processes,
      on_rows=_on_rows(
        label, len(examples), num_processes, is_large, should_stop
      ),
    )

  if is_large and data.encode_cache:
    encoded, report = encoded_cache.encoded(
      encoded_cache.digest(examples, **arguments),
      make,
      lambda line: progress.say(f'{label}: {line}'),
    )
  else:
    encoded, report = make()
  ids = _kept_ids(examples, report.dropped_ids)
  return dataclasses.replace(encoded, ids=ids), report


def _kept_ids(
  examples: Sequence[types.Example], dropped: Sequence[str]
) -> tuple[str, ...]:
  """Ids of the rows less the dropped ones, which stand in the same order."""
  kept, left = [], list(reversed(dropped))
  for example in examples:
    if left and left[-1] == example.example_id:
      left.pop()
    else:
      kept.append(example.example_id)
  return tuple(kept)


def _on_rows(label, num_rows, num_processes, is_long, should_stop):
  """Shows the progress of a long job, and stops any."""
  show = progress.row_progress(label, num_rows, num_processes)

  def on_rows(num_rows: int, num_tokens: int) -> None:
    if is_long:
      show(num_rows, num_tokens)
    interruption.stop_if(should_stop, f'amid encoding {label}')

  return on_rows
