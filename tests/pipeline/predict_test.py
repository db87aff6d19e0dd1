"""Predictions of rows, in chunks that survive an interruption."""

import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from tests.pipeline import tiny_model
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.models import lora
from tract_jax.pipeline import (
  base_weights,
  build,
  methods,
  predict,
  read_data,
  sample,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.training import loop

METHOD = methods.METHODS['zero_shot']


@pytest.fixture(scope='module')
def setup():
  overrides = {
    'data': {
      'source': 'synthetic',
      'synthetic_train': 4,
      'synthetic_test': 5,
      'length_multiple': 64,
      'max_length': 64,
    },
    'model': {
      **tiny_model.SETTINGS,
      'initializer_range': 0.3,
    },
    'sampling': {'slots': 4, 'chunk_size': 2, 'max_new_tokens': 6},
  }
  return build.build(config_lib.merge(overrides))


@pytest.fixture(scope='module')
def examples(setup):
  return read_data.read_data(setup).benchmarks['synthetic']


@pytest.fixture(scope='module')
def params(setup):
  return lora.merge(*base_weights.init_params(setup.model, seed=0))


@pytest.fixture(scope='module')
def sampler(setup):
  return sample.Sampler(setup, lambda: False)


def make_run(folder, examples, **fields):
  return predict.PredictionRun(
    label='rows',
    folder=epath.Path(folder),
    method=METHOD,
    seed=3,
    num_cots=2,
    examples=examples,
    fields=fields,
  )


def test_rows_are_in_order_with_all_their_cots(sampler, params, examples):
  rows = predict.predict_examples(
    sampler, params, METHOD, examples, num_cots=2, seed=3
  )
  assert [r.example_id for r in rows] == [e.example_id for e in examples]
  assert [r.score for r in rows] == [e.score for e in examples]
  (alone,) = predict.predict_examples(
    sampler, params, METHOD, examples[3:4], num_cots=2, seed=3
  )
  assert alone.cots == rows[3].cots
  assert alone.cot_tokens == rows[3].cot_tokens
  np.testing.assert_allclose(
    alone.distributions, rows[3].distributions, atol=1e-6
  )


def test_rows_tell_the_tokens_that_the_model_wrote(sampler, params, examples):
  rows = predict.predict_examples(
    sampler, params, METHOD, examples, num_cots=2, seed=3
  )
  samples = sampler.cots(params, examples, 2, seed=3, purpose=predict.PURPOSE)
  written = [s.num_sampled_tokens for s in samples]
  assert [n for row in rows for n in row.cot_tokens] == written
  # Six are the most; the fixed words are then written for it.
  assert max(written) == 6 < max(len(s.tokens) for s in samples)
  bare = methods.METHODS['raft']
  (row, *_) = predict.predict_examples(
    sampler, params, bare, examples, num_cots=1, seed=3
  )
  assert (row.cots, row.cot_tokens) == ([''], [0])


@pytest.mark.parametrize('value', [[-1], [1.0], [True], ['1'], 3, [10**400]])
def test_tokens_that_are_no_counts_are_refused(tmp_path, value):
  row = dataclasses.asdict(
    types.Prediction('1', 0, None, None, [], [], [], [], 'none')
  )
  path = epath.Path(tmp_path / 'rows.jsonl')
  path.write_text(json.dumps(row))
  assert predict.read_predictions(path)[0].cot_tokens == []
  path.write_text(json.dumps(row | {'cot_tokens': value}))
  with pytest.raises(types.InputError, match='line 1: cot_tokens: '):
    predict.read_predictions(path)


def test_interrupted_predictions_end_as_if_they_never_were(
  setup, sampler, params, examples, tmp_path
):
  whole = make_run(tmp_path / 'whole', examples, benchmark='a')
  predict.predict(sampler, lambda: params, whole)
  assert predict.is_done(whole)
  expected = predict.read_chunks(whole.folder, len(examples))
  found = [json.loads(line)['example_id'] for line in expected.splitlines()]
  assert found == [e.example_id for e in examples]
  run = make_run(tmp_path / 'cut', examples, benchmark='a')
  with pytest.raises(loop.Interrupted):
    predict.predict(sample.Sampler(setup, lambda: True), lambda: params, run)
  first = whole.folder / 'chunk_00000000.jsonl'
  rows = predict.read_chunk(first)
  kept = rows.replace('"seed": 3', '"seed": 4')
  (run.folder / first.name).write_text(predict.with_digest(kept))
  assert not predict.is_done(run)
  predict.predict(sampler, lambda: params, run)
  assert predict.is_done(run)
  # What was finished is not predicted again.
  text = predict.read_chunks(run.folder, len(examples))
  assert text == kept + expected.removeprefix(rows) != expected
  with pytest.raises(types.InputError, match='benchmark: recorded "a"'):
    predict.is_done(make_run(run.folder, examples, benchmark='b'))


def write_chunks(folder, *chunks):
  folder.mkdir(parents=True)
  start = 0
  for rows in chunks:
    path = folder / f'chunk_{start:08d}.jsonl'
    path.write_text(predict.with_digest(rows), encoding='utf-8')
    start += rows.count('\n')
  return epath.Path(folder)


def test_a_lost_or_changed_chunk_is_named(tmp_path):
  folder = write_chunks(tmp_path / 'a', 'ä\u2028\n2\n', '3\n4\n', '5\n')
  assert predict.read_chunks(folder, 5) == 'ä\u2028\n2\n3\n4\n5\n'
  # sha256 of the characters "5" and newline, from coreutils.
  assert json.loads((folder / 'chunk_00000004.jsonl').read_text()[2:]) == {
    'sha256': 'f0b5c2c2211c8d67ed15e75e656c7862d086e9245420892a7de62cd9ec582a06'
  }
  with pytest.raises(types.InputError, match='00000005.jsonl: is lost: 5 of 6'):
    predict.read_chunks(folder, 6)
  middle = folder / 'chunk_00000002.jsonl'
  content = middle.read_bytes()
  middle.unlink()
  for num_rows in (5, None):
    with pytest.raises(types.InputError, match=r'00000002\.jsonl: is lost'):
      predict.read_chunks(folder, num_rows)
  for changed in (
    content.replace(b'3', b'7'),
    content.replace(b'3', b'\xff'),
    content.replace(b'\n', b'\r', 1),
    content[:-1],
    content[:-20],
    b'3\n4\n',
    b'',
  ):
    middle.write_bytes(changed)
    with pytest.raises(types.InputError, match=r'00000002\.jsonl: damaged'):
      predict.read_chunks(folder, 5)


def test_the_joined_file_is_that_of_the_chunks(tmp_path, capsys):
  folders = [
    write_chunks(tmp_path / name, f'{name}1\n', f'{name}2\n') for name in 'ab'
  ]
  path = epath.Path(tmp_path / 'rows.jsonl')
  predict.join_chunks(folders[:1], 2, path)
  predict.join_chunks(folders, 2, path)
  assert path.read_text() == 'a1\na2\nb1\nb2\n'
  assert not capsys.readouterr().out
  path.write_text('a1\na2\nb1\nb3\n')
  # Nothing is known before the chunks are finished.
  predict.check_joined(folders, path)
  for folder in folders:
    manifest.write_manifest(folder, 'predictions', {})
  with pytest.raises(
    types.InputError, match=r'rows\.jsonl: not what the chunk'
  ):
    predict.check_joined(folders, path)
  predict.check_joined(folders[:1], path)
  predict.join_chunks(folders, 2, path)
  assert 'rows.jsonl: was not what its chunks hold' in capsys.readouterr().out
  assert path.read_text() == 'a1\na2\nb1\nb2\n'
  predict.check_joined(folders, path)


def test_processes_predict_their_own_chunks_in_any_order(
  sampler, params, examples, tmp_path
):
  whole = make_run(tmp_path / 'whole', examples)
  predict.predict(sampler, lambda: params, whole)
  run = make_run(tmp_path / 'shared', examples)
  numbers = []
  for index in (1, 0):
    predict.predict(
      sampler, lambda: params, run, process_index=index, process_count=2
    )
    names = sorted(path.name for path in run.folder.glob('chunk_*'))
    numbers.append([int(name[6:14]) for name in names])
    # Whoever comes last marks them as done.
    assert predict.is_done(run) == (index == 0)
  assert numbers == [[2], [0, 2, 4]]
  assert predict.read_chunks(run.folder, 5) == predict.read_chunks(
    whole.folder, 5
  )
  # Without a chunk to do, no weights are read.
  predict.predict(sampler, lambda: 1 / 0, run, process_index=1, process_count=2)


def test_stopped_amid_the_stream_keeps_whole_chunks_alone(
  setup, params, examples, tmp_path
):
  run = make_run(tmp_path / 'cut', examples)
  calls = iter(range(100))
  # Four of the ten CoTs at a time: two whole chunks after the second call.
  stopped = sample.Sampler(setup, lambda: next(calls) >= 2)
  with pytest.raises(loop.Interrupted):
    predict.predict(stopped, lambda: params, run)
  written = {path.name for path in run.folder.glob('chunk_*')}
  assert written < {f'chunk_{start:08d}.jsonl' for start in (0, 2, 4)}
  assert written
  asked = []

  class Recorder(sample.Sampler):
    def chunks(self, params, chunks, *more, **options):
      # It goes on in as many slots as it began with.
      assert options['num_examples'] == len(examples)
      asked.extend(e.example_id for chunk in chunks for e in chunk)
      return super().chunks(params, chunks, *more, **options)

  predict.predict(Recorder(setup, lambda: False), lambda: params, run)
  rows = [
    json.loads(line)['example_id']
    for line in predict.read_chunks(run.folder, len(examples)).splitlines()
  ]
  assert rows == [e.example_id for e in examples]
  kept = [
    e.example_id
    for i, e in enumerate(examples)
    if f'chunk_{i // 2 * 2:08d}.jsonl' in written
  ]
  assert asked == [name for name in rows if name not in kept]
  figures = json.loads((run.folder / 'metrics.jsonl').read_text())
  assert (figures['step'], figures['num_done']) == (3, 2 * len(asked))
  assert figures['num_rows'] == len(asked)


def test_speed_of_rows_without_cots_is_in_the_metrics(
  sampler, params, examples, tmp_path
):
  run = dataclasses.replace(
    make_run(tmp_path / 'run', examples),
    method=methods.METHODS['raft'],
    num_cots=1,
  )
  predict.predict(sampler, lambda: params, run)
  figures = json.loads((run.folder / 'metrics.jsonl').read_text())
  assert figures['num_rows'] == len(examples)
  assert 0 < figures['secs_per_row'] < figures['secs'] < 600
  assert 'decode_tokens' not in figures


def test_row_without_score_is_written_as_null(sampler, params, tmp_path):
  prompt = 'the text'
  example = types.Example('1', prompt, None, human_score=2.5, pair_id='a')
  run = make_run(tmp_path / 'run', [example])
  predict.predict(sampler, lambda: params, run)
  path = epath.Path(tmp_path / 'rows.jsonl')
  path.write_text(predict.read_chunks(run.folder, 1))
  assert '"score": null' in path.read_text()
  (row,) = predict.read_predictions(path)
  assert row.score is None
  assert (row.human_score, row.pair_id) == (2.5, 'a')
  path.write_text(path.read_text() + '{"score": 1}\n')
  with pytest.raises(types.InputError, match='rows.jsonl: line 2'):
    predict.read_predictions(path)
