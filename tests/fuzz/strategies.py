"""Inputs that files, users and strangers may give: valid, odd and broken.

Broken ones are made of valid ones by small changes, since what is wrong
throughout is refused at its first byte.
"""

from collections.abc import Mapping
import json
from typing import Any

from hypothesis import strategies as st

from tract_jax.data import manifest
from tract_jax.text import prompts

# What looks like a part of prompts and targets, or is hard to read.
_PIECES = (
  '</s>', '<s>', '<unk>', '<|im_start|>', '<|im_end|>', '<|endoftext|>',
  '<|eot_id|>', '[INST]', '[/INST]', '[RESULT]', '[RESULT] 5', prompts.MARKER,
  f'{prompts.MARKER} 5', f'{prompts.MARKER} 4. [RESULT] 4', ' 5', '4', '10',
  ' ', '  ', '\n', '\r\n', '\t', '\x00', '\x1f', '\x1b[2J', '\x85', '\u2028',
  '\u200b', '\ufeff', '\ufffd', '\ufdd0', 'é', 'e\u0301', '日本語', '😀', '4️⃣',
  '٤', '{response}', '{rubric}', '{{ bos_token }}', '{% raise %}', '"', "'",
  '\\', '\\n', ',', '###Score Rubrics:', '\n###Reference Answer (Score 5):',
  '\n###The instruction to evaluate:', 'is good.', 'It is not complete.',
)  # fmt: skip
_SURROGATES = ('\ud800', '\udfff')


def texts(surrogates: bool = False) -> st.SearchStrategy[str]:
  """Texts, of any characters or of hostile pieces."""
  pieces = (*_PIECES, *_SURROGATES) if surrogates else _PIECES
  joined = st.lists(st.sampled_from(pieces), max_size=8).map(''.join)
  return st.one_of(joined, st.text(max_size=20))


def numbers() -> st.SearchStrategy[Any]:
  """Numbers, huge and not finite ones, too."""
  return st.one_of(
    st.integers(-3, 12),
    st.floats(-1, 7),
    st.floats(),
    st.sampled_from([2**31, 2**53 + 1, 2**63, 2**64, -(2**70), 10**400]),
  )


def json_values(max_leaves: int = 6) -> st.SearchStrategy[Any]:
  """Whatever JSON has, and NaN."""
  scalars = st.one_of(
    st.none(), st.booleans(), numbers(), texts(surrogates=True)
  )
  return st.recursive(
    scalars,
    lambda inner: st.one_of(
      st.lists(inner, max_size=3),
      st.dictionaries(texts(surrogates=True), inner, max_size=3),
    ),
    max_leaves=max_leaves,
  )


@st.composite
def with_changes(draw, content: Any, most: int = 2) -> Any:
  """A JSON value with some of its parts replaced, removed or added."""
  content = json.loads(json.dumps(content))
  for _ in range(draw(st.integers(0, most))):
    places = list(_places(content))
    if not places:
      return draw(json_values())
    parent, key = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(('replace', 'replace', 'remove', 'add')))
    if kind == 'remove':
      del parent[key]
    elif kind == 'add' and isinstance(parent, dict):
      parent[draw(texts())] = draw(json_values())
    else:
      parent[key] = draw(json_values())
  return content


def _places(content: Any):
  """(container, key or index) of all values."""
  items = []
  if isinstance(content, dict):
    items = list(content.items())
  elif isinstance(content, list):
    items = list(enumerate(content))
  for key, value in items:
    yield content, key
    yield from _places(value)


@st.composite
def damaged(draw, content: bytes, most: int = 3, head: int = 0) -> bytes:
  """Bytes with some flipped, cut out, put in, or with their end missing.

  Args:
    draw: of hypothesis.
    content: whole.
    most: changes, at most.
    head: where half of the changes are among the first so many bytes.
  """
  for _ in range(draw(st.integers(0, most))):
    end = len(content)
    if head and draw(st.booleans()):
      end = min(head, end)
    place = draw(st.integers(0, max(end - 1, 0)))
    kind = draw(st.sampled_from(('flip', 'set', 'cut', 'put', 'end', 'twice')))
    rest = content[place + 1 :]
    if kind == 'flip' and content:
      flipped = content[place] ^ (1 << draw(st.integers(0, 7)))
      content = content[:place] + bytes([flipped]) + rest
    elif kind == 'set' and content:
      some = draw(st.binary(min_size=1, max_size=8))
      content = content[:place] + some + content[place + len(some) :]
    elif kind == 'cut':
      content = content[:place] + content[place + draw(st.integers(1, 9)) :]
    elif kind == 'put':
      content = content[:place] + draw(st.binary(max_size=9)) + content[place:]
    elif kind == 'end':
      content = content[:place]
    else:
      content = content[:place] + content[place : place + 40] * 2 + rest
  return content


def json_bytes(content: Any) -> bytes:
  """Its JSON; half a surrogate pair stands as an escape."""
  return json.dumps(content).encode()


def json_files(*contents: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
  """Files of one of these objects, changed as JSON or as bytes, or of any."""
  whole = st.sampled_from(contents)
  changed = whole.flatmap(with_changes).map(json_bytes)
  return st.one_of(
    *[changed] * 4,
    whole.map(json_bytes).flatmap(damaged),
    json_values().map(json_bytes),
    st.binary(max_size=40),
    st.sampled_from(
      [b'[' * 5000, b'{"a":' * 5000, b'{"a":' * 90 + b'1' + b'}' * 90]
    ),
  )


def sealed_files(*contents: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
  """As `json_files`; most of those changed as JSON are sealed after it."""
  changed = st.sampled_from(contents).flatmap(with_changes)
  whole = [manifest.sealed(content) for content in contents]
  return st.one_of(*[changed.map(_sealed)] * 4, json_files(*whole))


def _sealed(content: Any) -> bytes:
  """Its JSON with its seal, or without where it can have none."""
  try:
    return json_bytes(manifest.sealed(content))
  except (TypeError, ValueError):
    return json_bytes(content)
