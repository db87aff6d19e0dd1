"""A small architecture, and small random models saved as folders."""

import pathlib
from typing import Any

import pytest

from tests.text import small_tokenizers
from tract_jax.models import config as config_lib

CONFIG = config_lib.ModelConfig(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_position_embeddings=64,
)


def save_llama(folder: pathlib.Path, vocab_size: int, **changes) -> Any:
  """Writes a Llama of two layers, without tokenizer, and gives it back.

  Args:
    folder: to write to.
    vocab_size: V.
    **changes: other fields of its config.

  Returns:
    The model of transformers.
  """
  pytest.importorskip('torch')
  from benchmarks import random_models

  fields = {
    'vocab_size': vocab_size,
    'hidden_size': 32,
    'intermediate_size': 48,
    'max_position_embeddings': 128,
    # Attention is far from uniform; with more, float32 itself is off by 1e-5.
    'initializer_range': 0.15,
    'attn_implementation': 'eager',
    **changes,
  }
  return random_models.save(folder, 'llama', **fields)


def save_judge(folder: pathlib.Path) -> pathlib.Path:
  """Writes a Llama with a byte-level tokenizer, and gives the folder back."""
  tokenizer = small_tokenizers.byte_level()
  tokenizer.hf.save_pretrained(folder)
  save_llama(folder, tokenizer.vocab_size)
  return folder
