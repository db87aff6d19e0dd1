"""Which facts make an artefact what it is.

A finished artefact is skipped only where all of them are what they were; they
are written into its manifest, flat, so that a mismatch can be named field by
field. What only changes speed, or rounding, is not among them.
"""

from collections.abc import Mapping
import hashlib
from typing import Any

import jax
import numpy as np

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.pipeline import build

_TRAIN_SPEED = {
  'micro_batch_size',
  'logit_chunk',
  'log_every',
  'checkpoint_every',
  'max_checkpoints',
}
_RELEASE_ONLY = {'release_device_batch', 'release_accumulation'}
_COT_RAFT_ONLY = {'lambda_value', 'ce_includes_score', 'score_scale'}
_SCORE_LOSS_ONLY = {'score_loss', 'expectation', 'off_grid_penalty'}
# Each candidate is a stage of its own, with its lambda_value.
_CHOICE = {'lambda_candidates'}
_SAMPLING_SPEED = {'rows', 'steps_per_call'}
_BLOCK_BYTES = 1 << 16
_NUM_BLOCKS = 256


def model_fields(setup: build.Setup) -> dict[str, Any]:
  """The seed model, its adapters, its tokenizer and the score grid."""
  model, score = setup.config.model, setup.config.score
  if setup.model_path is None:
    seed_model = manifest.digest_of(repr(setup.model_config))
  else:
    seed_model = manifest.digest_of(_weight_files(setup.model_path))
  return {
    'seed_model': seed_model,
    'tokenizer': setup.tokenizer.digest(),
    'model.dtype': model.dtype,
    'model.lora_rank': model.lora_rank,
    'model.lora_alpha': model.lora_alpha,
    'score.grid': list(score.grid),
    'score.format': score.format,
    'score.marker': score.marker,
  }


def train_fields(setup: build.Setup, objective: str) -> dict[str, Any]:
  """The numbers of training that change the result of a stage.

  Args:
    setup: of the run.
    objective: the stage's, by name; only CoT-RAFT has a lambda, and CE has no
      score loss.

  Returns:
    {dotted key: value}.
  """
  data, train = setup.config.data, setup.config.train
  unused = set(_CHOICE)
  if objective != 'cot_raft':
    unused |= _COT_RAFT_ONLY | _RELEASE_ONLY
  elif train.score_scale == 'mean':
    unused |= _RELEASE_ONLY
  if objective == 'ce':
    unused |= _SCORE_LOSS_ONLY
  fields = {
    f'train.{key}': value
    for key, value in train.items()
    if key not in _TRAIN_SPEED | unused
  }
  return fields | {
    'data.max_length': data.max_length,
    'data.too_long': data.too_long,
  }


def sampling_fields(setup: build.Setup) -> dict[str, Any]:
  """The numbers of sampling that change its result."""
  fields = {
    f'sampling.{key}': value
    for key, value in setup.config.sampling.items()
    if key not in _SAMPLING_SPEED
  }
  return fields | {'data.max_length': setup.config.data.max_length}


def params_digest(params: types.PyTree) -> str:
  """SHA-256 over the trained leaves: names, shapes, dtypes and bytes.

  Args:
    params: a tree of arrays, or with None where a leaf is frozen.

  Returns:
    Its hexadecimal digest.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {array.shape} {array.dtype}'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def _weight_files(folder) -> Mapping[str, Any]:
  """Size and a digest of a sample of each file that makes a model.

  Blocks all over a file are read, so that two fine-tunes of one base differ.
  Whole digests of a 7B model would take longer than many a run's start-up.
  """
  found = {}
  for path in sorted(folder.iterdir()):
    if path.suffix not in ('.json', '.safetensors') or not path.is_file():
      continue
    size = path.stat().st_size
    digest = hashlib.sha256()
    stride = max(size // _NUM_BLOCKS, _BLOCK_BYTES)
    with path.open('rb') as file:
      for start in [*range(0, size, stride), max(size - _BLOCK_BYTES, 0)]:
        file.seek(start)
        digest.update(file.read(_BLOCK_BYTES))
    found[path.name] = [size, digest.hexdigest()]
  return found
