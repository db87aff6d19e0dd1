"""Trains and asks a numeric judge with transformers, PEFT and PyTorch.

The formulas of TRACT (arXiv:2503.04381) and no code of its release. Batches and
adapters are read as the other side has them, so that both do the same work: on
the CPU, or on a GPU where `device` is "cuda".

Axes: B rows, L length, V vocabulary, Y score grid.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np
import peft
import torch
import transformers


@dataclasses.dataclass(frozen=True)
class Objective:
  """CE, RAFT or CoT-RAFT: two weights.

  Attributes:
    ce_weight: of the mean cross-entropy per target token.
    score_weight: lambda, of the mean squared error of the expected score.
    ce_includes_score: whether the score's token is a target of the former.
    score_ids: [Y] tokens of the scores.
    score_values: [Y] the scores.
  """

  ce_weight: float
  score_weight: float
  ce_includes_score: bool
  score_ids: tuple[int, ...]
  score_values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of one example each; numpy arrays as in tract_jax.types.Batch.

  Attributes:
    inputs, targets: [B, L] int.
    is_token: [B, L] bool, what is no padding.
    cot_mask, score_mask: [B, L] bool, targets that are CoT and end tokens, and
      scores.
    scores: [B, L] float, the rater's score where score_mask holds.
  """

  inputs: np.ndarray
  targets: np.ndarray
  is_token: np.ndarray
  cot_mask: np.ndarray
  score_mask: np.ndarray
  scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Figures:
  """What an update reports.

  Attributes:
    loss: the objective.
    ce: mean cross-entropy per target token, nats; 0 where it is no part of
      the objective.
    score_mse: mean squared error of the expected score.
    grad_norm: before clipping.
  """

  loss: float
  ce: float
  score_mse: float
  grad_norm: float


def load(
  model: str, adapter: str | peft.LoraConfig | None = None, device: str = 'cpu'
) -> torch.nn.Module:
  """A model in float32 to be trained, as a whole or by an adapter.

  Args:
    model: a Hugging Face folder.
    adapter: a PEFT folder, or the numbers of a new one; None: all weights.
    device: "cpu" or "cuda".
  """
  base = transformers.AutoModelForCausalLM.from_pretrained(
    model, dtype=torch.float32, attn_implementation='sdpa'
  )
  if isinstance(adapter, str):
    base = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
  elif adapter:
    base = peft.get_peft_model(base, adapter)
  return base.to(device).train()


def loss_parts(
  model: torch.nn.Module, batch: Batch, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
  """Mean cross-entropy, and mean squared error of the expected score.

  Args:
    model: gives logits [B, L, V].
    batch: the rows; position i predicts targets[i].
    objective: says which targets the cross-entropy is of.

  Returns:
    Two scalars.
  """
  device = next(model.parameters()).device
  arrays = {
    name: torch.as_tensor(array, device=device)
    for name, array in vars(batch).items()
  }
  logits = model(
    input_ids=arrays['inputs'].long(),
    attention_mask=arrays['is_token'].long(),
  ).logits.float()
  log_probs = logits.log_softmax(dim=-1)
  score_mask = arrays['score_mask']
  tokens = arrays['cot_mask']
  if objective.ce_includes_score:
    tokens = tokens | score_mask
  nll = -log_probs.gather(-1, arrays['targets'].long()[..., None])[..., 0]
  grid = torch.tensor(objective.score_values, device=device)
  probs = log_probs[score_mask][:, list(objective.score_ids)].exp()
  error = (probs * grid).sum(dim=-1) - arrays['scores'][score_mask]
  return nll[tokens].mean(), error.square().mean()


class Trainer:
  """AdamW with clipping, warm-up and cosine decay."""

  def __init__(
    self,
    model: torch.nn.Module,
    objective: Objective,
    *,
    lr: float,
    num_warmup_steps: int,
    num_steps: int,
    clip_norm: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    micro_batch_size: int = 0,
  ):
    self._model = model
    self._objective = objective
    self._clip_norm = clip_norm
    self._micro_batch_size = micro_batch_size
    self._params = [p for p in model.parameters() if p.requires_grad]
    self._optimizer = torch.optim.AdamW(
      self._params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )
    self._schedule = transformers.get_cosine_schedule_with_warmup(
      self._optimizer, num_warmup_steps, num_steps
    )

  def step(self, batch: Batch) -> Figures:
    """One update, of means over the whole batch, however it is split."""
    objective = self._objective
    totals = [0.0, 0.0, 0.0]
    for part, ce_share, score_share in self._parts(batch):
      ce, score_mse = loss_parts(self._model, part, objective)
      ce, score_mse = ce * ce_share, score_mse * score_share
      if not objective.ce_weight:
        ce = torch.zeros_like(ce)
      loss = objective.ce_weight * ce + objective.score_weight * score_mse
      loss.backward()
      found = (float(x.detach()) for x in (loss, ce, score_mse))
      totals = [a + b for a, b in zip(totals, found, strict=True)]
    norm = torch.nn.utils.clip_grad_norm_(self._params, self._clip_norm)
    self._optimizer.step()
    self._schedule.step()
    self._optimizer.zero_grad()
    numbers = (*totals, float(norm))
    return Figures(*numbers)

  def _parts(self, batch: Batch) -> Iterator[tuple[Batch, float, float]]:
    """Rows of one pass, and their shares of all target tokens and scores."""
    ce_mask = batch.cot_mask
    if self._objective.ce_includes_score:
      ce_mask = ce_mask | batch.score_mask
    size = self._micro_batch_size or len(batch.inputs)
    for start in range(0, len(batch.inputs), size):
      rows = slice(start, start + size)
      part = Batch(**{k: array[rows] for k, array in vars(batch).items()})
      # The last batch of a training may have rows of nothing but padding.
      if part.score_mask.any():
        yield (
          part,
          float(ce_mask[rows].sum() / ce_mask.sum()),
          float(part.score_mask.sum() / batch.score_mask.sum()),
        )


def adapter(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """The adapter's matrices, under the names of a PEFT file."""
  return {
    name: tensor.detach().float().cpu().numpy()
    for name, tensor in peft.get_peft_model_state_dict(model).items()
  }


@torch.inference_mode()
def score_probs(
  model: torch.nn.Module,
  sequences: Sequence[np.ndarray],
  score_ids: Sequence[int],
) -> np.ndarray:
  """Probabilities of the scores after each sequence: CoT-RAIL's, eq. 3.

  Args:
    model: gives logits.
    sequences: token ids [l] up to the score.
    score_ids: [Y].

  Returns:
    [n, Y] softmax over the whole vocabulary, at the scores.
  """
  device = next(model.parameters()).device
  model.eval()
  rows = []
  for sequence in sequences:
    ids = torch.as_tensor(np.asarray(sequence), device=device).long()[None]
    logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    rows.append(logits.softmax(dim=-1)[list(score_ids)].cpu().numpy())
  return np.stack(rows)
