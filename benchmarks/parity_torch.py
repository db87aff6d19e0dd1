"""The other side of `make parity`: benchmarks/pytorch, update by update.

Of our side it has the seed model, adapters to begin with, tokens, prompts as
text, and the schedule; what a method is, it knows by itself.
"""

from collections.abc import Sequence

import numpy as np
import transformers

from benchmarks import parity_cases, parity_jax
from benchmarks.pytorch import judge, rows
from tract_jax import types


class Side:
  """A model in training, and what its rows are read with."""

  def __init__(
    self, case: parity_cases.Case, ours: parity_jax.Side, device: str
  ):
    """Loads the model.

    Args:
      case: what is trained.
      ours: the other side, of which no update is made yet.
      device: of PyTorch.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.model)
    self._end_id = tokenizer.eos_token_id
    self._prompts = [rows.prompt_ids(tokenizer, p) for p in ours.prompts]
    self._objective = rows.objective(
      tokenizer,
      case.objective,
      lambda_value=case.lambda_value,
      with_cot=case.with_cot,
      score_values=ours.score_values,
    )
    self._model = judge.load(case.model, str(ours.start), device)
    self._trainer = judge.Trainer(
      self._model,
      self._objective,
      lr=ours.lr,
      num_warmup_steps=ours.num_warmup_steps,
      num_steps=ours.num_steps,
    )

  def step(self, given: types.Batch) -> judge.Figures:
    """One update, on the tokens of a batch of ours."""
    batch = rows.batch(
      given.inputs,
      given.targets,
      given.segment_ids > 0,
      prompts=self._prompts,
      end_id=self._end_id,
      of=self._objective,
    )
    return self._trainer.step(batch)

  def adapter(self) -> dict[str, np.ndarray]:
    """The adapter's matrices, under the names of a PEFT file."""
    return judge.adapter(self._model)

  def score_probs(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """[n, Y] probabilities of the scores behind token ids, eq. 3."""
    return judge.score_probs(self._model, sequences, self._objective.score_ids)
