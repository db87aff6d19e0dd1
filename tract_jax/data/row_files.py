"""Data files as rows: JSON lists, JSONL and parquet.

In: a path. Out: the rows as they stand in the file, and where each stands. The
content tells the format, whatever the file's ending. No file can run code.
"""

import collections
import glob
import importlib.util
import json
import reprlib
import tempfile
from typing import Any

from etils import epath

from tract_jax import types

_BOM = b'\xef\xbb\xbf'


def read_rows(
  path: str, max_rows: int | None = None
) -> tuple[list[Any], list[str]]:
  """Reads a data file's rows, unchecked but for the file's syntax.

  Args:
    path: a JSON list, JSONL or parquet file. A byte order mark and Windows'
      line ends are fine.
    max_rows: only the first so many; None: all.

  Returns:
    The rows, and the place of each: "row 3", or "line 3" of JSONL.

  Raises:
    types.InputError: a file that is missing, empty, a git-lfs pointer, not
      UTF-8, or broken, with the line where there is one.
  """
  try:
    content = epath.Path(path).read_bytes()
  except FileNotFoundError as error:
    raise types.InputError(f'{path}: no such file') from error
  # What opens a bucket raises errors of its own: of HTTP, of credentials.
  except Exception as error:
    reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
    raise types.InputError(
      f'{path}: cannot be read: {reason or type(error).__name__}'
    ) from error
  if content.startswith(b'version https://git-lfs.github.com/spec/'):
    raise types.InputError(
      f'{path}: is a git-lfs pointer, not the data; run "git lfs pull"'
    )
  if content.startswith(b'PAR1'):
    return _numbered(_parquet_rows(path, max_rows))
  text = decoded(path, content)
  del content  # A file of training rows may have a gigabyte.
  if not text.strip():
    raise types.InputError(f'{path}: is empty; at least one row is needed')
  if text.lstrip().startswith('['):
    return _numbered(_json_rows(path, text)[:max_rows])
  return _jsonl_rows(path, text, max_rows)


def _numbered(rows: list[Any]) -> tuple[list[Any], list[str]]:
  return rows, [f'row {i}' for i in range(1, len(rows) + 1)]


def decoded(path: str, content: bytes) -> str:
  """The text of a file, without a byte order mark.

  Args:
    path: for the message.
    content: of the file.

  Returns:
    Its text.

  Raises:
    types.InputError: it is not UTF-8; the line is named.
  """
  try:
    return content.removeprefix(_BOM).decode('utf-8')
  except UnicodeDecodeError as error:
    line = error.object.count(b'\n', 0, error.start) + 1
    raise types.InputError(
      f'{path}: line {line}: byte 0x{error.object[error.start]:02x} is not '
      'UTF-8; convert the file to UTF-8'
    ) from error


def _json_rows(path: str, text: str) -> list[Any]:
  try:
    return json.loads(text, object_pairs_hook=_object)
  except json.JSONDecodeError as error:
    raise types.InputError(
      f'{path}: line {error.lineno}: JSON syntax: {error.msg} (column '
      f'{error.colno})'
    ) from error
  except (RecursionError, ValueError) as error:
    raise types.InputError(f'{path}: JSON: {_limit(error)}') from error


def _jsonl_rows(
  path: str, text: str, max_rows: int | None
) -> tuple[list[Any], list[str]]:
  rows: list[Any] = []
  places = []
  # Not splitlines: JSON strings may hold the other line ends that it knows.
  for number, line in enumerate(text.split('\n'), 1):
    if max_rows is not None and len(rows) >= max_rows:
      break
    if not line.strip():
      continue
    try:
      rows.append(json.loads(line, object_pairs_hook=_object))
    except json.JSONDecodeError as error:
      raise types.InputError(
        f'{path}: line {number}: JSON syntax: {error.msg} (column '
        f'{error.colno}); JSONL has one whole object on each line'
      ) from error
    except (RecursionError, ValueError) as error:
      raise types.InputError(
        f'{path}: line {number}: JSON: {_limit(error)}'
      ) from error
    places.append(f'line {number}')
  return rows, places


class _TwiceError(ValueError):
  """An object has a key twice; JSON's readers would keep the last alone."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    ((twice, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
    raise _TwiceError(f'{reprlib.repr(twice)} stands twice in one object')
  return found


def _limit(error: Exception) -> str:
  """What the reader cannot take, beside errors of syntax."""
  if isinstance(error, _TwiceError):
    return str(error)
  if isinstance(error, RecursionError):
    return 'nested too deep'
  return 'a whole number with thousands of digits'


def _parquet_rows(path: str, max_rows: int | None) -> list[Any]:
  if importlib.util.find_spec('datasets') is None:
    raise types.InputError(
      f'{path}: is a parquet file, for which the package "datasets" is needed'
    )
  import datasets  # Slow to import, and needed for parquet alone.

  rows = 'train' if max_rows is None else f'train[:{max_rows}]'
  with tempfile.TemporaryDirectory() as cache:
    try:
      table = datasets.load_dataset(
        'parquet',
        data_files=glob.escape(path),  # It would take any path for a pattern.
        split=rows,
        cache_dir=cache,
      )
      return table.to_list()
    except Exception as error:  # Its readers raise whatever they meet.
      first_line = (str(error).splitlines() or [type(error).__name__])[0]
      raise types.InputError(
        f'{path}: parquet: cannot be read: {first_line}'
      ) from error
