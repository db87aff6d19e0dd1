"""Which linear layers a PEFT configuration's `target_modules` means.

In: its value, from a file that anyone may have written. Out: names of
lora.TARGETS. As PEFT does: a list holds names of modules or ends of them, a
text is "all-linear" or a regular expression for whole names such as
"model.layers.0.self_attn.q_proj".
"""

from collections.abc import Callable
import re
from typing import Any

import regex

from tract_jax import types
from tract_jax.models import lora

_ALL_LINEAR = 'all-linear'
_ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
# Modules that could be meant besides those of a block.
_OUTSIDE_BLOCKS = ('lm_head', 'model.embed_tokens')

# Unlike re's, matches of the regex library can be stopped; but it copies what
# is repeated when it compiles, so that nested repeats take all memory.
_MAX_MATCH_SECS = 1.0
_MAX_PATTERN_CHARS = 1000
_MAX_GROUPS = 12
_COUNTED_REPEAT = re.compile(r'\{(?!0,\}|1,\}|0,1\})')


def resolve(target_modules: Any) -> tuple[str, ...]:
  """The adapted linear layers, in the order of lora.TARGETS.

  Args:
    target_modules: the configuration's value, of any type.

  Returns:
    One name at least. An expression that means a layer in some blocks only is
    judged by the first block.

  Raises:
    types.InputError: it is no list of texts and no text; means no linear layer
      of a block, or the embedding or the output matrix, too; or is a regular
      expression that is damaged, or too costly to match.

  Example:
    >>> resolve(['v_proj', 'self_attn.q_proj'])
    ('q_proj', 'v_proj')
  """
  if target_modules == _ALL_LINEAR:
    return lora.TARGETS
  is_meant = _matcher(target_modules)
  for name in _OUTSIDE_BLOCKS:
    if is_meant(name):
      raise types.InputError(
        f'target_modules={target_modules!r}: adapters on {name} are not'
        ' supported'
      )
  found = tuple(name for name in lora.TARGETS if is_meant(_full_name(name)))
  if not found:
    raise types.InputError(
      f"target_modules={target_modules!r}: none of a block's linear layers;"
      f' these are {", ".join(lora.TARGETS)}'
    )
  return found


def _full_name(name: str) -> str:
  parent = 'self_attn' if name in _ATTENTION else 'mlp'
  return f'model.layers.0.{parent}.{name}'


def _matcher(target_modules: Any) -> Callable[[str], bool]:
  """(full name of a module) -> whether it is meant."""
  if isinstance(target_modules, str):
    return _pattern_matcher(target_modules)
  if not isinstance(target_modules, list) or not all(
    isinstance(target, str) for target in target_modules
  ):
    raise types.InputError(
      f'target_modules={target_modules!r}: must be a list of names,'
      f' {_ALL_LINEAR!r} or a regular expression'
    )
  ends = tuple(f'.{target}' for target in target_modules)
  return lambda name: f'.{name}'.endswith(ends)


def _pattern_matcher(pattern: str) -> Callable[[str], bool]:
  """As `_matcher`, for a regular expression."""
  if (
    len(pattern) > _MAX_PATTERN_CHARS
    or pattern.count('(') > _MAX_GROUPS
    or _COUNTED_REPEAT.search(pattern)
  ):
    raise types.InputError(
      f'target_modules={pattern[:80]!r}: a regular expression of over'
      f' {_MAX_PATTERN_CHARS} characters or {_MAX_GROUPS} groups, or with'
      ' counted repeats, is not matched; list the names instead'
    )

  def is_meant(name: str) -> bool:
    try:
      match = regex.fullmatch(pattern, name, timeout=_MAX_MATCH_SECS)
    except (regex.error, RecursionError, TimeoutError) as error:
      raise types.InputError(
        f'target_modules={pattern!r}: cannot be matched ({error})'
      ) from error
    return match is not None

  return is_meant
