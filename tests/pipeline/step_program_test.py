"""The training step as the compiler sees it: its size, arrays and traffic.

The step functions are those of a run, with abstract arrays.
"""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from tract_jax import types
from tract_jax.models import lora
from tract_jax.pipeline import build
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import objective as objective_lib

pytestmark = pytest.mark.usefixtures('compiled_anew')

ROWS, LENGTH = 8, 64
WIDTH, MLP = 16, 48


def _lowered(num_layers=2, mesh=None, logit_chunk=8, **model):
  """A training step, lowered; one device if no mesh is given."""
  config = config_lib.merge(
    {
      'data': {'source': 'synthetic'},
      'model': {
        'lora_rank': 0,
        'hidden_size': WIDTH,
        'intermediate_size': MLP,
        'num_layers': num_layers,
        'num_heads': 2,
        'num_kv_heads': 1,
        **model,
      },
      'train': {'batch_size': ROWS, 'logit_chunk': logit_chunk},
      'mesh': mesh or {'data': 1, 'fsdp': 1, 'tensor': 1},
    }
  )
  devices = jax.devices() if mesh else jax.devices()[:1]
  setup = build.build(config, devices=devices)
  objective = objective_lib.make_objective(config, 'cot_raft')
  trainer = build.make_trainer(setup, objective, True, 10, num_targets=LENGTH)
  trainable, frozen = lora.split_trainable(
    setup.model.abstract, setup.model.train_base
  )
  state = jax.eval_shape(trainer.init_state, trainable)
  step = trainer.step.lower(state, frozen, _abstract_batch(setup))
  return step, setup.model.config.vocab_size


def _abstract_batch(setup):
  batch = types.Batch(
    **{
      field.name: jax.ShapeDtypeStruct((1, ROWS, LENGTH), np.int32)
      for field in dataclasses.fields(types.Batch)
    }
  )
  shape = (1, ROWS, LENGTH)
  return dataclasses.replace(
    batch,
    cot_mask=jax.ShapeDtypeStruct(shape, np.bool_),
    score_mask=jax.ShapeDtypeStruct(shape, np.bool_),
    score_values=jax.ShapeDtypeStruct(shape, np.float32),
    target_probs=jax.ShapeDtypeStruct(
      (1, ROWS, 1, len(setup.grid.values)), np.float32
    ),
  )


def _shapes(hlo: str) -> set[tuple[int, ...]]:
  """Shapes of all arrays in the text of a compiled program."""
  return {
    tuple(int(size) for size in text.split(','))
    for text in re.findall(r'\b(?:pred|[a-z]+\d+)\[([\d,]+)\]', hlo)
  }


def _vocabulary_arrays(hlo: str, vocab_size: int) -> list[tuple[int, ...]]:
  """Those with an entry for each token of the rows and of the vocabulary."""
  return [
    shape
    for shape in _shapes(hlo)
    if any(size % vocab_size == 0 for size in shape)
    and math.prod(shape) >= ROWS * LENGTH * vocab_size
  ]


def test_no_array_of_rows_length_and_vocabulary_exists():
  lowered, vocab_size = _lowered()
  assert LENGTH < vocab_size
  assert not _vocabulary_arrays(lowered.compile().as_text(), vocab_size)
  # Not so where all targets are one chunk.
  lowered, _ = _lowered(logit_chunk=LENGTH)
  assert _vocabulary_arrays(lowered.compile().as_text(), vocab_size)


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_the_program_does_not_grow_with_the_number_of_layers(remat):
  texts = [_lowered(n, remat=remat)[0].as_text() for n in (2, 6)]
  assert texts[0] != texts[1]
  assert len({text.count('\n') for text in texts}) == 1


def test_the_compiled_program_does_not_grow_either():
  texts = [_lowered(n)[0].compile().as_text() for n in (2, 6)]
  lines = [text.count('\n') for text in texts]
  assert abs(lines[1] - lines[0]) < 0.02 * lines[0]


def _gathers(hlo: str) -> set[tuple[int, ...]]:
  """Shapes of what is gathered, without leading ones."""
  results = re.findall(r'= (.*?) all-gather(?:-start)?\(', hlo)
  return {
    tuple(size for size in shape if size > 1)
    for shape in _shapes('\n'.join(results))
  }


def test_a_device_holds_its_rows_and_one_layers_weights():
  mesh = {'data': 1, 'fsdp': 8, 'tensor': 1}
  lowered, _ = _lowered(mesh=mesh, remat='dots')
  hlo = lowered.compile().as_text()
  gathers, shapes = _gathers(hlo), _shapes(hlo)
  assert {(WIDTH, MLP), (MLP, WIDTH)} <= gathers
  assert 'collective-permute' not in hlo
  # Not the weights of all layers, nor are those that were gathered stored.
  assert not {(2, WIDTH, MLP), (2, MLP, WIDTH)} & shapes
  # Neither hidden states of all rows, nor what they leave in the MLPs.
  assert not [s for s in gathers if math.prod(s) >= ROWS * LENGTH * WIDTH]
  kept = {math.prod(s) // 2 for s in shapes if s[0] == 2 and s[-1] == MLP}
  assert LENGTH * MLP in kept
  assert ROWS * LENGTH * MLP not in kept


def test_trained_weights_move_in_the_dtype_that_is_computed_in():
  mesh = {'data': 1, 'fsdp': 8, 'tensor': 1}
  text = _lowered(mesh=mesh, dtype='bfloat16')[0].as_text()
  assert f'tensor<2x{WIDTH}x{MLP}xf32>' in text
  moved = [
    line.rstrip().rsplit('x', 1)[1]
    for line in text.splitlines()
    if 'sharding_constraint' in line and f'tensor<{WIDTH}x{MLP}x' in line
  ]
  assert set(moved) == {'bf16>'}
