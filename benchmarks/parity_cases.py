"""What `make parity` trains: models, objectives, and our side's settings."""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

from benchmarks import random_models
from tract_jax.data import synthetic


@dataclasses.dataclass(frozen=True)
class Case:
  """One training that both sides do.

  Attributes:
    name: such as "tiny-llama cot_raft".
    model: a Hugging Face folder.
    objective: "ce", "raft" or "cot_raft".
    cot_source: "none", "annotator", or "self", stage 2's.
    settings: of our configuration, but for lambda.
    lambda_value: of CoT-RAFT.
  """

  name: str
  model: str
  objective: str
  cot_source: str
  settings: dict[str, Any]
  lambda_value: float = 1.0

  @property
  def with_cot(self) -> bool:
    """Whether a CoT stands before the score."""
    return self.cot_source != 'none'


_SETTINGS = {
  'name': 'parity',
  'data.source': 'synthetic',
  'data.synthetic_train': 128,
  'data.synthetic_test': 16,
  'sampling.max_new_tokens': 24,
  'train.batch_size': 4,
  'train.num_epochs': 2,
  'train.lr': 1e-3,
}
_STAGES = (
  ('ce', 'none', 1.0),
  ('raft', 'none', 1.0),
  ('cot_raft', 'annotator', 1.0),
  ('cot_raft', 'annotator', 5.0),
  ('cot_raft', 'self', 1.0),
)
_TINY = {
  'hidden_size': 64,
  'intermediate_size': 128,
  'max_position_embeddings': 512,
  'initializer_range': 0.1,
}


def tiny_cases(folder: pathlib.Path) -> Iterator[Case]:
  """Every objective on a random Llama and on a random Mistral with a window.

  Args:
    folder: where the models are written.

  Yields:
    The cases; each model is written before its first one.
  """
  for family, changes in (('llama', {}), ('mistral', {'sliding_window': 8})):
    model = _save(folder / family, family, changes)
    for objective, cot_source, lambda_value in _STAGES:
      name = f'tiny-{family} {objective} {cot_source}'
      if lambda_value != 1:
        name += f' lambda {lambda_value:g}'
      yield Case(
        name, str(model), objective, cot_source, _SETTINGS, lambda_value
      )


def real_case(model: pathlib.Path) -> Case:
  """CoT-RAFT on a pretrained model.

  Args:
    model: its folder.
  """
  settings = _SETTINGS | {'train.lr': 1e-4}
  name = f'{model.name} cot_raft annotator'
  return Case(name, str(model), 'cot_raft', 'annotator', settings)


def _save(
  folder: pathlib.Path, family: str, changes: dict[str, Any]
) -> pathlib.Path:
  tokenizer = synthetic.make_tokenizer()
  random_models.save(
    folder,
    family,
    vocab_size=len(tokenizer),
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
    **(_TINY | changes),
  )
  tokenizer.save_pretrained(folder)
  return folder
