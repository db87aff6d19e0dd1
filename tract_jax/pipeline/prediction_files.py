"""Prediction files: chunks of rows while it is predicted, joined afterwards.

    predictions/<method>/parts/<benchmark>/seed0/chunk_00000000.jsonl
                                                chunk_00000064.jsonl
    predictions/<method>/<benchmark>.jsonl      all seeds' chunks, joined

A chunk's last line is

    {"sha256": of the rows before it}

so that a changed byte is seen. The joined file has rows alone.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json

from etils import epath

from tract_jax import types
from tract_jax.data import manifest, row_files
from tract_jax.pipeline import prediction_rows, progress


def path_of(workdir: epath.Path, method: str, benchmark: str) -> epath.Path:
  """Where the predictions of a method on a benchmark lie."""
  return workdir / 'predictions' / method / f'{benchmark}.jsonl'


def chunk_folder(
  workdir: epath.Path, method: str, benchmark: str, seed: int
) -> epath.Path:
  """Where the chunks lie that a seed's predictions are joined of."""
  folder = path_of(workdir, method, benchmark).parent
  return folder / 'parts' / benchmark / f'seed{seed}'


def chunk_name(start: int) -> str:
  """Of the file whose first row is the benchmark's row `start`."""
  return f'chunk_{start:08d}.jsonl'


def to_line(prediction: types.Prediction) -> str:
  """A row as a prediction file has it, with the end of its line."""
  fields = dataclasses.asdict(prediction)
  return json.dumps(fields, ensure_ascii=False, allow_nan=False) + '\n'


def with_digest(rows: str) -> str:
  """The text of a chunk: its rows, and a line with their digest."""
  digest = hashlib.sha256(rows.encode('utf-8', 'backslashreplace')).hexdigest()
  return f'{rows}{{"sha256": "{digest}"}}\n'


def read_chunk(path: epath.Path) -> str:
  """The rows of a chunk's file, verified.

  Raises:
    types.InputError: they are not those that were written.
  """
  content = path.read_bytes()
  rows, newline, _ = content.removesuffix(b'\n').rpartition(b'\n')
  text = (rows + newline).decode('utf-8', 'replace')
  if with_digest(text).encode() != content:
    raise types.InputError(
      f'{path}: damaged: its rows do not have the digest of its last line;'
      ' delete it and manifest.json beside it to predict its rows again'
    )
  return text


def read_chunks(folder: epath.Path, num_rows: int | None = None) -> str:
  """The finished chunks' rows, in the order of the benchmark.

  Args:
    folder: of the chunks.
    num_rows: how many rows there must be; None: as many as there are.

  Returns:
    Their lines.

  Raises:
    types.InputError: a chunk is gone, cut or damaged.
  """
  texts, num_read, lost = [], 0, ''
  for path in sorted(folder.glob('chunk_*.jsonl')):
    if path.name != chunk_name(num_read):
      lost = lost or chunk_name(num_read)
    texts.append(read_chunk(path))
    num_read += texts[-1].count('\n')
  if num_rows not in (None, num_read):
    lost = lost or chunk_name(num_read)
  if lost:
    raise types.InputError(
      f'{folder / lost}: is lost: {num_read} of {num_rows or "all"} predictions'
      ' are there; delete manifest.json beside it to predict its rows again'
    )
  return ''.join(texts)


def join_chunks(
  folders: Sequence[epath.Path], num_rows: int, path: epath.Path
) -> None:
  """Joins the chunks of all seeds into one file, where it does not have them.

  Args:
    folders: of each seed's chunks.
    num_rows: of each.
    path: predictions/<method>/<benchmark>.jsonl.

  Raises:
    types.InputError: a chunk is gone, cut or damaged.
  """
  text = ''.join(read_chunks(folder, num_rows) for folder in folders)
  found = path.read_bytes() if path.exists() else b''
  if found == text.encode():
    return
  if not text.encode().startswith(found):
    progress.say(f'{path}: was not what its chunks hold; written anew')
  manifest.write_text_atomic(path, text)


def check_joined(folders: Sequence[epath.Path], path: epath.Path) -> None:
  """Refuses a joined file that is not what the chunks hold.

  Args:
    folders: of each seed's chunks; where one is not finished nothing is known,
      as of another system's predictions.
    path: predictions/<method>/<benchmark>.jsonl.

  Raises:
    types.InputError: it is not there; or it, or a chunk, is damaged.
  """
  if not path.exists():
    raise types.InputError(f'{path}: no such file; run --task=predict first')
  if not all(manifest.is_finished(folder) for folder in folders):
    return
  content = path.read_bytes()
  for folder in folders:
    if read_chunks(folder).encode() not in content:
      raise types.InputError(
        f'{path}: not what the chunks in {folder} hold: damaged, or changed by'
        ' hand; --task=predict writes it anew'
      )


def read_predictions(path: epath.Path) -> list[types.Prediction]:
  """Reads predictions/<method>/<benchmark>.jsonl.

  Args:
    path: the file.

  Returns:
    Its rows.

  Raises:
    types.InputError: a missing file, or a line that is no prediction.
  """
  rows = []
  lines = prediction_rows.lines(read_text(path))
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(prediction_rows.read_line(line))
    except types.InputError as error:
      raise types.InputError(f'{path}: line {number}: {error}') from error
  return rows


def read_text(path: epath.Path) -> str:
  """The text of a prediction file.

  Raises:
    types.InputError: a missing file, or one that is not UTF-8.
  """
  if not path.exists():
    raise types.InputError(f'{path}: no such file')
  return row_files.decoded(str(path), path.read_bytes())
