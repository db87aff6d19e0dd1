"""LoRA adapters in and out of a PEFT folder.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. PEFT
keeps both matrices as [out, in] and each layer apart:

  leaf                          tensors base_model.model.model.layers.<i>.
  layers.self_attn.q_proj               self_attn.q_proj
    .lora_a [num_layers, D, R]            .lora_A.weight [R, D]
    .lora_b [num_layers, R, N H]          .lora_B.weight [N H, R]

Only what is computed here is taken: y = x W + scaling (x A) B with one rank,
on linear layers of every block. All else that a configuration can ask for is
refused by name, never ignored. Pickles (`adapter_model.bin`) are never opened.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import os
import pathlib
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from tract_jax import types
from tract_jax.models import (
  hf_export,
  hf_weights,
  json_file,
  lora,
  peft_targets,
  remote_files,
  tensor_files,
)

CONFIG_FILE = 'adapter_config.json'
WEIGHTS_FILE = 'adapter_model.safetensors'
PICKLE_FILE = 'adapter_model.bin'

_PREFIX = 'base_model.model.'
_TENSOR_ENDS = {'lora_a': 'lora_A.weight', 'lora_b': 'lora_B.weight'}
_MAX_RANK = 2**16
_MAX_ALPHA = 1e9

_READ = frozenset((
  'r', 'lora_alpha', 'use_rslora', 'target_modules', 'base_model_name_or_path',
  'revision',
))  # fmt: skip
# Fields with the values under which an adapter is what is computed here; of
# any other field None, False, 0 and empty. `init_lora_weights` as "pissa" or
# "loftq" changes the base's weights.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  'task_type': ('CAUSAL_LM', None),
  'bias': ('none', None),
  'init_lora_weights': (True, False, None, 'gaussian'),
}
# Fields that say nothing about a trained adapter's result, or only by another
# one that is looked at.
_IRRELEVANT = frozenset((
  'auto_mapping', 'inference_mode', 'lora_dropout', 'megatron_core',
  'peft_type', 'peft_version', 'qalora_group_size', 'runtime_config',
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """What an adapter is made for, and how it counts.

  Attributes:
    rank: R.
    alpha: numerator of `scaling`; with rank-stabilised LoRA (rslora), PEFT's
      `lora_alpha` times the root of R.
    targets: names of the adapted linear layers, out of lora.TARGETS.
    base_model: folder or hub id of the model it was trained on; "" where the
      folder does not say.
    revision: of the base model; "" where the folder does not say.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]
  base_model: str = ''
  revision: str = ''

  @property
  def scaling(self) -> float:
    """What the product A B is multiplied by: alpha / R."""
    return self.alpha / self.rank

  @property
  def lora(self) -> lora.LoraConfig:
    """The same, as models/transformer takes it."""
    return lora.LoraConfig(self.rank, self.alpha, self.targets)


def is_adapter(folder: str | os.PathLike[str]) -> bool:
  """Whether a local folder is that of a PEFT adapter."""
  return pathlib.Path(folder, CONFIG_FILE).exists()


def write_adapter(
  folder: epath.PathLike,
  params: types.PyTree,
  config: lora.LoraConfig,
  base_model: str,
  revision: str = '',
) -> list[str]:
  """Writes an adapter that PEFT, and `load_adapter`, read; in float32.

  In a run of several processes all of them must call this, for gathering a
  tensor takes them all; the first one writes.

  Args:
    folder: local or gs://; made where it is missing. An adapter that is there
      is replaced.
    params: nested dict of arrays with `lora_a` and `lora_b`, of any sharding;
      other leaves may be there, be None or be missing.
    config: rank, alpha and targets of the adapters.
    base_model: folder or hub id of the model they were trained on; "" where it
      has no name.
    revision: of the base model; "" where it has none.

  Returns:
    Names of the files, the configuration last: without it nothing there is
    taken for an adapter.

  Raises:
    ValueError: `config` is not that of the leaves.
    OSError: a file cannot be written.
  """
  adapters = dict(_adapter_leaves(params))
  _check_leaves(adapters, config)
  tensors = {}
  for path, leaf in adapters.items():
    for layer, name in enumerate(_peft_names(path, leaf.shape)):
      tensors[name] = hf_export.host_tensor(
        leaf, layer, transposed=True, dtype=jnp.float32
      )
  names = [WEIGHTS_FILE, CONFIG_FILE]
  if jax.process_index() != 0:
    return names
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / CONFIG_FILE).unlink(missing_ok=True)
  hf_export.write_tensors(folder / WEIGHTS_FILE, tensors)
  fields = _peft_fields(config, base_model, revision)
  hf_export.write_json(folder / CONFIG_FILE, fields)
  return names


def read_config(folder: str | os.PathLike[str]) -> AdapterConfig:
  """Reads adapter_config.json, and refuses what is not computed here.

  Args:
    folder: local.

  Returns:
    The configuration.

  Raises:
    types.InputError: it is missing or damaged, or asks for something that is
      not supported; a line for each problem.
  """
  path = pathlib.Path(folder, CONFIG_FILE)
  fields = json_file.read(path)
  if fields.get('peft_type') != 'LORA':
    raise types.InputError(
      f'{path}: peft_type={fields.get("peft_type")!r} is not supported;'
      ' allowed: LORA'
    )
  problems = _problems(fields)
  targets: tuple[str, ...] = ()
  try:
    targets = peft_targets.resolve(fields.get('target_modules'))
  except types.InputError as error:
    problems.append(str(error))
  if problems:
    raise types.InputError('\n'.join(f'{path}: {line}' for line in problems))
  rank, alpha = fields['r'], float(fields['lora_alpha'])
  if fields.get('use_rslora'):
    alpha *= math.sqrt(rank)
  return AdapterConfig(
    rank=rank,
    alpha=alpha,
    targets=targets,
    base_model=fields.get('base_model_name_or_path') or '',
    revision=fields.get('revision') or '',
  )


def load_adapter(
  folder: str | os.PathLike[str], abstract_params: types.PyTree
) -> types.PyTree:
  """Reads an adapter's matrices, each process what its own devices hold.

  Args:
    folder: local or gs://.
    abstract_params: nested dict of jax.ShapeDtypeStruct, of a model with the
      adapter's rank and targets: the dtype to cast to, and the sharding.

  Returns:
    `abstract_params` with arrays at `lora_a` and `lora_b`, and None elsewhere,
    as the first of lora.split_trainable.

  Raises:
    types.InputError: the file is missing, damaged or a pickle; or its tensors
      are not those of `abstract_params`, a line for each.

  Example:
    config = read_config(folder)
    fns = transformer.make_model(
      model_config, lora_rank=config.rank, lora_alpha=config.alpha,
      lora_targets=config.targets)
    adapters = load_adapter(folder, transformer.abstract_params(fns))
    params = lora.merge(adapters, base)
  """
  if not remote_files.is_remote(folder) and _holds_pickle_alone(folder):
    raise types.InputError(
      f'{folder}: {PICKLE_FILE} is a pickle and is not read: save the adapter '
      f'as {WEIGHTS_FILE}'
    )
  wanted, _ = lora.split_trainable(abstract_params, train_base=False)
  with contextlib.ExitStack() as stack:
    tensors = tensor_files.open_file(folder, WEIGHTS_FILE, stack)
    return hf_weights.load_tensors(folder, tensors, wanted, _peft_names)


def _peft_fields(
  config: lora.LoraConfig, base_model: str, revision: str
) -> dict[str, Any]:
  """adapter_config.json; what is left out has PEFT's neutral defaults."""
  whole = float(config.alpha).is_integer()
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base_model or None,
    'revision': revision or None,
    'inference_mode': True,
    'r': config.rank,
    'lora_alpha': int(config.alpha) if whole else config.alpha,
    'lora_dropout': 0.0,
    'use_rslora': False,
    'target_modules': sorted(config.targets),
    'modules_to_save': None,
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
  }


def _peft_names(path: Sequence[str], shape: tuple[int, ...]) -> list[str]:
  """PEFT's names of the tensors that make up one leaf, one per layer."""
  if path[-1] not in lora.LEAVES:
    return []
  module, end = '.'.join(path[1:-1]), _TENSOR_ENDS[path[-1]]
  return [
    f'{_PREFIX}model.layers.{layer}.{module}.{end}' for layer in range(shape[0])
  ]


def _holds_pickle_alone(folder: str | os.PathLike[str]) -> bool:
  local = pathlib.Path(folder)
  return (local / PICKLE_FILE).exists() and not (local / WEIGHTS_FILE).exists()


def _adapter_leaves(
  params: types.PyTree,
) -> Iterator[tuple[tuple[str, ...], Any]]:
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = tuple(key.key for key in key_path)
    if path[-1] in lora.LEAVES:
      yield path, leaf


def _check_leaves(
  adapters: Mapping[tuple[str, ...], Any], config: lora.LoraConfig
) -> None:
  targets = {path[-2] for path in adapters}
  if not adapters or targets != set(config.targets):
    raise ValueError(f'adapters on {targets}, but config says {config.targets}')
  for path, leaf in adapters.items():
    rank = leaf.shape[-1 if path[-1] == 'lora_a' else -2]
    if rank != config.rank:
      raise ValueError(
        f'{"/".join(path)} has rank {rank}, but config says {config.rank}'
      )


def _problems(fields: Mapping[str, Any]) -> list[str]:
  """A line for each field that asks for what is not computed here."""
  problems = []
  rank: Any = fields.get('r')
  alpha: Any = fields.get('lora_alpha')
  if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
    problems.append(f'r={rank!r}: must be a whole number from 1 to {_MAX_RANK}')
  if type(alpha) not in (int, float) or not abs(alpha) <= _MAX_ALPHA:
    problems.append(
      f'lora_alpha={alpha!r}: must be a number of at most {_MAX_ALPHA:g}'
    )
  if fields.get('use_rslora') not in (None, True, False):
    problems.append(
      f'use_rslora={fields["use_rslora"]!r}: must be true or false'
    )
  for name in ('base_model_name_or_path', 'revision'):
    if not isinstance(fields.get(name), str | None):
      problems.append(f'{name}={fields[name]!r}: must be text')
  for name, value in fields.items():
    if name in _READ or name in _IRRELEVANT:
      continue
    if name in _NEUTRAL:
      if value not in _NEUTRAL[name]:
        problems.append(
          f'{name}={value!r} is not supported; allowed: {_NEUTRAL[name][0]!r}'
        )
    elif value:
      problems.append(f'{name}={value!r} is not supported')
  return problems
