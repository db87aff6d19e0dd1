"""What of a judge's rows is learnt, from the tokens and the method alone.

    tokens      x  x  x  c  c  So ... is  _  4  </s>
    targets     x  x  c  c  So ... is  _  4  </s>
    cot_mask    0  0  1  1  1  1   1   1  0  1
    score_mask  0  0  0  0  0  0   0   0  1  0

x: the prompt, c: the CoT. The end token is the last of a row, and the score
stands before it, in one token. Nothing is taken over from the other side here,
so that a mistake of one side in a mask or a weight sets both apart.
"""

from collections.abc import Sequence

import numpy as np
import transformers

from benchmarks.pytorch import judge

_WORDS = 'So the overall score is '


def objective(
  tokenizer: transformers.PreTrainedTokenizerBase,
  method: str,
  *,
  lambda_value: float,
  with_cot: bool,
  score_values: Sequence[float],
) -> judge.Objective:
  """The loss of a method.

    CE         -log p([s, y*] | x)
    RAFT       (E[y] - y*)^2
    CoT-RAFT   lambda (E[y] - y*)^2 - log p([s, y*] | x) without the digit

  Args:
    tokenizer: of the model; gives the scores' tokens.
    method: "ce", "raft" or "cot_raft".
    lambda_value: of CoT-RAFT.
    with_cot: whether the fixed words stand before a score.
    score_values: [Y] whole numbers of one digit.
  """
  ce_weight, score_weight, ce_includes_score = {
    'ce': (1.0, 0.0, True),
    'raft': (0.0, 1.0, False),
    'cot_raft': (1.0, lambda_value, False),
  }[method]
  texts = [f'{_WORDS if with_cot else ""}{value:g}' for value in score_values]
  ids = tokenizer(texts, add_special_tokens=False).input_ids
  return judge.Objective(
    ce_weight,
    score_weight,
    ce_includes_score,
    tuple(row[-1] for row in ids),
    tuple(score_values),
  )


def prompt_ids(
  tokenizer: transformers.PreTrainedTokenizerBase, prompt: str
) -> list[int]:
  """Tokens of the user's turn, up to where the judge begins to write."""
  if not tokenizer.chat_template:
    return [
      tokenizer.bos_token_id,
      *tokenizer.encode(prompt, add_special_tokens=False),
    ]
  return tokenizer.apply_chat_template(
    [{'role': 'user', 'content': prompt}],
    add_generation_prompt=True,
    return_dict=False,
  )


def batch(
  inputs: np.ndarray,
  targets: np.ndarray,
  is_token: np.ndarray,
  *,
  prompts: Sequence[Sequence[int]],
  end_id: int,
  of: judge.Objective,
) -> judge.Batch:
  """A batch with its masks and scores.

  Args:
    inputs, targets: [B, L] int, rows of one example each.
    is_token: [B, L] bool, what is no padding, which follows the row.
    prompts: tokens of all prompts there are.
    end_id: the end token.
    of: gives the scores' tokens.

  Raises:
    ValueError: a row that begins with no prompt, or ends otherwise.
  """
  cot_mask = np.zeros(inputs.shape, bool)
  score_mask = np.zeros(inputs.shape, bool)
  scores = np.zeros(inputs.shape, np.float32)
  values = dict(zip(of.score_ids, of.score_values, strict=True))
  for row, length in enumerate(is_token.sum(axis=1)):
    tokens = [int(inputs[row, 0]), *targets[row, :length].tolist()]
    *_, score, end = tokens
    if end != end_id or score not in values:
      raise ValueError(f'row {row} ends in tokens {score} and {end}')
    places = [len(p) for p in prompts if tokens[: len(p)] == list(p)]
    if not places:
      raise ValueError(f'row {row} begins with no prompt')
    cot_mask[row, max(places) - 1 : length] = True
    cot_mask[row, length - 2] = False
    score_mask[row, length - 2] = True
    scores[row, length - 2] = values[score]
  return judge.Batch(inputs, targets, is_token, cot_mask, score_mask, scores)
