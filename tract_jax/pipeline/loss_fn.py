"""The model and the loss as one pure function of params and rows."""

from collections.abc import Callable
import functools

from tract_jax import types
from tract_jax.models import lora
from tract_jax.objectives import losses, score_tree
from tract_jax.parallel import mapping
from tract_jax.pipeline import base_model
from tract_jax.text import score_tokens
from tract_jax.training import step as step_lib


def make_loss_fn(
  model: base_model.BaseModel,
  scores: score_tokens.ScoreTokens,
  objective: losses.Objective,
  *,
  num_targets: int,
  chunk_size: int,
) -> step_lib.LossFn:
  """Makes the loss of a training step: hidden states, head, loss terms.

  Args:
    model: whose functions are called.
    scores: score tokens of the rows, after a CoT or without one.
    objective: names the terms.
    num_targets: the most target positions of any row, or more.
    chunk_size: target positions per row whose logits exist at a time.

  Returns:
    (trainable, frozen, rows) -> LossTerms of these rows.
  """
  target = losses.GridTokens(scores.ids, scores.grid.values)

  def loss_fn(trainable, frozen, rows):
    params = lora.merge(trainable, frozen)
    project = functools.partial(model.fns.project, model.fns.head(params))
    inputs = rows.inputs, rows.positions, rows.segment_ids
    log_probs = None
    if scores.tree is None:
      hidden = model.fns.hidden(params, *inputs)
    else:
      starts = score_tree.start_indices(rows)
      hidden, nodes = model.fns.hidden_and_tree(
        params, *inputs, starts, scores.tree
      )
      log_probs = score_tree.projected(project, nodes, scores.tree)
    return losses.loss_terms(
      project,
      hidden,
      rows,
      objective,
      target,
      num_targets=num_targets,
      chunk_size=chunk_size,
      grid_log_probs=log_probs,
    )

  return loss_fn


def make_cot_terms(
  model: base_model.BaseModel,
  scores: score_tokens.ScoreTokens,
  *,
  chunk_size: int,
  mode: str,
) -> Callable[[types.PyTree, types.Batch], types.LossTerms]:
  """Maps the cross-entropy of given CoTs onto the model's mesh.

  Args:
    model: of one process.
    scores: score tokens after a CoT.
    chunk_size: as for `make_loss_fn`.
    mode: "jit" or "pmap".

  Returns:
    (the whole model's params, Batch [B, L] of numpy) -> LossTerms, whose ce_sum
    and ce_count are of all targets but the score; compiled on first use.
  """
  loss_fn = make_loss_fn(
    model,
    scores,
    losses.Objective(1.0, 0.0, ce_includes_score=False),
    # Any position may be one: rows of other lengths need no other program.
    num_targets=model.config.longest_row,
    chunk_size=chunk_size,
  )

  def terms(params, rows):
    return loss_fn(*lora.split_trainable(params, model.train_base), rows)

  return mapping.map_rows(terms, model.mesh, outputs='sums', mode=mode)
