"""A tokenizer and an embedding that are not of one size, through build."""

import dataclasses

import numpy as np
import pytest

from tests.models import small_models
from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.pipeline import base_weights, build
from tract_jax.pipeline import config as config_lib
from tract_jax.sampling import engine as engine_lib


def build_with(folder, extra_rows):
  """A setup whose model has so many more embeddings than there are tokens."""
  tokenizer = small_tokenizers.byte_level()
  tokenizer.hf.save_pretrained(folder)
  small_models.save_llama(folder, tokenizer.vocab_size + extra_rows)
  overrides = {
    'model': {'path': str(folder), 'lora_rank': 0},
    'data': {'train_path': 'unused', 'max_length': 32, 'length_multiple': 8},
    'train': {'batch_size': 8},
    'sampling': {'slots': 8, 'max_new_tokens': 16, 'repetition_penalty': 1.0},
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
  }
  return build.build(config_lib.merge(overrides), as_judge=True)


def test_tokenizer_with_more_tokens_than_the_embedding(tmp_path):
  size = small_tokenizers.byte_level().vocab_size
  with pytest.raises(types.InputError) as error:
    build_with(tmp_path, -1)
  assert str(error.value) == (
    f'{tmp_path}: the tokenizer has {size} tokens, the embedding only'
    f' {size - 1}'
  )


def test_padded_rows_of_the_embedding_are_never_sampled(tmp_path):
  setup = build_with(tmp_path, 28)
  size = setup.tokenizer.vocab_size
  assert setup.model.config.vocab_size == size + 28
  params = base_weights.read_weights(setup.model)

  def favours_padding(params, hidden):
    logits = setup.model.fns.project(params, hidden)
    return logits.at[..., size:].add(30.0)

  def sample(fns):
    model = dataclasses.replace(setup.model, cot_fns=fns)
    engine = build.make_engine(
      build.Setup(**{**vars(setup), 'model': model}), with_cot=True
    )
    prompt = setup.tokenizer.prompt_ids('It is')
    requests = [engine_lib.CotRequest(str(i), 0, prompt) for i in range(8)]
    return engine.sample(params, requests, 0, 'test')

  fns = setup.model.fns
  plain = sample(fns)
  favoured = sample(fns._replace(project=favours_padding))
  assert any(one.num_sampled_tokens > 2 for one in plain)
  for one, other in zip(plain, favoured, strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    # The distribution is still over all of the model's rows.
    assert other.score_probs.sum() < 1e-6 < one.score_probs.sum()
