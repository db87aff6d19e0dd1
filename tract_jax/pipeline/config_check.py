"""Rules for the values of the configuration, one for each key that has any."""

from collections.abc import Callable, Iterator
import math
import re

import ml_collections

from tract_jax import types
from tract_jax.data import encoding
from tract_jax.evaluation import pairwise
from tract_jax.models import kv_cache, lora, quantization, remat
from tract_jax.objectives import losses, predictors, score_losses, targets
from tract_jax.parallel import chips, mapping, mesh
from tract_jax.pipeline import (
  comparisons,
  config_joint,
  on_mesh,
  row_settings,
  scrub,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import methods as methods_lib
from tract_jax.sampling import engine
from tract_jax.text import prompt_template


def check(
  config: ml_collections.ConfigDict,
  *,
  as_judge: bool = False,
  needs_rows: bool = True,
  predicts: bool = True,
) -> None:
  """Checks every value, before anything is read or allocated.

  Args:
    config: with every key, as `config.merge` gives it.
    as_judge: whether nothing is trained, so that nothing for it is asked for.
    needs_rows: whether there must be any data.
    predicts: whether there must be rows to predict.

  Raises:
    types.InputError: one line for each bad value.
  """
  _check_parts(config)
  problems = list(_problems(config))
  problems += config_joint.problems(
    config, as_judge=as_judge, needs_rows=needs_rows, predicts=predicts
  )
  if not problems and not as_judge:  # A judge brings its own methods.
    problems += list(comparisons.problems(config))
  if problems:
    raise types.InputError('\n'.join(problems))


def check_values(config: ml_collections.ConfigDict) -> None:
  """Checks every value by itself, for a model that no run is made with.

  Args:
    config: with every key.

  Raises:
    types.InputError: one line for each bad value.
  """
  _check_parts(config)
  if problems := list(_problems(config)):
    raise types.InputError('\n'.join(problems))


def reason_against(key: str, value) -> str | None:
  """Why a key may not have this value, of the right type; None if it may."""
  for part in value if isinstance(value, tuple) else (value,):
    if reason := _reason_against_part(part):
      return reason
  rule, reason = _RULES.get(key, (None, ''))
  return reason if rule and not rule(value) else None


def _check_parts(config) -> None:
  """Refuses what no rule can be asked about, and what nobody may write down.

  Values are texts and numbers, or tuples of them.
  """
  problems = []
  for key in sorted(config_lib.keys(config)):
    value = config_lib.get(config, key)
    for part in value if isinstance(value, tuple) else (value,):
      if reason := _reason_against_part(part):
        problems.append(f'config.{key}: {reason}')
  if problems:
    raise types.InputError('\n'.join(problems))


def _reason_against_part(part) -> str:
  """What keeps a value from being looked at any further; "" if nothing."""
  if isinstance(part, str):
    try:
      part.encode()
    except UnicodeEncodeError:
      return 'is not UTF-8 text'
    if '\0' in part:
      return 'holds a NUL'
    return scrub.ADVICE if scrub.holds_secret(part) else ''
  if isinstance(part, int):
    is_far = not -_MOST <= part <= _MOST
    return f'a number of {part.bit_length()} bits' if is_far else ''
  is_number = isinstance(part, float)
  return (
    '' if is_number else f'holds a {type(part).__name__}, no text or number'
  )


def _problems(config) -> Iterator[str]:
  for key in _RULES:
    value = config_lib.get(config, key)
    if reason := reason_against(key, value):
      yield f'config.{key}: {value!r} {reason}'
  for parse, text in (
    (row_settings.parse_fields, config.data.fields),
    (row_settings.parse_benchmarks, config.data.benchmarks),
    (row_settings.parse_others, config.evaluation.others),
    (comparisons.parse, config.evaluation.differences),
  ):
    try:
      parse(text)
    except types.InputError as error:
      yield from str(error).splitlines()


def _one_of(*allowed) -> tuple[Callable, str]:
  return lambda v: v in allowed, f'is not one of {", ".join(map(str, allowed))}'


def _some_of(allowed) -> tuple[Callable, str]:
  allowed = tuple(allowed)
  return (
    lambda v: (
      len(v) > 0
      and all(isinstance(name, str) for name in v)
      and len(set(v)) == len(v)
      and set(v) <= set(allowed)
    ),
    f'is not a list of different names out of {", ".join(allowed)}',
  )


def _numbers(low, high=math.inf, kind=float) -> tuple[Callable, str]:
  what = 'an integer' if kind is int else 'a number'
  upper = '' if high == math.inf else f' and at most {high}'
  return (
    lambda v: math.isfinite(v) and low <= v <= high,
    f'is not {what} of at least {low}{upper}',
  )


def _above(low) -> tuple[Callable, str]:
  return lambda v: math.isfinite(v) and v > low, f'is not above {low}'


_AT_LEAST_1 = _numbers(1, kind=int)
_NOT_NEGATIVE = _numbers(0, kind=int)
_MESH_SIZE = (lambda v: v == -1 or v > 0, 'is not a positive number, or -1')
# Of a row or of a CoT; no model of the family reads more.
_MAX_TOKENS = 2**20
# What JSON's readers keep to the digit.
_MOST = 2**53

_RULES = {
  'name': (
    lambda v: re.fullmatch(r'[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}', v),
    'is not made of at most 128 of A-Z a-z 0-9 . _ -, so it cannot name a '
    'folder',
  ),
  'methods': _some_of(methods_lib.METHODS),
  'predictors': _some_of(predictors.PREDICTORS),
  'num_cots': _AT_LEAST_1,
  'mapping': _one_of(*mapping.MODES),
  'seeds': (
    lambda v: (
      len(v) > 0
      and len(set(v)) == len(v)
      and all(type(s) is int and 0 <= s < 2**32 for s in v)
    ),
    'is not a list of different integers of at least 0 and below 2**32',
  ),
  'model.dtype': _one_of('float32', 'bfloat16'),
  'model.lora_rank': _NOT_NEGATIVE,
  'model.lora_alpha': _above(0),
  'model.lora_targets': _some_of(lora.TARGETS),
  'model.base_quantization': _one_of('', *quantization.KINDS),
  'model.remat': _one_of(*remat.POLICIES),
  'model.attention': _one_of(*on_mesh.ATTENTION_KINDS),
  'model.hidden_size': _AT_LEAST_1,
  'model.intermediate_size': _AT_LEAST_1,
  'model.num_layers': _AT_LEAST_1,
  'model.num_heads': _AT_LEAST_1,
  'model.num_kv_heads': _AT_LEAST_1,
  'model.rope_theta': _above(0),
  'model.initializer_range': _above(0),
  'score.marker': (lambda v: v == v.strip() != '', 'is not fixed words'),
  'data.template': (
    lambda v: not v or not any(prompt_template.problems(v)),
    'needs {response}, and has no fields but '
    + ', '.join(f'{{{field}}}' for field in prompt_template.FIELDS),
  ),
  'data.source': _one_of('files', 'synthetic'),
  'data.held_out_fraction': _numbers(0, 0.9),
  'data.validation_fraction': _numbers(0, 0.9),
  'data.split_seed': _NOT_NEGATIVE,
  'data.max_train_examples': _NOT_NEGATIVE,
  'data.max_eval_examples': _NOT_NEGATIVE,
  'data.max_length': _numbers(2, _MAX_TOKENS, kind=int),
  'data.length_multiple': _AT_LEAST_1,
  'data.too_long': _one_of(*encoding.POLICIES, 'truncate'),
  'data.encode_processes': _NOT_NEGATIVE,
  'data.synthetic_train': _AT_LEAST_1,
  'data.synthetic_test': _AT_LEAST_1,
  'data.synthetic_seed': _NOT_NEGATIVE,
  'pretrain.num_rows': _NOT_NEGATIVE,
  'pretrain.lr': _above(0),
  'pretrain.num_epochs': _AT_LEAST_1,
  'train.lr': _above(0),
  'train.warmup_fraction': _numbers(0, 1),
  'train.b1': _numbers(0, 1),
  'train.b2': _numbers(0, 1),
  'train.eps': _above(0),
  'train.weight_decay': _numbers(0),
  'train.clip_norm': _above(0),
  'train.num_epochs': _AT_LEAST_1,
  'train.batch_size': _numbers(1, config_joint.MAX_ROWS, kind=int),
  'train.micro_batch_size': _NOT_NEGATIVE,
  'train.lambda_value': _numbers(0),
  'train.lambda_candidates': (
    lambda v: (
      len(set(v)) == len(v)
      and all(type(x) in (int, float) and 0 <= x < math.inf for x in v)
    ),
    'is not a list of different numbers of at least 0',
  ),
  'train.score_scale': _one_of(*losses.SCORE_SCALES),
  'train.release_device_batch': _AT_LEAST_1,
  'train.release_accumulation': _AT_LEAST_1,
  'train.score_loss': _one_of(*score_losses.SCORE_LOSSES),
  'train.expectation': _one_of(*score_losses.EXPECTATIONS),
  'train.off_grid_penalty': _numbers(0),
  'train.score_target': _one_of(*targets.KINDS),
  'train.logit_chunk': _AT_LEAST_1,
  'train.log_every': _AT_LEAST_1,
  'train.checkpoint_every': _AT_LEAST_1,
  'train.max_checkpoints': _AT_LEAST_1,
  **{f'mesh.{axis}': _MESH_SIZE for axis in mesh.AXES},
  **{f'sampling.mesh.{axis}': _numbers(-1, kind=int) for axis in mesh.AXES},
  'hosts.timeout_secs': _AT_LEAST_1,
  'hosts.notice_secs': _AT_LEAST_1,
  'hosts.heartbeat_secs': _AT_LEAST_1,
  'sampling.temperature': _numbers(0),
  'sampling.top_k': _numbers(0, 2**31 - 1, kind=int),
  'sampling.top_p': (lambda v: 0 < v <= 1, 'is not in (0, 1]'),
  'sampling.repetition_penalty': _above(0),
  'sampling.max_new_tokens': _numbers(1, _MAX_TOKENS, kind=int),
  'sampling.max_retries': _numbers(0, 1000, kind=int),
  'sampling.unfinished': _one_of(*engine.UNFINISHED),
  'sampling.num_self_cots': _AT_LEAST_1,
  'sampling.weights': _one_of('', 'int8'),
  'sampling.kv_cache': _one_of(*kv_cache.KINDS),
  'sampling.slots': _NOT_NEGATIVE,
  'sampling.chunk_size': _AT_LEAST_1,
  'sampling.steps_per_call': _AT_LEAST_1,
  'sampling.prefill_tokens': _AT_LEAST_1,
  'wandb.project': (
    lambda v: re.fullmatch(r'[^/\\#?%:]{0,128}', v),
    'is not made of at most 128 characters other than / \\ # ? % :',
  ),
  'wandb.mode': _one_of('', 'online', 'offline'),
  'export.format': _one_of('merged', 'adapter'),
  'export.dtype': _one_of('', 'float32', 'bfloat16'),
  'export.max_shard_bytes': _AT_LEAST_1,
  'evaluation.num_resamples': _numbers(100, kind=int),
  'evaluation.tempered_temperature': _above(0),
  'evaluation.conformal_level': (
    lambda v: 0 < v < 1,
    'is not between 0 and 1',
  ),
  'evaluation.ties': _one_of(*pairwise.TIES),
  'evaluation.tie_margin': _numbers(0),
  'evaluation.gap_examples': _NOT_NEGATIVE,
  'evaluation.overlap_cots': _NOT_NEGATIVE,
  'plan.topology': (
    lambda v: not v or chips.is_topology(v),
    f'is not one of {", ".join(chips.CHIPS)} with the chips along each axis, '
    'such as v5e:4x4 or v5p:2x2x4',
  ),
  'plan.rows_per_chip': _NOT_NEGATIVE,
  'plan.prompt_tokens': _numbers(1, _MAX_TOKENS, kind=int),
  'plan.cot_tokens': _numbers(1, _MAX_TOKENS, kind=int),
}
