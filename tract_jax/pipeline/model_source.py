"""Where a model's files are: a folder, a bucket, a hub id or a seed model.

In: what `config.model.path` says. Out: a `Source`: the small files (config,
tokenizer, adapter's and judge's settings) on the local disk, and the folder of
the weights, which models/hf_weights reads by byte ranges where it is remote.

  path                      small files            weights
  /models/mistral           there                  there
  org/name, with a commit   the hub's cache        the hub's cache
  gs://bucket/mistral       a temporary copy       in the bucket
  smollm2-135m-instruct     the project's cache    the project's cache

Only data is fetched: no `*.bin`, which is a pickle, and no `*.py`.
"""

import atexit
import dataclasses
import fnmatch
import os
import pathlib
import re
import shutil
import tempfile

from etils import epath
import huggingface_hub
import ml_collections

from tract_jax import types
from tract_jax.models import peft_adapter, remote_files
from tract_jax.pipeline import hub, seed_model

_SMALL_FILES = (
  '*.json',
  '*.jinja',
  'tokenizer.model',
  'vocab.txt',
  'merges.txt',
  'README.md',
  'LICENSE*',
)
# The same weights in another layout, and those of other formats in folders.
_NOT_FETCHED = ('consolidated*', '*/*')
_ADVICE = 'no such folder, and as a hub id it needs a commit', 'model.revision'
_SCHEMES = ('gs', 's3', 'az')
_FILE_NAME = re.compile(r'[A-Za-z0-9_-][A-Za-z0-9._-]*')
_MAX_SMALL_FILE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Source:
  """A model's files.

  Attributes:
    name: for messages and model cards: the path, or "org/name@commit".
    folder: the small files, on the local disk.
    weights: the folder of the safetensors; `folder` itself if it is local.
    commit: of a model on the hub; else "".
  """

  name: str
  folder: pathlib.Path
  weights: epath.Path
  commit: str = ''

  @property
  def reference(self) -> tuple[str, str]:
    """Hub id and commit apart; the name and "" of what is not on the hub."""
    return self.name.removesuffix(f'@{self.commit}'), self.commit


@dataclasses.dataclass(frozen=True)
class Sources:
  """Where a model's files are.

  Attributes:
    base: the Hugging Face folder.
    adapter: the PEFT adapter to merge into it, or None.
  """

  base: Source
  adapter: Source | None

  @property
  def name(self) -> str:
    """For messages: "folder", or "folder with adapter"."""
    names = [s.name for s in (self.base, self.adapter) if s]
    return ' with '.join(names)

  @property
  def folder(self) -> pathlib.Path:
    """The base's small files on the local disk: config, tokenizer."""
    return self.base.folder

  @property
  def judge_folder(self) -> pathlib.Path:
    """Where a judge's own settings are: with what was trained last."""
    return (self.adapter or self.base).folder


def is_folder(path: str) -> bool:
  """Whether a path means a folder: here, remote or a seed model's; no hub id.

  Args:
    path: as for `find`; whether a remote folder is there is not looked at.
  """
  return (
    remote_files.is_remote(path)
    or os.path.isdir(path)
    or path in seed_model.SEED_MODELS
  )


def find(path: str, revision: str = '') -> Source:
  """Finds a model's files; of a model on the hub, all are downloaded.

  Args:
    path: a local folder; the name of a seed model that was fetched; a remote
      folder such as gs://bucket/model; or a hub id, "org/name" or
      "org/name@commit". A local folder of that name comes first.
    revision: the hub id's commit, all 40 digits: a branch or a tag may mean
      other weights tomorrow.

  Returns:
    The source. A copy of a remote folder's small files is removed when the
    process ends.

  Raises:
    types.InputError: nothing is there, it cannot be had, or the revision is
      missing, is no commit or is given for what is not on the hub.
  """
  if is_folder(path):
    _check_no_revision(path, revision)
    if remote_files.is_remote(path):
      return _remote_source(path)
    folder = seed_model.seed_model_path(path)
    return Source(path, folder, epath.Path(folder))
  hub_id, _, commit = path.partition('@')
  if not hub.ID.fullmatch(hub_id):
    raise types.InputError(
      f'model.path: {path!r}: no such folder, nor a seed model'
      f' ({", ".join(seed_model.SEED_MODELS)}), nor a hub id like org/name'
    )
  given = [r for r in (commit, revision) if r]
  return _hub_source(
    hub_id, hub.commit(f'model.path: {path!r}', given, *_ADVICE)
  )


def find_model(model: ml_collections.ConfigDict) -> Sources:
  """Finds the files of `config.model.path`; an adapter's folder is one, too.

  Args:
    model: config.model, with a path.

  Returns:
    The sources, with the small files on the local disk.

  Raises:
    types.InputError: nothing is there.
  """
  source = find(model.path, model.revision)
  if not peft_adapter.is_adapter(source.folder):
    adapter = find(model.adapter) if model.adapter else None
    return Sources(source, adapter)
  if model.adapter:
    raise types.InputError(
      f'config.model.adapter: {model.adapter!r}: config.model.path '
      f'{model.path!r} is an adapter already'
    )
  return Sources(_base_of(source), source)


def _base_of(source: Source) -> Source:
  """The base that an adapter names."""
  adapter = peft_adapter.read_config(source.folder)
  advice = 'name the base by config.model.path, this by config.model.adapter'
  if not adapter.base_model:
    raise types.InputError(f'{source.name}: does not name its base: {advice}')
  # PEFT writes the revision of a local base, too, where it was asked for one.
  is_local = pathlib.Path(adapter.base_model).is_dir()
  try:
    base = find(adapter.base_model, '' if is_local else adapter.revision)
  except types.InputError as error:
    raise types.InputError(
      f'{source.name}: its base: {error}; {advice}'
    ) from error
  if peft_adapter.is_adapter(base.folder):
    raise types.InputError(
      f'{source.name}: its base {base.name} is an adapter itself: merge that'
      ' first'
    )
  return base


def _check_no_revision(path: str, revision: str) -> None:
  if revision:
    raise types.InputError(
      f'model.revision: {revision!r}: {path!r} is a folder, and only a hub id'
      ' has revisions'
    )


def _hub_source(hub_id: str, commit: str) -> Source:
  """Downloads what the hub's cache lacks of a model."""
  name = f'{hub_id}@{commit}'
  try:
    folder = pathlib.Path(
      huggingface_hub.snapshot_download(
        hub_id,
        revision=commit,
        allow_patterns=[*_SMALL_FILES, '*.safetensors'],
        ignore_patterns=list(_NOT_FETCHED),
      )
    )
  # The libraries below raise errors of their own: of HTTP, of the disk.
  except Exception as error:
    raise types.InputError(f'{name}: {hub.problem(error, "model")}') from None
  return Source(name, folder, epath.Path(folder), commit)


def _remote_source(address: str) -> Source:
  """Copies the small files of a remote folder."""
  scheme, _, rest = address.partition('://')
  if scheme not in _SCHEMES or not rest.strip('/'):
    raise types.InputError(
      f'model.path: {address!r}: an address is SCHEME://bucket/folder, with'
      f' {", ".join(_SCHEMES)} as scheme; a hub model is org/name@commit'
    )
  remote = remote_files.open_folder(address)
  top = tempfile.mkdtemp(prefix='tract_jax-')
  atexit.register(shutil.rmtree, top, ignore_errors=True)
  # The folder's own name is what messages on its files end in.
  name = re.sub(r'[^A-Za-z0-9._-]', '_', rest.strip('/').split('/')[-1])
  folder = pathlib.Path(top, f'{name}.copy')
  folder.mkdir()
  for file_name, size in remote.sizes.items():
    if not _FILE_NAME.fullmatch(file_name) or not any(
      fnmatch.fnmatchcase(file_name, pattern) for pattern in _SMALL_FILES
    ):
      continue
    if size > _MAX_SMALL_FILE_BYTES:
      raise types.InputError(
        f'{remote.address}/{file_name}: {size} bytes, and such a file has at'
        f' most {_MAX_SMALL_FILE_BYTES}'
      )
    (folder / file_name).write_bytes(remote.read(file_name, 0, size))
  return Source(remote.address, folder, epath.Path(remote.address))
