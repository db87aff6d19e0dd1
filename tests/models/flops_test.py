"""Operations of a model, counted by hand and against known numbers."""

import dataclasses

import pytest

from tract_jax import types
from tract_jax.models import config as config_lib
from tract_jax.models import flops, known_models

SMALL = config_lib.ModelConfig(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  max_position_embeddings=128,
)


def test_a_row_by_hand():
  found = flops.row_flops(SMALL, length=8, num_logits=3)
  # q 32 x 64, k and v 32 x 32 each, o 64 x 32, three of 32 x 48.
  layer = 2048 + 2 * 1024 + 2048 + 3 * 1536
  assert found.linear == 2 * 2 * layer * 8
  # 36 pairs; scores and values of 4 heads of 16, in 2 layers.
  assert found.attention == 2 * 2 * 2 * 36 * 64
  assert found.head == 2 * 32 * 64 * 3
  assert found.total == found.linear + found.attention + found.head


def test_pairs_that_see_each_other():
  for window in (None, 1, 3, 8, 9):
    seen = sum(
      1
      for query in range(8)
      for key in range(8)
      if 0 <= query - key < (window or 8)
    )
    assert flops.num_pairs(8, window) == seen


def test_one_token_is_a_row_with_one_more_less_the_row():
  for window in (None, 4):
    config = dataclasses.replace(SMALL, sliding_window=window)
    longer, shorter = (flops.row_flops(config, n, 0) for n in (9, 8))
    token = flops.token_flops(config, num_cached=8)
    assert token.linear == longer.linear - shorter.linear
    assert token.attention == longer.attention - shorter.attention


def test_frozen_weights_have_no_gradients():
  forward = flops.Flops(linear=100.0, attention=10.0, head=1.0)
  assert flops.training_flops(forward, train_base=True) == 333
  assert flops.training_flops(forward, train_base=False) == 232


def test_an_update_is_its_rows():
  row = flops.row_flops(SMALL, length=8, num_logits=3)
  shape = {'num_rows': 5, 'length': 8, 'num_targets': 3}
  for train_base in (False, True):
    assert flops.update_flops(SMALL, **shape, train_base=train_base) == (
      5 * flops.training_flops(row, train_base=train_base)
    )
  # A row has no more targets than places.
  few, many = (
    flops.update_flops(
      SMALL, num_rows=1, length=8, num_targets=n, train_base=True
    )
    for n in (8, 16)
  )
  assert few == many


def test_mistral_with_lora_needs_379_tflop_for_four_rows():
  config = known_models.architecture('mistralai/Mistral-7B-Instruct-v0.2')
  row = flops.row_flops(config, length=3072, num_logits=3072)
  four = flops.Flops(*(4 * part for part in dataclasses.astuple(row)))
  assert flops.training_flops(four, train_base=False) / 1e12 == (
    pytest.approx(379, abs=0.5)
  )


@pytest.mark.parametrize(
  ('name', 'billions'),
  [('Mistral-7B-Instruct-v0.2', 7.24), ('Llama-3.1-8B-Instruct', 8.03)],
)
def test_known_models_have_their_published_size(name, billions):
  config = known_models.architecture(f'/models/{name}/')
  linear = flops.row_flops(config, 1, 0).linear / 2
  total = linear + 2 * config.vocab_size * config.hidden_size
  assert total / 1e9 == pytest.approx(billions, abs=0.005)


def test_model_without_numbers_is_refused_by_name():
  with pytest.raises(types.InputError, match="'Gemma' are not known; known"):
    known_models.architecture('google/Gemma')
