"""The self-CoT dataset: what the stage-1 model wrote, kept as Orbax steps.

A step is a chunk of examples, with all CoTs of each:

  example_index       [n]     row of the training data
  cot_index           [n]     which of the row's CoTs
  tokens              [n, l]  int32, padded with 0 on the right
  length              [n]     how many of the tokens count
  num_sampled_tokens  [n]     how many of those the model wrote itself
  finish_reason       [n]     index into types.FINISH_REASONS
  score_probs         [n, Y]  float32
  greedy_index        [n]
  num_retries         [n]     attempts thrown away before it

with the ids of its examples, a digest over its arrays, and the provenance of
the dataset: all that the samples depend on (checkpoint, tokenizer, data and
sampling parameters). Any host may write any chunk; a dataset that lacks one,
is damaged or has another provenance is refused by its reader.

Beside the steps lie `dataset.json`, with the digest of the whole and counts,
and `self_cots.jsonl`, a copy for people; neither is needed to read the dataset.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any, Self

from etils import epath
import numpy as np

from tract_jax import types
from tract_jax.data import fetched_store, manifest, orbax_store

SUMMARY = 'dataset.json'
TEXTS = 'self_cots.jsonl'
# What is read of it.
_SUMMARY = {
  'digest': str,
  'num_examples': int,
  'num_samples': int,
  'finish_reasons': dict,
  'num_retries': int,
  'num_unusable': int,
  'without_usable': list,
}
_KIND = 'self_cot'
_SCHEMA = 3


class SelfCotWriter:
  """Writes the chunks of one dataset, in any order and over many runs.

  Example:
    with SelfCotWriter(folder, provenance, num_chunks) as writer:
      for chunk in writer.missing_chunks():
        writer.write(chunk, samples, example_indices)
      digest = writer.finish(tokenizer.decode)
  """

  def __init__(
    self,
    folder: epath.PathLike,
    provenance: Mapping[str, Any],
    num_chunks: int,
  ):
    """Opens a dataset that may have some chunks already.

    Args:
      folder: of the dataset; made with the first chunk.
      provenance: JSON object of all that the samples depend on.
      num_chunks: into how many chunks the examples are divided.

    Raises:
      types.InputError: the folder holds a dataset of another provenance or
        number of chunks.
    """
    if num_chunks < 1:
      raise types.InputError(f'num_chunks {num_chunks}: must be at least 1')
    self._store = orbax_store.Store(folder, local=True)
    self._provenance = dict(provenance)
    self._num_chunks = num_chunks
    steps = self._store.steps()
    # The ends stand for all here, to open quickly; a reader checks each chunk.
    for step in sorted({*steps[:1], *steps[-1:]}):
      self._check(self._store.metadata(step))

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused_error: object) -> None:
    self._store.close()

  def missing_chunks(self) -> list[int]:
    """Chunks that nobody has finished yet, ascending."""
    done = set(self._store.steps())
    return [chunk for chunk in range(self._num_chunks) if chunk not in done]

  def write(
    self,
    chunk: int,
    samples: Sequence[types.CotSample],
    example_indices: Sequence[int],
  ) -> None:
    """Writes a chunk and returns when it is finished.

    Args:
      chunk: its number, one of `missing_chunks()`.
      samples: of the chunk's examples.
      example_indices: row of the training data for each sample.

    Raises:
      types.InputError: the chunk exists already or cannot be written.
      ValueError: samples and indices do not belong together.
    """
    if not 0 <= chunk < self._num_chunks:
      raise ValueError(f'chunk {chunk}: there are {self._num_chunks}')
    arrays = _arrays(samples, example_indices)
    metadata = {
      'kind': _KIND,
      'schema': _SCHEMA,
      'provenance': self._provenance,
      'chunk': chunk,
      'num_chunks': self._num_chunks,
      'digest': manifest.digest_arrays(arrays),
      'example_ids': [sample.example_id for sample in samples],
    }
    self._store.save(chunk, arrays, metadata)
    self._store.wait()

  def finish(
    self,
    decode: Callable[[np.ndarray], str],
    write_more: Callable[[Sequence[types.CotSample]], None] = lambda _: None,
  ) -> str:
    """Writes the copy for people, and last the digest of the whole dataset.

    Args:
      decode: tokens [l] int32 -> text.
      write_more: writes what else belongs to a finished dataset; is given its
        samples in order.

    Returns:
      The digest, as `read_self_cots` gives it.

    Raises:
      types.InputError: a chunk is missing or damaged.
    """
    folder = self._store.folder
    samples, digest = read_self_cots(folder, self._provenance)
    with manifest.open_atomic(folder / TEXTS) as file:
      for sample in samples:
        row = {
          'example_id': sample.example_id,
          'cot_index': sample.cot_index,
          'text': decode(sample.tokens),
          'finish_reason': sample.finish_reason,
          'num_retries': sample.num_retries,
          'score_probs': _finite_or_none(sample.score_probs),
        }
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n')
    write_more(samples)
    summary = {
      'schema': _SCHEMA,
      'digest': digest,
      'num_chunks': self._num_chunks,
      **counts(samples),
      'provenance': self._provenance,
    }
    manifest.write_json_atomic(folder / SUMMARY, manifest.sealed(summary))
    return digest

  def _check(self, metadata: Mapping[str, Any]) -> None:
    """Refuses a chunk of another dataset."""
    _check_origin(self._store.folder, metadata, self._provenance)
    if metadata['num_chunks'] != self._num_chunks:
      raise types.InputError(
        f'{self._store.folder}: divided into {metadata["num_chunks"]} chunks,'
        f' this run divides into {self._num_chunks}'
      )


def read_self_cots(
  folder: epath.PathLike, provenance: Mapping[str, Any]
) -> tuple[list[types.CotSample], str]:
  """Reads and verifies a whole dataset.

  Args:
    folder: as given to the writer.
    provenance: what the dataset must have been made from.

  Returns:
    The samples in the order of (example_index, cot_index), and the digest of
    the dataset: sha256 over its provenance, example ids and arrays.

  Raises:
    types.InputError: a chunk is missing (its number is named) or damaged, or
      the provenance differs (each differing field with both values).
  """
  folder = epath.Path(folder)
  rows: list[tuple[int, types.CotSample]] = []
  chunks = []
  with fetched_store.opened(folder) as store:
    steps = store.steps()
    if not steps:
      raise types.InputError(f'{folder}: there is no self-CoT dataset')
    first = store.metadata(steps[0])
    _check_origin(folder, first, provenance)
    _check_complete(folder, steps, first['num_chunks'])
    for step in steps:
      arrays, metadata = store.load(step)
      _check_origin(folder, metadata, provenance)
      digest = manifest.digest_arrays(arrays)
      if digest != metadata['digest'] or metadata['chunk'] != step:
        raise types.InputError(
          f'{folder}: chunk {step} is damaged: digest {metadata["digest"]} of'
          f' chunk {metadata["chunk"]} was saved, {digest} is read'
        )
      rows.extend(_samples(arrays, metadata['example_ids']))
      chunks.append([digest, metadata['example_ids']])
  rows.sort(key=lambda row: (row[0], row[1].cot_index))
  _check_unique(folder, [sample for _, sample in rows])
  digest = manifest.digest_of([manifest.digest_of(provenance), chunks])
  _check_summary(folder, digest)
  return [sample for _, sample in rows], digest


def counts(samples: Sequence[types.CotSample]) -> dict[str, Any]:
  """What became of the CoTs, as `dataset.json` has it.

  Args:
    samples: of whole examples.

  Returns:
    num_samples, num_examples, finish_reasons {each: number}, num_retries (of
    all together), num_unusable, and without_usable: ids of the examples that
    have no usable CoT.
  """
  reasons = collections.Counter(sample.finish_reason for sample in samples)
  ids = dict.fromkeys(sample.example_id for sample in samples)
  usable = {sample.example_id for sample in samples if sample.is_usable}
  return {
    'num_samples': len(samples),
    'num_examples': len(ids),
    'finish_reasons': {name: reasons[name] for name in types.FINISH_REASONS},
    'num_retries': sum(sample.num_retries for sample in samples),
    'num_unusable': sum(not sample.is_usable for sample in samples),
    'without_usable': [name for name in ids if name not in usable],
  }


def read_summary(folder: epath.PathLike) -> dict[str, Any] | None:
  """The content of `dataset.json`; None where the dataset is not finished.

  Raises:
    types.InputError: the file is damaged.
  """
  path = epath.Path(folder) / SUMMARY
  if not path.exists():
    return None
  content = manifest.unsealed(path)
  bad = [k for k, kind in _SUMMARY.items() if type(content.get(k)) is not kind]
  if bad or any(type(n) is not int for n in content['finish_reasons'].values()):
    raise types.InputError(
      f'{path}: damaged: {", ".join(bad) or "finish_reasons"}'
    )
  return content


def _arrays(
  samples: Sequence[types.CotSample], example_indices: Sequence[int]
) -> dict[str, np.ndarray]:
  """The arrays of a chunk; see the top of this file."""
  if len(samples) != len(example_indices):
    raise ValueError(
      f'{len(samples)} samples, but {len(example_indices)} example indices'
    )
  lengths = [len(sample.tokens) for sample in samples]
  tokens = np.zeros((len(samples), max(lengths, default=0)), np.int32)
  for row, sample in zip(tokens, samples, strict=True):
    row[: len(sample.tokens)] = sample.tokens
  ints = {
    'example_index': example_indices,
    'cot_index': [sample.cot_index for sample in samples],
    'length': lengths,
    'num_sampled_tokens': [sample.num_sampled_tokens for sample in samples],
    'finish_reason': [_finish_code(s.finish_reason) for s in samples],
    'greedy_index': [sample.greedy_index for sample in samples],
    'num_retries': [sample.num_retries for sample in samples],
  }
  probs = [np.asarray(sample.score_probs, np.float32) for sample in samples]
  return {
    **{name: np.asarray(column, np.int32) for name, column in ints.items()},
    'tokens': tokens,
    'score_probs': np.stack(probs) if probs else np.zeros((0, 0), np.float32),
  }


def _finish_code(reason: str) -> int:
  """The number that stands for a finish reason."""
  if reason not in types.FINISH_REASONS:
    raise ValueError(
      f'finish reason {reason!r}: not one of {types.FINISH_REASONS}'
    )
  return types.FINISH_REASONS.index(reason)


def _samples(
  arrays: Mapping[str, np.ndarray], example_ids: Sequence[str]
) -> list[tuple[int, types.CotSample]]:
  """(example_index, sample) for each row of a chunk."""
  rows = []
  for i, example_id in enumerate(example_ids):
    sample = types.CotSample(
      example_id=example_id,
      cot_index=int(arrays['cot_index'][i]),
      tokens=arrays['tokens'][i, : arrays['length'][i]],
      num_sampled_tokens=int(arrays['num_sampled_tokens'][i]),
      finish_reason=types.FINISH_REASONS[int(arrays['finish_reason'][i])],
      score_probs=arrays['score_probs'][i],
      greedy_index=int(arrays['greedy_index'][i]),
      num_retries=int(arrays['num_retries'][i]),
    )
    rows.append((int(arrays['example_index'][i]), sample))
  return rows


def _check_origin(
  folder: epath.Path,
  metadata: Mapping[str, Any],
  provenance: Mapping[str, Any],
) -> None:
  """Refuses what is no self-CoT chunk, or one of another provenance."""
  kind = (metadata.get('kind'), metadata.get('schema'))
  if kind != (_KIND, _SCHEMA):
    raise types.InputError(
      f'{folder}: not a self-CoT dataset of schema {_SCHEMA}: {kind}'
    )
  lines = manifest.differences(metadata['provenance'], provenance)
  if lines:
    raise types.InputError('\n'.join(manifest.foreign(folder, lines)))


def _check_complete(
  folder: epath.Path, steps: list[int], num_chunks: int
) -> None:
  """Refuses a dataset with chunks missing or too many."""
  missing = sorted(set(range(num_chunks)) - set(steps))
  extra = sorted(set(steps) - set(range(num_chunks)))
  if missing:
    raise types.InputError(
      f'{folder}: incomplete: {len(missing)} of {num_chunks} chunks are'
      f' missing, the first {missing[0]}; run --task=self_cot again'
    )
  if extra:
    raise types.InputError(
      f'{folder}: chunk {extra[0]} is one too many: there are {num_chunks}'
    )


def _check_unique(
  folder: epath.Path, samples: Sequence[types.CotSample]
) -> None:
  """Refuses a CoT that two chunks hold."""
  counts = collections.Counter((s.example_id, s.cot_index) for s in samples)
  for (example_id, cot_index), count in counts.items():
    if count > 1:
      raise types.InputError(
        f'{folder}: example {example_id!r}: CoT {cot_index} stands there'
        f' {count} times'
      )


def _check_summary(folder: epath.Path, digest: str) -> None:
  """Refuses chunks that were exchanged after the dataset was finished."""
  summary = read_summary(folder)
  if summary is not None and summary['digest'] != digest:
    raise types.InputError(
      f'{folder / SUMMARY}: digest {summary["digest"]} was recorded, the chunks'
      f' have {digest}'
    )


def _finite_or_none(values: np.ndarray) -> list[float | None]:
  """Numbers for JSON, which has none for NaN."""
  return [float(x) if np.isfinite(x) else None for x in values]
