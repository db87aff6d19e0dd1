"""Which facts make an artefact what it is.

A finished artefact is skipped only where all of them are what they were; they
are written into its manifest, flat, so that a mismatch can be named field by
field. What only changes speed, or rounding, is not among them.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import importlib.metadata
import pathlib
import platform
from typing import Any

from etils import epath
import ml_collections

from tract_jax import types
from tract_jax.data import checksum, leaf_names, manifest
from tract_jax.models import remote_files
from tract_jax.pipeline import build, judge_file
from tract_jax.pipeline import config as config_lib

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
_SAMPLING_SPEED = {'slots', 'steps_per_call', 'prefill_tokens', 'mesh'}
_SELF_COTS_ONLY = {'num_self_cots'}
_WITHOUT_COT = {'max_new_tokens', 'chunk_size'}
_PROMPT_KEYS = ('template', 'use_reference', 'system_prompt', 'fields')
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_SHOWN_DIGITS = 16
_BLOCK_BYTES = 1 << 16
_NUM_BLOCKS = 256


def model_fields(setup: build.Setup) -> dict[str, Any]:
  """The seed model, its adapters, its tokenizer, score grid and prompts."""
  model, score = setup.config.model, setup.config.score
  sources = setup.model.sources
  if sources is None:
    seed_model = manifest.digest_of(repr(setup.model.config))
  else:
    seed_model = manifest.digest_of(_weight_files(sources.base.weights))
  fields = {
    'seed_model': seed_model,
    'tokenizer': setup.tokenizer.digest(),
    'model.dtype': model.dtype,
    'model.lora_rank': model.lora_rank,
    'model.lora_alpha': model.lora_alpha,
    'model.lora_targets': sorted(model.lora_targets),
    'model.base_quantization': model.base_quantization,
    'score.grid': list(score.grid),
    'score.format': score.format,
    'score.marker': score.marker,
  }
  # The digests of rows and tokenizer have them, too; these tell what differs.
  data, plain = setup.config.data, config_lib.default_config().data
  for key in _PROMPT_KEYS:
    if data[key] != plain[key]:
      fields[f'data.{key}'] = data[key]
  if sources and sources.adapter:
    adapter = manifest.digest_of(_weight_files(sources.adapter.weights))
    fields['seed_adapter'] = adapter
  return fields


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
  keys = ['max_length', 'too_long']
  if data.packing:  # They decide which examples share a row, and an update.
    keys += ['packing', 'length_multiple']
  return fields | {f'data.{key}': data[key] for key in keys}


def sampling_fields(
  setup: build.Setup, with_cot: bool = True
) -> dict[str, Any]:
  """The numbers of sampling that change its result.

  Args:
    setup: of the run.
    with_cot: whether CoTs are sampled; else scores are only read, and what
      counts is how long a prompt may be, and which rows share a file.

  Returns:
    {dotted key: value}.
  """
  fields = {
    f'sampling.{key}': value
    for key, value in setup.config.sampling.items()
    if key not in _SAMPLING_SPEED | _SELF_COTS_ONLY
    and (with_cot or key in _WITHOUT_COT)
  }
  return fields | {'data.max_length': setup.config.data.max_length}


def self_cot_fields(setup: build.Setup) -> dict[str, Any]:
  """As `sampling_fields`, for the self-CoT dataset."""
  sampling = setup.config.sampling
  own = {f'sampling.{key}': sampling[key] for key in _SELF_COTS_ONLY}
  return sampling_fields(setup) | own


def export_fields(
  config: ml_collections.ConfigDict, method: str
) -> dict[str, Any]:
  """The choices that make an export what it is, beside the weights.

  Args:
    config: of the run.
    method: a row of the table of methods.

  Returns:
    {dotted key: value}. Licences are in the model card alone, which may be
    written anew.
  """
  keys = ('format', 'dtype', 'max_shard_bytes')
  fields = {f'export.{key}': config.export[key] for key in keys}
  judge = dataclasses.asdict(judge_file.from_run(config, method))
  return fields | {'judge': manifest.digest_of(judge)}


def host_fields(task: str, config: ml_collections.ConfigDict) -> dict[str, str]:
  """What must be the same on all hosts, before anything is read.

  Args:
    task: of the command line.
    config: with every key.

  Returns:
    {name: value}: the task, each key, a digest of each file of the package, and
    the versions of Python and of the libraries that compute.
  """
  python = '.'.join(platform.python_version_tuple()[:2])
  fields = {'task': task, 'version.python': python}
  for key in config_lib.keys(config):
    fields[f'config.{key}'] = str(config_lib.get(config, key))
  for name in _LIBRARIES:
    fields[f'version.{name}'] = importlib.metadata.version(name)
  for path in _PACKAGE.rglob('*.py'):
    name = path.relative_to(_PACKAGE.parent).as_posix()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fields[f'code.{name}'] = digest[:_SHOWN_DIGITS]
  return fields


def params_digest(params: types.PyTree) -> str:
  """A digest of the trained leaves: names, shapes, dtypes and checksums.

  Args:
    params: a tree of arrays, or with None where a leaf is frozen. Where they
      are spread over processes, all of these make this call together.

  Returns:
    Hexadecimal digits, the same however the arrays are spread.
  """
  return manifest.digest_of(checksum.leaf_records(leaf_names.flatten(params)))


def _weight_files(folder: epath.Path) -> Mapping[str, Any]:
  """Size and a digest of a sample of each file that makes a model.

  Blocks all over a file are read, so that two fine-tunes of one base differ.
  Whole digests of a 7B model would take longer than many a run's start-up.
  """
  sizes, read = _files(folder)
  found = {}
  for name, size in sorted(sizes.items()):
    if not name.endswith(('.json', '.safetensors')):
      continue
    digest = hashlib.sha256()
    stride = max(size // _NUM_BLOCKS, _BLOCK_BYTES)
    for start in [*range(0, size, stride), max(size - _BLOCK_BYTES, 0)]:
      digest.update(read(name, start, min(start + _BLOCK_BYTES, size)))
    found[name] = [size, digest.hexdigest()]
  return found


def _files(
  folder: epath.Path,
) -> tuple[dict[str, int], Callable[[str, int, int], bytes]]:
  """Sizes of a folder's files by name, and what reads bytes of one of them."""
  if remote_files.is_remote(folder):
    # By ranges: a file object would read ahead of each block.
    remote = remote_files.open_folder(folder)
    return remote.sizes, remote.read
  local = pathlib.Path(folder)

  def read(name: str, start: int, stop: int) -> bytes:
    with (local / name).open('rb') as file:
      file.seek(start)
      return file.read(stop - start)

  paths = [path for path in local.iterdir() if path.is_file()]
  return {path.name: path.stat().st_size for path in paths}, read
