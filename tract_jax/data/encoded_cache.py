"""Encoded examples on disk, for the next run on the same rows.

  <cache>/encoded/<digest>/manifest.json, tokens.npy, starts.npy, ...

The digest is of everything that the arrays depend on, so an entry is never out
of date; it is only damaged or absent, and then made anew. Whether there is a
cache changes no result. Entries that were not read for the longest time go when
all of them together take more than 20 GiB.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import secrets
import shutil
from typing import Any

import numpy as np
import tokenizers

from tract_jax import types
from tract_jax.data import cache, encoded_examples, encoding, manifest
from tract_jax.text import score_tokens as score_tokens_lib
from tract_jax.text import tokenizer as tokenizer_lib

# To be raised with every change of what `encoding` or the arrays mean.
_FORMAT = 1
_KIND = 'encoded'
_MAX_BYTES = 20 * 2**30
_ARRAYS = encoded_examples.ARRAYS
Encoded = tuple[encoded_examples.EncodedExamples, encoding.EncodeReport]


def digest(
  examples: Sequence[types.Example],
  tokenizer: tokenizer_lib.Tokenizer,
  score_tokens: score_tokens_lib.ScoreTokens,
  *,
  max_length: int,
  too_long: str,
  samples: Sequence[np.ndarray] | None,
) -> str:
  """SHA-256 of all that `encoding.encode_all` makes of its arguments.

  Args:
    examples, tokenizer, score_tokens, max_length, too_long, samples: as for
      `encoding.encode_all`.

  Returns:
    64 hexadecimal digits.
  """
  facts = {
    'format': _FORMAT,
    'tokenizers': tokenizers.__version__,
    'tokenizer': tokenizer.digest(),
    # Template, start token and whatever else stands round a prompt.
    'empty_prompt': tokenizer.prompt_ids('').tolist(),
    'end': tokenizer.eos_id,
    'score_tokens': dataclasses.asdict(score_tokens),
    'max_length': max_length,
    'too_long': too_long,
    'with_samples': samples is not None,
  }
  sha = hashlib.sha256(manifest.canonical_json(facts).encode())
  for example in examples:
    content = [
      example.example_id,
      example.prompt,
      example.cot,
      example.score,
      example.ratings,
    ]
    sha.update(manifest.canonical_json(content).encode() + b'\n')
  for sample in samples or ():
    sha.update(manifest.digest_arrays({'tokens': sample}).encode())
  return sha.hexdigest()


def encoded(
  key: str, make: Callable[[], Encoded], say: Callable[[str], None]
) -> Encoded:
  """Reads an entry, or makes it and keeps it.

  Args:
    key: from `digest`.
    make: encodes the examples.
    say: takes the lines that tell what was done.

  Returns:
    What `make` gives; from the disk, arrays are memory-mapped.

  Raises:
    types.InputError: whatever `make` raises. Trouble with the cache is a line.
  """
  folder = cache.cache_folder() / 'encoded' / key
  try:
    if (found := _read(folder)) is not None:
      say(f'encoded rows: read from {folder}')
      return found
  except (OSError, ValueError, KeyError, TypeError) as error:
    say(f'{folder}: damaged ({error}); its rows are encoded anew')
    shutil.rmtree(folder, ignore_errors=True)
  made = make()
  try:
    _write(folder, *made)
    _make_room(folder)
  except (OSError, types.InputError) as error:
    say(f'warning: {folder}: not kept for the next run: {error}')
  return made


def _read(folder: pathlib.Path) -> Encoded | None:
  """An entry whose every array has the digest that its manifest says."""
  if not folder.exists():
    return None
  if not manifest.is_current(folder, _KIND, {'digest': folder.name}):
    raise ValueError(f'{manifest.MANIFEST} is not there, or of another entry')
  results = manifest.read_results(folder)
  arrays: dict[str, Any] = {}
  for name in _ARRAYS:
    path = folder / f'{name}.npy'
    if manifest.digest_of_file(path) != results['sha256'][name]:
      raise ValueError(f'sha256 of {path.name}')
    # An ordinary array whose memory is the file's.
    arrays[name] = np.asarray(np.load(path, mmap_mode='r', allow_pickle=False))
  report = {**results['report']}
  report['dropped_ids'] = tuple(report['dropped_ids'])
  # What was read last goes last.
  os.utime(folder)
  return (
    encoded_examples.EncodedExamples(**arrays),
    encoding.EncodeReport(**report),
  )


def _write(
  folder: pathlib.Path,
  examples: encoded_examples.EncodedExamples,
  report: encoding.EncodeReport,
) -> None:
  """Writes an entry, which appears whole under its name or not at all."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  temporary = folder.with_name(f'.{folder.name}.{secrets.token_hex(4)}.tmp')
  try:
    temporary.mkdir()
    for name in _ARRAYS:
      path = temporary / f'{name}.npy'
      np.save(path, getattr(examples, name), allow_pickle=False)
    digests = {
      name: manifest.digest_of_file(temporary / f'{name}.npy')
      for name in _ARRAYS
    }
    results = {'sha256': digests, 'report': dataclasses.asdict(report)}
    key = {'digest': folder.name}
    manifest.write_manifest(temporary, _KIND, key, results)
    # Another run may have been first; its arrays are the same.
    if not folder.exists():
      temporary.rename(folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _make_room(newest: pathlib.Path) -> None:
  """Removes entries, the longest unread first, but never the newest."""
  entries = sorted(
    newest.parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True
  )
  total = 0
  for entry in entries:
    total += sum(path.stat().st_size for path in entry.iterdir())
    if total > _MAX_BYTES and entry != newest:
      with contextlib.suppress(OSError):
        shutil.rmtree(entry)
