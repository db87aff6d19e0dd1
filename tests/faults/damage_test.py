"""Flipped bits, cut and lost files of a finished run: seen, or harmless."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import random
import shutil
from typing import Any

from etils import epath
import pytest

from tests.faults import harness
from tract_jax import types
from tract_jax.data import manifest, self_cot
from tract_jax.pipeline import (
  evaluate,
  prediction_files,
)

CHUNKS = 'predictions/tract/parts/synthetic/seed0'
# Positions of each kind.
NUM_FLIPS = {
  'checkpoints': 60,
  'params': 20,
  'self-CoT chunks': 60,
  'self-CoT dataset': 20,
  'manifests': 40,
  'prediction chunks': 30,
  'predictions': 20,
  'report': 10,
}


@dataclasses.dataclass(frozen=True)
class Artefact:
  """Something finished, and how a run reads it.

  Attributes:
    files: what it consists of.
    names: texts that an error must have, to say which one it is.
    read: reads and verifies it; what it gives can be compared.
  """

  files: list[pathlib.Path]
  names: tuple[str, ...]
  read: Callable[[], Any]


@pytest.fixture(scope='module')
def workdir(undisturbed, tmp_path_factory):
  return shutil.copytree(
    undisturbed, tmp_path_factory.mktemp('damaged') / 'run'
  )


def read_predictions(workdir: pathlib.Path) -> Any:
  root = epath.Path(workdir)
  path = prediction_files.path_of(root, 'tract', 'synthetic')
  rows = prediction_files.read_predictions(path)
  chunks = prediction_files.chunk_folder(root, 'tract', 'synthetic', 0)
  prediction_files.check_joined([chunks], path)
  return rows


def artefacts(workdir: pathlib.Path) -> dict[str, list[Artefact]]:
  """Of each kind, all that a finished run has."""
  found: dict[str, list[Artefact]] = {kind: [] for kind in NUM_FLIPS}
  num_rows = len(read_predictions(workdir))
  chunks = functools.partial(
    prediction_files.read_chunks, epath.Path(workdir / CHUNKS), num_rows
  )
  for name in harness.pieces(workdir):
    path = workdir / name
    read = functools.partial(harness.read_piece, path)
    if path.name.isdigit():
      kind = path.parent.name if 'stage' in name else 'self-CoT chunks'
      files = sorted(p for p in path.rglob('*') if p.is_file())
      names = (f'{path.parent}: ', path.name)
    else:
      kind, files, names = 'manifests', [path], (str(path.parent),)
      if path.name == self_cot.SUMMARY:
        kind = 'self-CoT dataset'
      elif path.name.startswith('chunk'):
        kind, read, names = 'prediction chunks', chunks, (str(path),)
    found[kind].append(Artefact(files, names, read))
  joined = workdir / 'predictions/tract/synthetic.jsonl'
  read = functools.partial(read_predictions, workdir)
  found['predictions'] = [Artefact([joined], (str(joined),), read)]
  report = workdir / 'report/metrics.json'
  read = functools.partial(
    evaluate.read_results, epath.Path(workdir), 'tract', 0
  )
  found['report'] = [Artefact([report], (str(report),), read)]
  return found


def outcome(artefact: Artefact, wanted: Any) -> str:
  """ "seen", "harmless", or what is wrong."""
  try:
    found = artefact.read()
  except types.InputError as error:
    missing = [name for name in artefact.names if name not in str(error)]
    return f'not named, {missing}: {error}' if missing else 'seen'
  except Exception as error:
    return f'{type(error).__name__}: {error}'
  return 'harmless' if found == wanted else 'read as something else'


def tried(
  artefact: Artefact, path: pathlib.Path, content: bytes | None, wanted: Any
) -> str:
  """The outcome with a file's content changed, or without the file."""
  before = path.read_bytes()
  try:
    if content is None:
      path.unlink()
    else:
      path.write_bytes(content)
    return outcome(artefact, wanted)
  finally:
    path.write_bytes(before)


def flipped(content: bytes, place: int, bit: int) -> bytes:
  changed = bytearray(content)
  changed[place] ^= 1 << bit
  return bytes(changed)


@pytest.mark.slow
def test_every_flipped_bit_is_seen_or_harmless(workdir):
  rng = random.Random(0)
  counts = {kind: {'seen': 0, 'harmless': 0} for kind in NUM_FLIPS}
  problems = []
  wanted: dict[tuple[str, ...], Any] = {}
  for kind, of_kind in artefacts(workdir).items():
    assert of_kind, kind
    for number in range(NUM_FLIPS[kind]):
      artefact = rng.choice(of_kind)
      files = [path for path in artefact.files if path.stat().st_size]
      # In turn any byte, and any file: small ones hold what the rest means.
      weights = [p.stat().st_size if number % 2 else 1 for p in files]
      (path,) = rng.choices(files, weights)
      place, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
      if artefact.names not in wanted:
        wanted[artefact.names] = artefact.read()
      content = flipped(path.read_bytes(), place, bit)
      told = tried(artefact, path, content, wanted[artefact.names])
      if told in counts[kind]:
        counts[kind][told] += 1
      else:
        problems.append(f'{path}: bit {bit} of byte {place}: {told}')
  print(counts)
  assert not problems, '\n'.join(problems)
  for kind in ('manifests', 'prediction chunks', 'predictions', 'report'):
    # But for a bit in the space between two words of JSON.
    assert counts[kind]['seen'] > 0.9 * NUM_FLIPS[kind]
  for kind in ('checkpoints', 'params', 'self-CoT chunks'):
    assert counts[kind]['seen'] > 0.3 * NUM_FLIPS[kind]


@pytest.mark.slow
def test_every_cut_or_lost_file_is_seen_or_harmless(workdir):
  problems = []
  num_seen = 0
  for kind, of_kind in artefacts(workdir).items():
    artefact = of_kind[-1]
    wanted = artefact.read()
    for path in artefact.files:
      content = path.read_bytes()
      changes = {'cut': content[: len(content) // 2], 'emptied': b''}
      # What is wanting there and no more is made anew; see below.
      if kind not in ('self-CoT dataset', 'report'):
        changes['lost'] = None
      for how, changed in changes.items():
        told = tried(artefact, path, changed, wanted)
        num_seen += told == 'seen'
        if told not in ('seen', 'harmless'):
          problems.append(f'{path}: {how}: {told}')
  assert not problems, '\n'.join(problems)
  assert num_seen >= 2 * len(NUM_FLIPS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_damaged_chunk_stops_a_run_and_what_is_deleted_is_made_anew(
  undisturbed, tmp_path
):
  workdir = shutil.copytree(undisturbed, tmp_path / 'run')
  chunk = workdir / CHUNKS / 'chunk_00000008.jsonl'
  chunk.write_bytes(flipped(chunk.read_bytes(), 100, 3))
  output = harness.finish(harness.start(workdir), 2)
  assert f'error: {chunk}: damaged' in output
  self_cots = workdir / 'tract/self_cot/seed0'
  lost = [
    # As the message says.
    chunk,
    chunk.with_name(manifest.MANIFEST),
    self_cots / 'dataset.json',
    self_cots / 'self_cots.jsonl',
    workdir / 'predictions/tract/synthetic.jsonl',
    workdir / 'report/report.md',
    # Goes on from its last checkpoint, and has nothing left to train.
    workdir / 'cot_raft/stage1/seed0/manifest.json',
    workdir / 'tract/stage2/seed0/cot_gap/manifest.json',
  ]
  for path in lost:
    path.unlink()
  shutil.rmtree(self_cots / '3')
  kept = harness.pieces(workdir)
  del kept['report/manifest.json']
  output = harness.finish(harness.start(workdir))
  assert 'cot_raft stage 1 seed 0: continues from step' in output
  assert all(path.exists() for path in lost)
  assert not harness.redone(kept, harness.pieces(workdir))
  assert harness.results(workdir) == harness.results(undisturbed)
