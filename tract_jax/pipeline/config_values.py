"""Values in a nested configuration, by their dotted keys.

In: a ConfigDict whose every key has a value of its type, and what somebody
wants to set, whatever that may be. Out: the values set, or lines that say what
keeps them from being set.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import difflib
import reprlib
from typing import Any

import ml_collections

MAPPING = (Mapping, ml_collections.ConfigDict)
# Of an unknown key, as much as is looked at and shown.
_MAX_KEY_CHARS = 100


def leaves(
  tree: Mapping[str, Any], root: str = ''
) -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of each value; a section without keys is one."""
  for key, value in tree.items():
    if isinstance(value, MAPPING) and value:
      yield from leaves(value, f'{root}{key}.')
    else:
      yield f'{root}{key}', value


def get(config: Any, key: str) -> Any:
  """The value of a dotted key that exists."""
  for part in key.split('.'):
    config = config[part]
  return config


def set_value(
  config: ml_collections.ConfigDict, key: str, value: Any
) -> list[str]:
  """Sets one key.

  A list is taken for a tuple, and a whole number for a float.

  Args:
    config: is changed.
    key: dotted.
    value: of any type.

  Returns:
    What is wrong with the value, a line each; then nothing is set.

  Raises:
    KeyError: there is no such key.
  """
  node: Any = config
  old: Any = config
  for name in key.split('.'):
    if not isinstance(old, MAPPING) or name not in old:
      raise KeyError(key)
    node, old = old, old[name]
  if isinstance(old, MAPPING) and isinstance(value, MAPPING):
    return []  # A section in which nothing is set.
  if isinstance(old, tuple) and isinstance(value, list):
    value = tuple(value)
  if isinstance(old, float) and type(value) is int:
    with contextlib.suppress(OverflowError):
      value = float(value) if float(value) == value else value
  if type(value) is not type(old):
    return [
      f'config.{key}: {_shown(value)} is of type {type(value).__name__}, not '
      f'{type(old).__name__}'
    ]
  node[name] = value
  return []


def nearest(key: str, known: Iterable[str]) -> str:
  """The known key that is most like another one.

  Args:
    key: dotted; its last part counts most.
    known: at least one key.

  Returns:
    One of `known`.
  """
  key, known = key[:_MAX_KEY_CHARS], sorted(known)
  tail = key.rsplit('.', 1)[-1]
  same_tail = difflib.get_close_matches(
    tail, [name.rsplit('.', 1)[-1] for name in known], n=1, cutoff=0.75
  )
  if same_tail:
    known = [n for n in known if n.rsplit('.', 1)[-1] == same_tail[0]]
  return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]


def shown_key(key: str) -> str:
  """A key in one line, whatever it is."""
  key = key if len(key) <= _MAX_KEY_CHARS else f'{key[:_MAX_KEY_CHARS]}...'
  return key if key.isprintable() else repr(key)


def _shown(value: Any) -> str:
  try:
    return reprlib.repr(value)
  except ValueError:  # Python does not write out thousands of digits.
    return 'a number of thousands of digits'
