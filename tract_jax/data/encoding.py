"""Examples as tokens, in one process or several.

In: examples (text), a tokenizer and its score tokens. Out: EncodedExample,
numpy arrays in which position i predicts targets[i]:

  tokens      x  x  x | c  c  So ... is  _ | 4 | </s>
              prompt    CoT, marker, prefix  score  end

  inputs      all but the last token
  targets     all but the first
  cot_mask    target is of "CoT, marker, prefix" or the end
  score_mask  target is the score, of one token or several

Nothing is cut here: what is too long is an error or dropped and listed (long
prompts are cut where data is read, by `truncation`). Axes: l tokens.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
from typing import Any

import numpy as np

from tract_jax import types
from tract_jax.data import encoded_examples, row_pool
from tract_jax.objectives import targets as targets_lib
from tract_jax.text import score_tokens as score_tokens_lib
from tract_jax.text import tokenizer as tokenizer_lib

POLICIES = ('error', 'drop')


@dataclasses.dataclass(frozen=True)
class EncodeReport:
  """What became of the examples.

  Attributes:
    num_examples: given.
    num_kept: encoded.
    dropped_ids: example ids of those that were too long, in order.
    longest_tokens: inputs of the longest example, dropped ones included.
    target_tokens: CoT, score and end tokens of those kept, together.
  """

  num_examples: int
  num_kept: int
  dropped_ids: tuple[str, ...]
  longest_tokens: int
  target_tokens: int


def prompt_and_cot_ids(
  example: types.Example,
  tokenizer: tokenizer_lib.Tokenizer,
  score_tokens: score_tokens_lib.ScoreTokens,
  sample_tokens: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
  """All tokens up to right before the score.

  Args:
    example: the judgement.
    tokenizer: the tokenizer.
    score_tokens: of targets with CoT, or bare ones (marker ""), whose CoT is
      left out.
    sample_tokens: [l] a sampled CoT that ends right before the score, used as
      it is; None: the example's own CoT, tokenised.

  Returns:
    The tokens [l] int32, and how many of them are the prompt's. The score is
    the next token.

  Raises:
    types.InputError: the score's tokens are not those that were found for its
      grid value, or a sample does not end where a score follows.
  """
  try:
    prompt = tokenizer.prompt_ids(example.prompt)
    if sample_tokens is None:
      before = _own_cot_ids(example, tokenizer, score_tokens)
    else:
      before = _sampled_cot_ids(sample_tokens, score_tokens)
  except types.InputError as error:
    raise types.InputError(f'example {example.example_id}: {error}') from error
  return np.concatenate([prompt, before]), len(prompt)


def encode_example(
  example: types.Example,
  tokenizer: tokenizer_lib.Tokenizer,
  score_tokens: score_tokens_lib.ScoreTokens,
  sample_tokens: np.ndarray | None = None,
) -> types.EncodedExample:
  """Encodes one example, shifted once.

  Args:
    example: the judgement. A score between two grid values is written as the
      nearer one and kept as it is in `score`.
    tokenizer: the tokenizer.
    score_tokens: of targets with CoT, or bare ones (marker "").
    sample_tokens: [l] a self-CoT that ends right before the score; None: the
      example's own CoT.

  Returns:
    The encoded example, with the end token as last target.

  Raises:
    types.InputError: as `prompt_and_cot_ids`, or there is no score to learn.
  """
  value = _score(example)
  before, num_prompt = prompt_and_cot_ids(
    example, tokenizer, score_tokens, sample_tokens
  )
  score = score_ids(example, score_tokens)
  ending = np.asarray([*score, tokenizer.eos_id], np.int32)
  return encoded_examples.record(
    np.concatenate([before, ending]),
    num_prompt=num_prompt,
    num_score_tokens=len(score),
    score=value,
    target_probs=targets_lib.grid_distribution(
      example.ratings or (value,), score_tokens.grid.values
    ),
  )


def score_ids(
  example: types.Example, score_tokens: score_tokens_lib.ScoreTokens
) -> tuple[int, ...]:
  """Tokens of the score that stands in the example's target.

  Raises:
    types.InputError: there is no score.
  """
  return score_tokens.sequences[score_tokens.grid.nearest(_score(example))]


def encode_all(
  examples: Sequence[types.Example],
  tokenizer: tokenizer_lib.Tokenizer,
  score_tokens: score_tokens_lib.ScoreTokens,
  *,
  max_length: int,
  too_long: str,
  samples: Sequence[np.ndarray] | None = None,
  num_processes: int = 1,
  on_rows: Callable[[int, int], None] = lambda rows, tokens: None,
) -> tuple[encoded_examples.EncodedExamples, EncodeReport]:
  """Encodes examples and applies the policy for those that are too long.

  Args:
    examples: the judgements.
    tokenizer: the tokenizer.
    score_tokens: of targets with CoT, or bare ones (marker "").
    max_length: inputs an example may have; the end token is no input.
    too_long: "error" or "drop".
    samples: a self-CoT for each example, as for `encode_example`; None: the
      examples' own CoTs.
    num_processes: that share the work; the result is the same.
    on_rows: is told how many rows and tokens more are done; what it raises ends
      the work.

  Returns:
    The encoded examples in order, without the dropped ones, and the report.

  Raises:
    types.InputError: an unknown policy, an example too long under "error", or
      one that cannot be encoded; a line each.
  """
  if too_long not in POLICIES:
    raise types.InputError(
      f'data.too_long: {too_long!r} is none of {", ".join(POLICIES)}'
    )
  chunks = _chunks(examples, samples)
  context = (tokenizer, score_tokens, max_length)
  builder = encoded_examples.Builder()
  dropped, problems, longest = [], [], 0
  work = row_pool.map_chunks(_encode_chunk, context, chunks, num_processes)
  with contextlib.closing(work):
    for (rows, _), chunk in zip(chunks, work, strict=True):
      builder.add(chunk.encoded)
      longest = max(longest, chunk.longest)
      if too_long == 'drop':
        dropped += [rows[i].example_id for i in chunk.too_long]
      for i, problem in sorted(_problems(chunk, too_long, max_length).items()):
        problems.append(f'example {rows[i].example_id}: {problem}')
      on_rows(len(rows), len(chunk.encoded.tokens))
  types.raise_problems(problems, 'more examples')
  encoded = builder.examples()
  return encoded, EncodeReport(
    num_examples=len(examples),
    num_kept=len(encoded),
    dropped_ids=tuple(dropped),
    longest_tokens=longest,
    target_tokens=int(encoded.num_targets.sum()),
  )


def sizes(
  examples: Sequence[types.EncodedExample],
) -> tuple[np.ndarray, np.ndarray]:
  """Lengths and numbers of targets, of arrays or of single records.

  Args:
    examples: `EncodedExamples`, or any other sequence.

  Returns:
    [n] int64 inputs of each example, and [n] int64 targets that are learnt in
    each: CoT, score and end.
  """
  if not isinstance(examples, encoded_examples.EncodedExamples):
    lengths = [len(e.inputs) for e in examples]
    targets = [num_targets(e) for e in examples]
    return np.array(lengths, np.int64), np.array(targets, np.int64)
  return examples.lengths, examples.num_targets


def num_targets(encoded: types.EncodedExample) -> int:
  """How many of an example's targets are learnt: CoT, score and end."""
  return int(np.sum(encoded.cot_mask | encoded.score_mask))


@dataclasses.dataclass(frozen=True)
class _Chunk:
  """What became of the rows of one piece of work.

  Attributes:
    encoded: those that fit.
    too_long: {index in the chunk: inputs} of those that do not.
    problems: {index in the chunk: why it cannot be encoded}.
  """

  encoded: encoded_examples.EncodedExamples
  too_long: dict[int, int]
  problems: dict[int, str]

  @property
  def longest(self) -> int:
    """Inputs of the longest row, whether it fits or not."""
    return max([0, *self.encoded.lengths.tolist(), *self.too_long.values()])


def _chunks(examples, samples) -> list[tuple]:
  """(rows, their samples or None) of each piece of work."""
  if samples is not None and len(samples) != len(examples):
    raise ValueError(f'{len(samples)} samples for {len(examples)} examples')
  size = row_pool.CHUNK_ROWS
  return [
    (examples[i : i + size], samples and samples[i : i + size])
    for i in range(0, len(examples), size)
  ]


def _encode_chunk(context: Any, chunk: Any) -> _Chunk:
  """Encodes some rows; runs in a process of the pool."""
  tokenizer, score_tokens, max_length = context
  examples, samples = chunk
  kept: list[types.EncodedExample] = []
  too_long: dict[int, int] = {}
  problems: dict[int, str] = {}
  cots = [None] * len(examples) if samples is None else samples
  for i, (example, cot) in enumerate(zip(examples, cots, strict=True)):
    try:
      encoded = encode_example(example, tokenizer, score_tokens, cot)
    except types.InputError as error:
      problems[i] = str(error).removeprefix(f'example {example.example_id}: ')
      continue
    if len(encoded.inputs) > max_length:
      too_long[i] = len(encoded.inputs)
    else:
      kept.append(encoded)
  return _Chunk(encoded_examples.pack(kept), too_long, problems)


def _problems(chunk: _Chunk, too_long: str, max_length: int) -> dict[int, str]:
  """{index in the chunk: why the run cannot go on with it}."""
  if too_long == 'drop':
    return chunk.problems
  lengths = {
    i: f'{length} tokens are more than data.max_length {max_length}; raise it '
    'or set data.too_long to drop or truncate'
    for i, length in chunk.too_long.items()
  }
  return chunk.problems | lengths


def _score(example: types.Example) -> float:
  if example.score is None:
    raise types.InputError(f'example {example.example_id}: has no score')
  return example.score


def _own_cot_ids(
  example: types.Example,
  tokenizer: tokenizer_lib.Tokenizer,
  score_tokens: score_tokens_lib.ScoreTokens,
) -> np.ndarray:
  """Tokens of the example's target before the score, which is checked."""
  # What stands before the score is the same for every score.
  score = example.score
  index = 0 if score is None else score_tokens.grid.nearest(score)
  text = score_tokens.grid.texts[index]
  target = score_tokens_lib.encode_target(
    tokenizer,
    example.cot if score_tokens.marker else '',
    text,
    score_tokens.marker,
  )
  ids = score_tokens.sequences[index]
  found = tuple(target.ids[target.marker_end :].tolist())
  if found != (*score_tokens.prefix_ids, *ids):
    raise types.InputError(
      f'score {text} is tokens {list(found)} after this CoT, not '
      f'{[*score_tokens.prefix_ids, *ids]}'
    )
  return target.ids[: len(target.ids) - len(ids)]


def _sampled_cot_ids(
  sample_tokens: np.ndarray, score_tokens: score_tokens_lib.ScoreTokens
) -> np.ndarray:
  """A sampled CoT as it is, once its end is checked."""
  ids = np.asarray(sample_tokens, np.int32)
  num_prefix = len(score_tokens.prefix_ids)
  ending = tuple(ids[len(ids) - num_prefix :].tolist())
  if ending != score_tokens.prefix_ids:
    raise types.InputError(
      f'its sampled CoT ends in tokens {ending}, not in '
      f'{score_tokens.prefix_ids}, which precede a score'
    )
  return ids
