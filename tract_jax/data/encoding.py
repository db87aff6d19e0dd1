"""Examples as tokens: the one place where inputs and targets are shifted.

In: examples (text), a tokenizer and its score tokens. Out: EncodedExample,
numpy arrays in which position i predicts targets[i]:

  tokens      x  x  x | c  c  So ... is  _ | 4 | </s>
              prompt    CoT, marker, prefix  score  end

  inputs      all but the last token
  targets     all but the first
  cot_mask    target is of "CoT, marker, prefix" or the end
  score_mask  target is the score, of one token or several

Nothing is ever cut: what is too long is an error or dropped and listed. Axes:
l tokens.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from tract_jax import types
from tract_jax.objectives import targets as targets_lib
from tract_jax.text import score_tokens as score_tokens_lib
from tract_jax.text import tokenizer as tokenizer_lib

POLICIES = ('error', 'drop')
_MAX_LINES = 20


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
  if example.score is None:
    raise types.InputError(f'example {example.example_id}: has no score')
  before, num_prompt = prompt_and_cot_ids(
    example, tokenizer, score_tokens, sample_tokens
  )
  score = score_tokens.sequences[score_tokens.grid.nearest(example.score)]
  ending = np.asarray([*score, tokenizer.eos_id], np.int32)
  tokens = np.concatenate([before, ending])
  # Aligned with targets: target i is token i + 1.
  position = np.arange(1, len(tokens))
  end = len(tokens) - 1
  score_mask = (position >= len(before)) & (position < end)
  return types.EncodedExample(
    inputs=tokens[:-1],
    targets=tokens[1:],
    cot_mask=(position >= num_prompt) & ~score_mask,
    score_mask=score_mask,
    score=example.score,
    target_probs=targets_lib.grid_distribution(
      example.ratings or (example.score,), score_tokens.grid.values
    ),
  )


def encode_all(
  examples: Sequence[types.Example],
  tokenizer: tokenizer_lib.Tokenizer,
  score_tokens: score_tokens_lib.ScoreTokens,
  *,
  max_length: int,
  too_long: str,
  samples: Sequence[np.ndarray] | None = None,
) -> tuple[list[types.EncodedExample], EncodeReport]:
  """Encodes examples and applies the policy for those that are too long.

  Args:
    examples: the judgements.
    tokenizer: the tokenizer.
    score_tokens: of targets with CoT, or bare ones (marker "").
    max_length: inputs an example may have; the end token is no input.
    too_long: "error" or "drop"; config.data.too_long.
    samples: a self-CoT for each example, as for `encode_example`; None: the
      examples' own CoTs.

  Returns:
    The encoded examples in order, without the dropped ones, and the report.

  Raises:
    types.InputError: an unknown policy, an example too long under "error", or
      one that cannot be encoded; a line each, 20 at most.
  """
  if too_long not in POLICIES:
    raise types.InputError(
      f'data.too_long: {too_long!r} is none of {", ".join(POLICIES)}'
    )
  cots = [None] * len(examples) if samples is None else samples
  kept, dropped, problems, longest = [], [], [], 0
  for example, cot in zip(examples, cots, strict=True):
    try:
      encoded = encode_example(example, tokenizer, score_tokens, cot)
    except types.InputError as error:
      problems.append(str(error))
      continue
    length = len(encoded.inputs)
    longest = max(longest, length)
    if length <= max_length:
      kept.append(encoded)
    elif too_long == 'drop':
      dropped.append(example.example_id)
    else:
      problems.append(
        f'example {example.example_id}: {length} tokens are more than '
        f'data.max_length {max_length}; raise it or set data.too_long=drop'
      )
  if problems:
    raise types.InputError(_lines(problems))
  return kept, EncodeReport(
    num_examples=len(examples),
    num_kept=len(kept),
    dropped_ids=tuple(dropped),
    longest_tokens=longest,
    target_tokens=sum(num_targets(encoded) for encoded in kept),
  )


def sizes(
  examples: Sequence[types.EncodedExample],
) -> tuple[np.ndarray, np.ndarray]:
  """Lengths and numbers of targets.

  Args:
    examples: any number of them.

  Returns:
    [n] int64 inputs of each example, and [n] int64 targets that are learnt in
    each: CoT, score and end.
  """
  lengths = [len(e.inputs) for e in examples]
  targets = [num_targets(e) for e in examples]
  return np.array(lengths, np.int64), np.array(targets, np.int64)


def num_targets(encoded: types.EncodedExample) -> int:
  """How many of an example's targets are learnt: CoT, score and end."""
  return int(np.sum(encoded.cot_mask | encoded.score_mask))


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


def _lines(problems: list[str]) -> str:
  shown = problems[:_MAX_LINES]
  if len(problems) > _MAX_LINES:
    shown.append(f'and {len(problems) - _MAX_LINES} more examples')
  return '\n'.join(shown)
