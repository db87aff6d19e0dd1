"""Small random models of transformers, written as Hugging Face folders."""

import pathlib
from typing import Any

import torch
import transformers

_FIELDS = {
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
}


def save(
  folder: pathlib.Path, family: str, **fields: Any
) -> transformers.PreTrainedModel:
  """Writes a model of two layers in float32, without tokenizer.

  Args:
    folder: to write to.
    family: transformers' name of the architecture, such as "llama".
    **fields: of its config.

  Returns:
    The model, whose weights are the same each time.
  """
  config = transformers.AutoConfig.for_model(family, **(_FIELDS | fields))
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(
    config, dtype=torch.float32
  ).eval()
  model.save_pretrained(folder)
  return model
