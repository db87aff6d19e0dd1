"""Rotary fields of a Hugging Face config.json, read and written.

In: `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters`,
which holds both (transformers 5). Out: base and scaling of config.ModelConfig.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from tract_jax.models import config as config_lib

FIELDS = ('rope_theta', 'rope_scaling', 'rope_parameters')

# Fields with the values under which they change nothing; they stand beside the
# rotary fields or among them.
NEUTRAL = {'partial_rotary_factor': (1.0, None)}

_DEFAULT_THETA = 10000.0
_KINDS = {
  'linear': config_lib.LinearRope,
  'dynamic': config_lib.DynamicRope,
  'yarn': config_lib.YarnRope,
  'llama3': config_lib.Llama3Rope,
}
_ORIGINAL = 'original_max_position_embeddings'


def rope_from_hf(
  hf_config: Mapping[str, Any],
  max_position_embeddings: Any,
  problems: list[str],
) -> tuple[Any, config_lib.RopeScaling | None]:
  """Base and scaling, from either spelling.

  Args:
    hf_config: the parsed config.json.
    max_position_embeddings: stands in for the original length, where the
      scaling gives none.
    problems: gets a line for each thing that is wrong.

  Returns:
    The base, 10,000 where none is given, and the scaling or None. Numbers are
    not checked yet.
  """
  spellings = {}
  for name in ('rope_parameters', 'rope_scaling'):
    fields = hf_config.get(name)
    if isinstance(fields, dict):
      spellings[name] = dict(fields)
    elif fields is not None:
      problems.append(f'config.json: {name}={fields!r}: must be an object')
  thetas = {
    f'{name}.rope_theta': fields.pop('rope_theta')
    for name, fields in spellings.items()
    if fields.get('rope_theta') is not None
  }
  if hf_config.get('rope_theta') is not None:
    thetas['rope_theta'] = hf_config['rope_theta']
  scalings = {
    name: _scaling_from_hf(
      fields, max_position_embeddings, f'config.json: {name}', problems
    )
    for name, fields in spellings.items()
    if fields
  }
  for values in (thetas, scalings):
    first, *others = values.values() or (None,)
    if any(other != first for other in others):
      said = ' and '.join(f'{name}={value}' for name, value in values.items())
      problems.append(f'config.json: {said} contradict each other')
  theta = next(iter(thetas.values()), _DEFAULT_THETA)
  return theta, next(iter(scalings.values()), None)


def _scaling_from_hf(
  fields: Mapping[str, Any], length: Any, place: str, problems: list[str]
) -> config_lib.RopeScaling | None:
  """The scaling that rope_scaling or rope_parameters describes."""
  kind = fields.get('rope_type') or fields.get('type') or 'default'
  if kind not in ('default', *_KINDS):
    problems.append(
      f'{place}.rope_type={kind!r} is not supported; allowed: '
      + ', '.join(('default', *_KINDS))
    )
    return None
  scaling_type = _KINDS.get(kind)
  known = dataclasses.fields(scaling_type) if scaling_type else ()
  names = [field.name for field in known]
  problems += [
    f'{place}.{name}={value!r} is not supported for rope_type {kind}'
    for name, value in fields.items()
    if name not in (*names, 'type', 'rope_type')
    and value not in NEUTRAL.get(name, (None,))
  ]
  # Null is as good as left out, but not for truncate, which it would switch
  # off in transformers.
  given = {
    name: fields[name]
    for name in names
    if fields.get(name) is not None or (name == 'truncate' and name in fields)
  }
  if _ORIGINAL in names:
    given.setdefault(_ORIGINAL, length)
  missing = [
    field.name
    for field in known
    if field.default is dataclasses.MISSING and field.name not in given
  ]
  problems += [f'{place}.{name} is missing' for name in missing]
  if scaling_type is None or missing:
    return None
  return scaling_type(**given)


def rope_to_hf(
  theta: float, scaling: config_lib.RopeScaling | None
) -> dict[str, Any]:
  """Base and scaling as fields of config.json, in transformers 4's spelling.

  Args:
    theta: base of the rotary wavelengths.
    scaling: how the frequencies are changed, or None.

  Returns:
    rope_theta and rope_scaling.
  """
  if scaling is None:
    return {'rope_theta': theta, 'rope_scaling': None}
  kinds = {scaling_type: kind for kind, scaling_type in _KINDS.items()}
  values = {
    name: value
    for name, value in dataclasses.asdict(scaling).items()
    if value is not None
  }
  rope_type = kinds[type(scaling)]
  return {
    'rope_theta': theta,
    'rope_scaling': {'rope_type': rope_type, **values},
  }
