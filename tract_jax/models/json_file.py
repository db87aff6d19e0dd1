"""Small JSON files of unknown origin: config.json and its like."""

import itertools
import json
import math
import os
from typing import Any

from etils import epath

from tract_jax import types

_MAX_BYTES = 16 * 2**20
_MAX_DIGITS = 18
_MAX_DEPTH = 100


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a JSON object, whatever else the file may hold.

  Args:
    path: local or gs://.

  Returns:
    The object in it.

  Raises:
    types.InputError: missing, larger than 16 MiB, not JSON, no object, nested
      more than 100 deep, or with a number that is not finite or has more than
      18 digits.
  """
  try:
    with epath.Path(path).open('rb') as file:
      content = file.read(_MAX_BYTES + 1)
  except OSError as error:
    reason = error.strerror or error
    raise types.InputError(f'{path}: cannot be read: {reason}') from error
  if len(content) > _MAX_BYTES:
    raise types.InputError(
      f'{path}: more than {_MAX_BYTES} bytes, which no such file has'
    )
  try:
    # A byte order mark is what some editors leave.
    value = json.loads(
      content.decode('utf-8-sig'),
      parse_constant=_finite,
      parse_float=_finite,
      parse_int=_integer,
    )
  except RecursionError as error:
    raise types.InputError(f'{path}: not JSON (nested too deeply)') from error
  except ValueError as error:
    raise types.InputError(f'{path}: not JSON ({error})') from error
  if _depth(value) > _MAX_DEPTH:
    raise types.InputError(f'{path}: not JSON (nested too deeply)')
  if not isinstance(value, dict):
    raise types.InputError(
      f'{path}: holds a {type(value).__name__} where an object is expected'
    )
  return value


def _depth(value: Any) -> int:
  """How deep lists and objects are nested; counted level by level."""
  depth, level = 0, [value]
  while level := [x for x in level if isinstance(x, dict | list)]:
    depth += 1
    parts = (x.values() if isinstance(x, dict) else x for x in level)
    level = list(itertools.chain.from_iterable(parts))
  return depth


def _finite(text: str) -> float:
  number = float(text)
  if not math.isfinite(number):
    raise ValueError(f'{text} is not a finite number')
  return number


def _integer(text: str) -> int:
  if len(text) > _MAX_DIGITS:
    raise ValueError(f'a number of {len(text)} digits')
  return int(text)
