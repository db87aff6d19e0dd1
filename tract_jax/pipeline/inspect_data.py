"""Shows what a run would train on, before it does; writes nothing."""

from collections.abc import Sequence

import jax
import numpy as np

from tract_jax import types
from tract_jax.data import encoding
from tract_jax.models import quantization
from tract_jax.pipeline import base_model, build, progress, read_data

_BINS = 8
_BAR = 40


def inspect(setup: build.Setup, data: read_data.RunData) -> None:
  """Prints one encoded example, score tokens, lengths and memory.

  Args:
    setup: of the run.
    data: its rows.

  Raises:
    types.InputError: rows that cannot be encoded.
  """
  say_model(setup)
  if not data.train:
    return
  config = setup.config
  encoded, report = encoding.encode_all(
    data.train,
    setup.tokenizer,
    setup.cot_scores,
    max_length=config.data.max_length,
    too_long=config.data.too_long,
  )
  progress.say(
    f'training rows with annotator CoT: {report.num_kept} of '
    f'{report.num_examples} kept, {len(report.dropped_ids)} dropped, none '
    f'truncated; the longest has {report.longest_tokens} tokens'
  )
  if encoded:
    progress.say(marked(setup, encoded[0]))
    progress.say(histogram([len(e.inputs) for e in encoded]))


def say_model(setup: build.Setup) -> None:
  """Prints score tokens, parameters and their memory on each device."""
  tokenizer = setup.tokenizer
  progress.say(f'score tokens: {setup.cot_scores.describe(tokenizer)}')
  progress.say(
    f'score tokens without CoT: {setup.bare_scores.describe(tokenizer)}'
  )
  total = sum(x.size for x in jax.tree.leaves(setup.model.stored))
  held = quantization.num_bytes(
    jax.tree.map(
      lambda x: x.update(shape=x.sharding.shard_shape(x.shape)),
      setup.model.abstract,
    )
  )
  mesh = ' x '.join(f'{k}={v}' for k, v in setup.model.mesh.shape.items())
  progress.say(
    f'model: {total:,} parameters, {progress.gigabytes(held)} on each of '
    f'{setup.model.mesh.size} {jax.devices()[0].platform} devices ({mesh})'
  )
  if memory := base_model.load_memory(setup.model):
    progress.say(
      f'weights: this process reads {progress.gigabytes(memory.read_bytes)}; '
      f'beside its devices it holds {progress.gigabytes(memory.host_bytes)} at '
      f'most (for {memory.host_leaf})'
    )


def marked(setup: build.Setup, example: types.EncodedExample) -> str:
  """The text of an example with its parts marked.

  Args:
    setup: of the run.
    example: an encoded example.

  Returns:
    Prompt, CoT, score and end, each under a line that names it; the score's
    tokens with their ids and their text, as 28740 "1" + 28734 "0".
  """
  tokens = np.concatenate([example.inputs[:1], example.targets])
  score, last = (np.flatnonzero(example.score_mask)[[0, -1]] + 1).tolist()
  first = int(np.flatnonzero(example.cot_mask | example.score_mask)[0]) + 1
  decode = setup.tokenizer.decode
  ids = tokens[score : last + 1]
  pieces = ' + '.join(f'{i} "{decode([i])}"' for i in ids)
  parts = {
    'prompt': tokens[:first],
    'CoT': tokens[first:score],
    f'score, {pieces} at position {score}': ids,
    'end': tokens[last + 1 :],
  }
  return '\n'.join(
    f'[{name}, {len(ids)} tokens]\n{decode(ids)}' for name, ids in parts.items()
  )


def histogram(lengths: Sequence[int]) -> str:
  """A histogram of lengths in characters.

  Args:
    lengths: tokens per example, at least one.

  Returns:
    A line per bin: range, bar, count.
  """
  counts, edges = np.histogram(lengths, bins=_BINS)
  width = max(counts)
  return '\n'.join(
    f'{low:6.0f} to {high:6.0f} tokens '
    f'{"#" * round(_BAR * count / width):{_BAR}} {count}'
    for count, low, high in zip(counts, edges, edges[1:], strict=False)
  )
