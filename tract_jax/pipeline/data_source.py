"""Where a data file is: on disk, in a bucket, in the cache, or on the hub.

path                                     file
/data/train.json, gs://bucket/x.jsonl    as it is; data/row_files opens it
sentiment/train.jsonl                    that file of a prepared data set
hf://datasets/org/name@COMMIT/x.json     that file, in the hub's cache
hf://datasets/org/name@COMMIT            the dataset's one file of training
"""

import huggingface_hub

from tract_jax import types
from tract_jax.pipeline import hub, prepared_folder

_SCHEME = 'hf://'
_ENDINGS = ('.json', '.jsonl', '.parquet')
# Descriptions of a dataset that are no data.
_NO_DATA = ('dataset_info.json', 'dataset_infos.json')
_FORM = 'hf://datasets/owner/name@COMMIT/file.json'


def find(path: str) -> str:
  """The path that a data file is opened by; one on the hub is downloaded.

  Args:
    path: of a file, local, in a bucket, of a prepared data set or on the hub.

  Returns:
    The path itself, or that of the local copy.

  Raises:
    types.InputError: a path on the hub that names no dataset or no commit, or
      that the hub does not give; a data set that was not prepared.
  """
  if not path.startswith(_SCHEME):
    return prepared_folder.data_path(path)
  owner, _, rest = path.removeprefix(f'{_SCHEME}datasets/').partition('/')
  name, _, file = rest.partition('/')
  name, _, revision = name.partition('@')
  hub_id = f'{owner}/{name}'
  if not path.startswith(f'{_SCHEME}datasets/') or not hub.ID.fullmatch(hub_id):
    raise types.InputError(f'{path}: is not like {_FORM}')
  commit = hub.commit(
    path,
    [revision] if revision else [],
    f'needs a commit, as in {_FORM}',
    '"@" after the name',
  )
  try:
    file = file or _train_file(path, hub_id, commit)
    return huggingface_hub.hf_hub_download(
      hub_id, file, revision=commit, repo_type='dataset'
    )
  except types.InputError:
    raise
  # The libraries below raise errors of their own: of HTTP, of the disk.
  except Exception as error:
    raise types.InputError(f'{path}: {hub.problem(error, "dataset")}') from None


def _train_file(path: str, hub_id: str, commit: str) -> str:
  """The one data file of a dataset, or its one with "train" in its name."""
  files = huggingface_hub.HfApi().list_repo_files(
    hub_id, revision=commit, repo_type='dataset'
  )
  found = [
    file
    for file in sorted(files)
    if file.endswith(_ENDINGS)
    and not file.startswith('.')
    and file.rsplit('/', 1)[-1] not in _NO_DATA
  ]
  train = [file for file in found if 'train' in file.lower()]
  for chosen in (found, train):
    if len(chosen) == 1:
      return chosen[0]
  names = ', '.join(found or sorted(files)) or 'none'
  problem = 'several data files' if found else 'no JSON, JSONL or parquet file'
  raise types.InputError(
    f'{path}: {problem}: {names}; add "/" and the name of one'
  )
