"""Shows what a run would train on, before it does; writes nothing."""

from collections.abc import Sequence

import jax
import numpy as np

from tract_jax import types
from tract_jax.data import encoding
from tract_jax.models import quantization
from tract_jax.pipeline import (
  base_weights,
  build,
  encode_rows,
  fit_prompts,
  progress,
  read_data,
  shown_text,
)
from tract_jax.pipeline import methods as methods_lib

_BINS = 8
_BAR = 40
_PART_LINES = 24


def inspect(setup: build.Setup, data: read_data.RunData) -> None:
  """Prints one encoded example, score tokens, lengths and memory.

  Args:
    setup: of the run.
    data: its rows.

  Raises:
    types.InputError: rows that cannot be encoded.
  """
  say_model(setup)
  for name, rows in data.benchmarks.items():
    lengths = [len(setup.tokenizer.prompt_ids(e.prompt)) for e in rows]
    _say(
      f'{name}: {len(rows)} prompts, the longest of {max(lengths)} tokens'
      + _cut(data.fits.get(name))
    )
  if not data.train:
    return
  scores, label = setup.bare_scores, 'training rows without CoT'
  if methods_lib.any_with_cot(setup.config.methods):
    scores, label = setup.cot_scores, 'training rows with annotator CoT'
  encoded, report = encode_rows.encode_rows(
    setup, data.train, scores, None, label
  )
  fits = data.fits.get(read_data.TRAINING)
  _say(
    f'{label}: {report.num_kept} of {report.num_examples} kept, '
    f'{len(report.dropped_ids)} dropped'
    + fit_prompts.shown(report.dropped_ids)
    + (_cut(fits) if fits else ', none truncated')
    + f'; the longest has {report.longest_tokens} tokens, the limit is '
    f'{setup.config.data.max_length}'
  )
  if len(encoded):
    dropped = set(report.dropped_ids)
    first = next(e for e in data.train if e.example_id not in dropped)
    _say(f'example {first.example_id}, score {first.score:g}:')
    progress.say(marked(setup, encoded[0]))
    progress.say(histogram(encoding.sizes(encoded)[0].tolist()))
    _say(
      f'host memory of the encoded rows: {progress.gigabytes(encoded.nbytes)}'
    )


def say_model(setup: build.Setup) -> None:
  """Prints score tokens, parameters and their memory on each device."""
  tokenizer = setup.tokenizer
  _say(f'score tokens: {setup.cot_scores.describe(tokenizer)}')
  _say(f'score tokens without CoT: {setup.bare_scores.describe(tokenizer)}')
  total = sum(x.size for x in jax.tree.leaves(setup.model.stored))
  held = quantization.num_bytes(
    jax.tree.map(
      lambda x: x.update(shape=x.sharding.shard_shape(x.shape)),
      setup.model.abstract,
    )
  )
  mesh = ' x '.join(f'{k}={v}' for k, v in setup.model.mesh.shape.items())
  _say(
    f'model: {total:,} parameters, {progress.gigabytes(held)} on each of '
    f'{setup.model.mesh.size} {jax.devices()[0].platform} devices ({mesh})'
  )
  if memory := base_weights.load_memory(setup.model):
    _say(
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
    Prompt, CoT, score and end, each under a line that names it, long ones
    without their middle; the score's tokens with their ids and their text, as
    28740 "1" + 28734 "0"; and how many start tokens there are.
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
  lines = []
  for name, ids in parts.items():
    lines.append(shown_text.wrapped(f'[{name}, {len(ids)} tokens]'))
    lines.append(shown_text.block(decode(ids), _PART_LINES))
  return '\n'.join([*lines, _start_tokens(setup, tokens)])


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


def _start_tokens(setup, tokens: np.ndarray) -> str:
  """How often the start token stands in an example: once is right."""
  start = setup.tokenizer.hf.bos_token_id
  if start is None:
    return 'start tokens: none, the tokenizer has none'
  text = setup.tokenizer.decode([start])
  count = int(np.sum(tokens == start))
  return f'start tokens: {count} ({start} "{text}")'


def _cut(report: fit_prompts.FitReport | None) -> str:
  """What was done for length, for the end of a line; "" where nothing is."""
  if report is None:
    return ''
  cut, unfit = report.truncated_ids, report.unfit_ids
  return (
    f', {len(cut)} truncated{fit_prompts.shown(cut)}, {len(unfit)} that no '
    f'cut makes fit{fit_prompts.shown(unfit)}'
  )


def _say(line: str) -> None:
  progress.say(shown_text.wrapped(line))
