"""Artefact folders: what they were made from, and files that are never half.

A finished folder carries `manifest.json`, written last:

  {"schema": 2, "kind": "stage", "finished": true,
   "fingerprint": {field: value, ...}, "results": {name: value, ...},
   "seal": sha256 of all the rest}

A folder that fills piece by piece has one from the start, not yet finished.
The fingerprint holds everything that the content depends on. A second run
with the same fingerprint takes the folder as it is; a run with another one is
refused, because a folder is never overwritten or removed on a user's behalf.

A changed byte breaks the seal.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import tempfile
from typing import Any, IO

from etils import epath
import numpy as np

from tract_jax import types
from tract_jax.data import disk
from tract_jax.models import json_file, remote_files

MANIFEST = 'manifest.json'
SCHEMA = 2
_SEAL = 'seal'
# Longer ones, with what is added to them, no file system takes.
_NAME = re.compile(r'[A-Za-z0-9._-]{1,128}')
_FIELDS = {'kind': str, 'finished': bool, 'fingerprint': dict, 'results': dict}
_SHOWN_CHARS = 120


def checked_name(name: str) -> str:
  """Returns `name` if it may become one part of a path.

  Args:
    name: of a method, benchmark, run, ...

  Returns:
    The same text.

  Raises:
    types.InputError: it could leave its folder, or is hard to type.
  """
  if not _NAME.fullmatch(name) or name in ('.', '..'):
    raise types.InputError(
      f'name {name!r}: used in a path, so it must be made of A-Z a-z 0-9 . _ -'
      ' and have 128 characters at most'
    )
  return name


def canonical_json(obj: Any) -> str:
  """The one JSON text of `obj`: sorted keys, no spaces, ASCII only."""
  return json.dumps(obj, sort_keys=True, separators=(',', ':'), allow_nan=False)


def digest_of(obj: Any) -> str:
  """sha256, in hexadecimal, of the canonical JSON of `obj`."""
  return hashlib.sha256(canonical_json(obj).encode('ascii')).hexdigest()


def digest_of_file(path: epath.PathLike) -> str:
  """sha256, in hexadecimal, of a file's bytes."""
  with epath.Path(path).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """A JSON object with the digest of its content, by which damage shows.

  Args:
    content: a JSON object without the key "seal".

  Returns:
    The same as it will be read back, with the key.
  """
  read_back = json.loads(json.dumps(content, allow_nan=False))
  return {**read_back, _SEAL: digest_of(read_back)}


def unsealed(path: epath.PathLike) -> dict[str, Any]:
  """Reads a file of a sealed JSON object.

  Args:
    path: the file.

  Returns:
    What was sealed, without the seal.

  Raises:
    types.InputError: the file is gone or no JSON, or a value in it is not the
      one that was sealed.
  """
  content = json_file.read(path)
  seal = content.pop(_SEAL, None)
  digest = digest_of(content)
  if seal != digest:
    reason = 'it was damaged, or changed by hand'
    if seal is None:
      reason = 'it has no seal, as those of earlier versions'
    raise types.InputError(
      f'{path}: not as it was written: {reason}; restore it, or delete it and'
      ' run the same command again'
    )
  return content


def digest_arrays(arrays: Mapping[str, Any]) -> str:
  """sha256 over named arrays: names, dtypes, shapes and bytes.

  Args:
    arrays: {name: array}; the order of the names does not matter.

  Returns:
    64 hexadecimal digits.
  """
  sha = hashlib.sha256()
  for name in sorted(arrays):
    array = np.asarray(arrays[name])
    head = canonical_json([name, array.dtype.name, array.shape])
    sha.update(head.encode('ascii') + b'\n')
    sha.update(array.tobytes())
  return sha.hexdigest()


def differences(
  recorded: Any,
  expected: Any,
  words: tuple[str, str] = ('recorded', 'expected'),
) -> list[str]:
  """One line for each field in which two JSON objects differ.

  Args:
    recorded: what an artefact says it was made from.
    expected: what this run would make it from. Nested objects are compared
      field by field, with dotted names.
    words: what lines call the two.

  Returns:
    Lines "field: recorded value, expected value", sorted; [] if equal.
  """
  # Through JSON and back, because tuples come back from a file as lists.
  old, new = (
    _flat(json.loads(canonical_json(x))) for x in (recorded, expected)
  )
  return [
    f'{field}: {words[0]} {_shown(old, field)}, {words[1]} {_shown(new, field)}'
    for field in sorted(old.keys() | new.keys())
    if _shown(old, field, None) != _shown(new, field, None)
  ]


def write_manifest(
  folder: epath.PathLike,
  kind: str,
  fields: Mapping[str, Any],
  results: Mapping[str, Any] | None = None,
  *,
  finished: bool = True,
) -> None:
  """Marks `folder` as finished; call it after everything else is written.

  Args:
    folder: of the artefact; made if absent.
    kind: what the folder holds, e.g. "export".
    fields: the fingerprint: all that the content depends on.
    results: what the content says in a few numbers, such as its digest.
    finished: False marks the folder as begun, for this fingerprint alone.
  """
  folder = epath.Path(folder)
  with disk.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  content = {
    'schema': SCHEMA,
    'kind': kind,
    'finished': finished,
    'fingerprint': dict(fields),
    'results': dict(results or {}),
  }
  write_json_atomic(folder / MANIFEST, sealed(content))


def is_untouched(folder: epath.PathLike) -> bool:
  """Whether a folder may be begun: it is not there, or holds nothing.

  A manifest whose write was interrupted, under its temporary name, is nothing.
  """
  folder = epath.Path(folder)
  if not folder.exists():
    return True
  begun = re.compile(rf'\.{re.escape(MANIFEST)}\.[0-9a-f]{{8}}\.tmp')
  return all(begun.fullmatch(path.name) for path in folder.iterdir())


def read_manifest(folder: epath.PathLike) -> dict[str, Any] | None:
  """The manifest of `folder`, or None where there is none.

  Raises:
    types.InputError: the file is no manifest, of another schema, or damaged.
  """
  path = epath.Path(folder) / MANIFEST
  if not path.exists():
    return None
  content = unsealed(path)
  if content.get('schema') != SCHEMA or not all(
    isinstance(content.get(field), kind) for field, kind in _FIELDS.items()
  ):
    raise types.InputError(f'{path}: not a manifest of schema {SCHEMA}')
  return content


def matches(
  folder: epath.PathLike, kind: str, fields: Mapping[str, Any]
) -> bool:
  """Whether `folder` already holds what this run would make.

  Args:
    folder: of the artefact.
    kind: as given to `write_manifest`.
    fields: the fingerprint of this run.

  Returns:
    True if it is finished and was made from the same; False if it is not there
    or only begun.

  Raises:
    types.InputError: it was made from something else; every differing field
      is named with both values.
  """
  content = read_manifest(folder)
  if content is None:
    return False
  lines = _foreign_fields(content, kind, fields)
  if lines:
    raise types.InputError('\n'.join(foreign(folder, lines)))
  return bool(content.get('finished'))


def is_current(
  folder: epath.PathLike, kind: str, fields: Mapping[str, Any]
) -> bool:
  """As `matches`, for what may be made anew: another fingerprint is False."""
  content = read_manifest(folder)
  return (
    content is not None
    and bool(content.get('finished'))
    and not _foreign_fields(content, kind, fields)
  )


def is_finished(folder: epath.PathLike) -> bool:
  """Whether `folder` has a finished manifest, whatever it was made from."""
  content = read_manifest(folder)
  return content is not None and bool(content.get('finished'))


def read_results(folder: epath.PathLike) -> dict[str, Any]:
  """The results in the manifest of a finished folder.

  Raises:
    types.InputError: there is no finished manifest.
  """
  content = read_manifest(folder)
  if content is None or not content.get('finished'):
    raise types.InputError(f'{folder}: is not finished; there is no result yet')
  return content.get('results', {})


def foreign(folder: epath.PathLike, lines: list[str]) -> list[str]:
  """The problem lines for a folder that another run made.

  Args:
    folder: the place.
    lines: from `differences`.

  Returns:
    `lines`, each with its place, and what the user can do about them.
  """
  return [f'{folder}: {line}' for line in lines] + [
    f'{folder}: made by another run; choose another --workdir, or delete this'
    ' folder yourself, and what was made from it: self-CoTs, later stages,'
    ' predictions, exports'
  ]


# In JSON a lone surrogate's \udXXX is also its escape: the text survives.
_TEXT: dict[str, Any] = {
  'mode': 'w',
  'encoding': 'utf-8',
  'errors': 'backslashreplace',
  'newline': '\n',
}


@contextlib.contextmanager
def open_atomic(path: epath.PathLike) -> Iterator[IO[str]]:
  """Opens a text file that appears under its name only when it is whole.

  The text goes to a temporary name in the same folder, is flushed to the disk
  and renamed; to a bucket it is copied when it is whole.

  Args:
    path: replaced if it exists.

  Yields:
    The file, to be written to.

  Raises:
    types.InputError: it cannot be written; the old file stays as it is.
  """
  path = epath.Path(path)
  if remote_files.is_remote(path):
    with tempfile.TemporaryDirectory() as scratch:
      local = pathlib.Path(scratch, path.name)
      with disk.writing(path):
        with open(local, **_TEXT) as file:
          yield file
        remote_files.put(local, path)
    return
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
  try:
    with disk.writing(path), open(temporary, **_TEXT) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    with disk.writing(path):
      os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


def write_text_atomic(path: epath.PathLike, text: str) -> None:
  """Writes `text` to `path`: afterwards the old file or the new, never half."""
  with open_atomic(path) as file:
    file.write(text)


def write_json_atomic(path: epath.PathLike, obj: Any) -> None:
  """Writes `obj` as indented JSON; a number that is not finite is an error."""
  text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
  write_text_atomic(path, text + '\n')


def _foreign_fields(content, kind: str, fields) -> list[str]:
  return differences(
    {'kind': content.get('kind'), **content.get('fingerprint', {})},
    {'kind': kind, **fields},
  )


def _flat(obj: Any, prefix: str = '') -> dict[str, Any]:
  """{dotted name: value} of nested objects; an empty one is a value."""
  flat = {}
  for key, value in obj.items():
    if isinstance(value, dict) and value:
      flat.update(_flat(value, f'{prefix}{key}.'))
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def _shown(
  flat: dict[str, Any], field: str, limit: int | None = _SHOWN_CHARS
) -> str:
  """A field's value for a message; "nothing" where it is absent."""
  if field not in flat:
    return 'nothing'
  text = json.dumps(flat[field], sort_keys=True, ensure_ascii=False)
  if limit is not None and len(text) > limit:
    text = f'{text[:limit]}... (digest {digest_of(flat[field])[:8]})'
  return text
