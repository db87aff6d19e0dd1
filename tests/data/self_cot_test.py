import dataclasses
import json
import shutil

import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import manifest, orbax_store, self_cot

_PROVENANCE = {
  'checkpoint': 'abc',
  'sampling': {'temperature': 1.0, 'top_p': 0.9},
  'grid': (1, 2, 3),
}


def _sample(index: int, cot_index: int = 0, **changes) -> types.CotSample:
  sample = types.CotSample(
    example_id=f'row-{index}',
    cot_index=cot_index,
    tokens=np.arange(10 * index, 10 * index + 2 + index % 3, dtype=np.int32),
    num_sampled_tokens=2,
    finish_reason='marker',
    score_probs=np.array([0.1, 0.2, index / 100], np.float32),
    greedy_index=7,
    num_retries=index,
  )
  return dataclasses.replace(sample, **changes)


# Three chunks of two examples; the last example has two CoTs, in disorder.
_CHUNKS = [
  [_sample(0), _sample(1, finish_reason='length')],
  [
    _sample(2),
    _sample(
      3,
      tokens=np.zeros(0, np.int32),
      num_sampled_tokens=0,
      finish_reason='too_long',
      score_probs=np.full(3, np.nan, np.float32),
      greedy_index=-1,
    ),
  ],
  [_sample(5, 1), _sample(4), _sample(5, 0)],
]
_INDICES = [[0, 1], [2, 3], [5, 4, 5]]


def _write(folder, chunks=(0, 1, 2), provenance=_PROVENANCE):
  with self_cot.SelfCotWriter(folder, provenance, 3) as writer:
    for chunk in chunks:
      writer.write(chunk, _CHUNKS[chunk], _INDICES[chunk])


def _decode(tokens):
  return 'ä ' + ' '.join(str(t) for t in tokens)


def _assert_equal(got: types.CotSample, wanted: types.CotSample):
  for field in dataclasses.fields(types.CotSample):
    a, b = getattr(got, field.name), getattr(wanted, field.name)
    if isinstance(b, np.ndarray):
      assert (a.dtype, a.shape) == (b.dtype, b.shape)
      assert a.tobytes() == b.tobytes()
    else:
      assert (a, type(a)) == (b, type(b))


def test_samples_come_back_bit_for_bit_in_the_order_of_the_data(tmp_path):
  _write(tmp_path, chunks=(2, 0, 1))
  samples, _ = self_cot.read_self_cots(tmp_path, _PROVENANCE)
  wanted = [*_CHUNKS[0], *_CHUNKS[1], _sample(4), _sample(5, 0), _sample(5, 1)]
  assert len(samples) == len(wanted)
  for got, want in zip(samples, wanted, strict=True):
    _assert_equal(got, want)


def test_chunks_may_be_written_by_many_runs_and_none_twice(tmp_path):
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    assert writer.missing_chunks() == [0, 1, 2]
    writer.write(1, _CHUNKS[1], _INDICES[1])
    assert writer.missing_chunks() == [0, 2]
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    assert writer.missing_chunks() == [0, 2]
    with pytest.raises(types.InputError, match='step 1 exists'):
      writer.write(1, _CHUNKS[0], _INDICES[0])
    writer.write(0, _CHUNKS[0], _INDICES[0])
    writer.write(2, _CHUNKS[2], _INDICES[2])
    assert writer.missing_chunks() == []
  assert len(self_cot.read_self_cots(tmp_path, _PROVENANCE)[0]) == 7


def test_a_chunk_is_an_orbax_step_with_the_arrays_of_the_format(tmp_path):
  _write(tmp_path, chunks=[1])
  with orbax_store.Store(tmp_path) as store:
    arrays, metadata = store.load(1)
  assert arrays.keys() == {
    'example_index', 'cot_index', 'tokens', 'length', 'num_sampled_tokens',
    'finish_reason', 'score_probs', 'greedy_index', 'num_retries',
  }  # fmt: skip
  np.testing.assert_array_equal(arrays['length'], [4, 0])
  np.testing.assert_array_equal(
    arrays['tokens'], [[20, 21, 22, 23], [0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(arrays['finish_reason'], [0, 3])
  assert metadata['example_ids'] == ['row-2', 'row-3']
  assert metadata['digest'] == manifest.digest_arrays(arrays)


def test_a_chunk_may_be_empty(tmp_path):
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 2) as writer:
    writer.write(0, _CHUNKS[0], _INDICES[0])
    writer.write(1, [], [])
  assert len(self_cot.read_self_cots(tmp_path, _PROVENANCE)[0]) == 2


def test_finish_writes_a_copy_for_people_and_the_digest(tmp_path):
  _write(tmp_path)
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    digest = writer.finish(_decode)
  assert digest == self_cot.read_self_cots(tmp_path, _PROVENANCE)[1]
  lines = (tmp_path / 'self_cots.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 7
  assert rows[1] == {
    'example_id': 'row-1',
    'cot_index': 0,
    'text': 'ä 10 11 12',
    'finish_reason': 'length',
    'num_retries': 1,
    'score_probs': [float(np.float32(x)) for x in (0.1, 0.2, 0.01)],
  }
  assert rows[3]['score_probs'] == [None, None, None]
  summary = json.loads((tmp_path / 'dataset.json').read_text())
  assert summary['digest'] == digest
  assert (summary['num_samples'], summary['num_examples']) == (7, 6)
  assert summary['finish_reasons'] == {
    'marker': 5, 'length': 1, 'end_token': 0, 'too_long': 1, 'non_finite': 0
  }  # fmt: skip
  # Of CoT 3 alone the prompt was too long.
  assert summary['num_retries'] == sum([0, 1, 2, 3, 5, 4, 5])
  assert (summary['num_unusable'], summary['without_usable']) == (1, ['row-3'])


def test_a_row_has_no_usable_cot_only_where_all_are_unusable():
  given_up = {'score_probs': np.full(3, np.nan, np.float32)}
  found = self_cot.counts(
    [_sample(0), _sample(0, 1, **given_up), _sample(1, **given_up)]
  )
  assert found['num_samples'] == 3 and found['num_examples'] == 2
  assert found['num_unusable'] == 2
  assert found['without_usable'] == ['row-1']


def test_what_else_belongs_to_the_dataset_is_written_before_it_is_finished(
  tmp_path,
):
  _write(tmp_path)

  def fail(samples):
    assert [s.example_id for s in samples[:2]] == ['row-0', 'row-1']
    raise OSError('disk full')

  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    with pytest.raises(OSError, match='disk full'):
      writer.finish(_decode, fail)
  assert self_cot.read_summary(tmp_path) is None
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    writer.finish(_decode)
  assert self_cot.read_summary(tmp_path)['num_samples'] == 7
  (tmp_path / 'dataset.json').write_text('{}')
  with pytest.raises(types.InputError, match=r'dataset\.json: not as it was'):
    self_cot.read_summary(tmp_path)


def _write_long(folder):
  """One chunk with a long CoT; the file, and where in it the tokens stand."""
  tokens = np.arange(1000, 1400, dtype=np.int32)
  with self_cot.SelfCotWriter(folder, _PROVENANCE, 1) as writer:
    writer.write(0, [_sample(0, tokens=tokens, num_sampled_tokens=400)], [0])
  needle = tokens[200:210].tobytes()
  (path,) = [
    p
    for p in (folder / '0').rglob('*')
    if p.is_file() and needle in p.read_bytes()
  ]
  return path, path.read_bytes().index(needle)


def test_a_truncated_chunk_is_refused(tmp_path):
  path, place = _write_long(tmp_path)
  path.write_bytes(path.read_bytes()[:place])
  with pytest.raises(types.InputError, match='step 0'):
    self_cot.read_self_cots(tmp_path, _PROVENANCE)


def test_the_digest_depends_on_samples_and_provenance_alone(tmp_path):
  _write(tmp_path / 'a')
  _write(tmp_path / 'b', chunks=(1, 2, 0))
  _write(tmp_path / 'c', provenance={**_PROVENANCE, 'checkpoint': 'x'})
  with self_cot.SelfCotWriter(tmp_path / 'd', _PROVENANCE, 1) as writer:
    writer.write(0, [_sample(0, greedy_index=8)], [0])
  with self_cot.SelfCotWriter(tmp_path / 'e', _PROVENANCE, 1) as writer:
    writer.write(0, [_sample(0, greedy_index=9)], [0])
  a, b = (
    self_cot.read_self_cots(tmp_path / n, _PROVENANCE)[1] for n in ('a', 'b')
  )
  c = self_cot.read_self_cots(
    tmp_path / 'c', {**_PROVENANCE, 'checkpoint': 'x'}
  )[1]
  d, e = (
    self_cot.read_self_cots(tmp_path / n, _PROVENANCE)[1] for n in ('d', 'e')
  )
  assert a == b
  assert len({a, c, d, e}) == 4


def test_an_incomplete_dataset_is_refused_and_the_gap_named(tmp_path):
  with pytest.raises(types.InputError, match='there is no self-CoT dataset'):
    self_cot.read_self_cots(tmp_path, _PROVENANCE)
  _write(tmp_path, chunks=(0, 2))
  with pytest.raises(types.InputError, match='1 of 3 chunks are missing') as e:
    self_cot.read_self_cots(tmp_path, _PROVENANCE)
  assert 'the first 1' in str(e.value)
  with (
    self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer,
    pytest.raises(types.InputError, match='missing'),
  ):
    writer.finish(_decode)
  assert not (tmp_path / 'dataset.json').exists()


def test_a_temporary_chunk_does_not_count(tmp_path):
  _write(tmp_path, chunks=(0, 1))
  (tmp_path / '2.orbax-checkpoint-tmp').mkdir()
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    assert writer.missing_chunks() == [2]
    writer.write(2, _CHUNKS[2], _INDICES[2])
  assert len(self_cot.read_self_cots(tmp_path, _PROVENANCE)[0]) == 7


def test_foreign_provenance_is_refused_field_by_field(tmp_path):
  _write(tmp_path, chunks=(0,))
  other = {
    'checkpoint': 'abd',
    'sampling': {'temperature': 0.7, 'top_p': 0.9},
    'grid': [1, 2, 3],
    'seed': 1,
  }
  place = f'{tmp_path}: '
  wanted = [
    f'{place}checkpoint: recorded "abc", expected "abd"',
    f'{place}sampling.temperature: recorded 1.0, expected 0.7',
    f'{place}seed: recorded nothing, expected 1',
  ]
  with pytest.raises(types.InputError) as error:
    self_cot.SelfCotWriter(tmp_path, other, 3)
  assert str(error.value).splitlines()[:-1] == wanted
  with pytest.raises(types.InputError) as error:
    self_cot.read_self_cots(tmp_path, other)
  assert str(error.value).splitlines()[:-1] == wanted
  with pytest.raises(types.InputError, match='into 3 chunks, this run'):
    self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 4)


def test_one_chunk_of_another_dataset_is_refused(tmp_path):
  _write(tmp_path / 'a')
  _write(tmp_path / 'b', provenance={**_PROVENANCE, 'checkpoint': 'other'})
  shutil.rmtree(tmp_path / 'a' / '1')
  shutil.copytree(tmp_path / 'b' / '1', tmp_path / 'a' / '1')
  with pytest.raises(types.InputError, match='checkpoint: recorded "other"'):
    self_cot.read_self_cots(tmp_path / 'a', _PROVENANCE)


def test_chunks_that_changed_places_are_refused(tmp_path):
  _write(tmp_path)
  (tmp_path / '0').rename(tmp_path / 'x')
  (tmp_path / '1').rename(tmp_path / '0')
  (tmp_path / 'x').rename(tmp_path / '1')
  with pytest.raises(types.InputError, match='chunk 0 is damaged'):
    self_cot.read_self_cots(tmp_path, _PROVENANCE)


def test_a_flipped_bit_is_refused(tmp_path):
  path, place = _write_long(tmp_path)
  data = bytearray(path.read_bytes())
  data[place] ^= 4
  path.write_bytes(data)
  with pytest.raises(types.InputError, match='step 0: leaf tokens is damaged'):
    self_cot.read_self_cots(tmp_path, _PROVENANCE)


def test_a_dataset_exchanged_after_it_was_finished_is_refused(tmp_path):
  _write(tmp_path)
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    writer.finish(_decode)
  shutil.rmtree(tmp_path / '0')
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 3) as writer:
    writer.write(0, [_sample(0, greedy_index=9), _CHUNKS[0][1]], [0, 1])
  with pytest.raises(types.InputError, match=r'dataset\.json: digest'):
    self_cot.read_self_cots(tmp_path, _PROVENANCE)


def test_a_cot_that_stands_there_twice_is_refused(tmp_path):
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 2) as writer:
    writer.write(0, [_sample(0)], [0])
    writer.write(1, [_sample(0)], [0])
  with pytest.raises(types.InputError, match="'row-0': CoT 0 stands there 2"):
    self_cot.read_self_cots(tmp_path, _PROVENANCE)


def test_what_a_writer_is_given_must_fit(tmp_path):
  with self_cot.SelfCotWriter(tmp_path, _PROVENANCE, 1) as writer:
    with pytest.raises(ValueError, match='chunk 1'):
      writer.write(1, _CHUNKS[0], _INDICES[0])
    with pytest.raises(ValueError, match='2 samples, but 1'):
      writer.write(0, _CHUNKS[0], [0])
    with pytest.raises(ValueError, match='bored'):
      writer.write(0, [_sample(0, finish_reason='bored')], [0])
    assert writer.missing_chunks() == [0]
