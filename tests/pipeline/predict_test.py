"""Predictions of rows, in chunks that survive an interruption."""

import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from tests.pipeline import tiny_model
from tract_jax import types
from tract_jax.models import lora
from tract_jax.pipeline import (
  base_weights,
  build,
  methods,
  predict,
  prediction_files,
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


def test_interrupted_predictions_end_as_if_they_never_were(
  setup, sampler, params, examples, tmp_path
):
  whole = make_run(tmp_path / 'whole', examples, benchmark='a')
  predict.predict(sampler, lambda: params, whole)
  assert predict.is_done(whole)
  expected = prediction_files.read_chunks(whole.folder, len(examples))
  found = [json.loads(line)['example_id'] for line in expected.splitlines()]
  assert found == [e.example_id for e in examples]
  run = make_run(tmp_path / 'cut', examples, benchmark='a')
  with pytest.raises(loop.Interrupted):
    predict.predict(sample.Sampler(setup, lambda: True), lambda: params, run)
  first = whole.folder / 'chunk_00000000.jsonl'
  rows = prediction_files.read_chunk(first)
  kept = rows.replace('"seed": 3', '"seed": 4')
  (run.folder / first.name).write_text(prediction_files.with_digest(kept))
  assert not predict.is_done(run)
  predict.predict(sampler, lambda: params, run)
  assert predict.is_done(run)
  # What was finished is not predicted again.
  text = prediction_files.read_chunks(run.folder, len(examples))
  assert text == kept + expected.removeprefix(rows) != expected
  with pytest.raises(types.InputError, match='benchmark: recorded "a"'):
    predict.is_done(make_run(run.folder, examples, benchmark='b'))


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
  read = prediction_files.read_chunks
  assert read(run.folder, 5) == read(whole.folder, 5)
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
  text = prediction_files.read_chunks(run.folder, len(examples))
  rows = [json.loads(line)['example_id'] for line in text.splitlines()]
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


def test_a_run_draws_by_its_own_seed(sampler, params, examples, tmp_path):
  found = []
  for seed in (3, 4):
    run = make_run(tmp_path / str(seed), examples)
    run = dataclasses.replace(run, seed=seed)
    predict.predict(sampler, lambda: params, run)
    text = prediction_files.read_chunks(run.folder, len(examples))
    found.append([json.loads(line)['cots'] for line in text.splitlines()])
  expected = predict.predict_examples(
    sampler, params, METHOD, examples, num_cots=2, seed=4
  )
  assert found[0] != found[1]
  assert found[1] == [row.cots for row in expected]


@pytest.mark.parametrize(
  ('predictor', 'reason'),
  [
    ('decode', 'greedy decoding writes no score'),
    ('decode_sampled', 'the sampled token is no score'),
    ('rail_normalized', 'the score tokens have no probability'),
  ],
)
def test_a_row_without_prediction_says_why(setup, predictor, reason):
  method = dataclasses.replace(METHOD, predictor=predictor)
  nothing = types.CotSample(
    *('1', 0, np.zeros(0, np.int32), 0, 'marker'),
    score_probs=np.zeros(len(setup.grid.values), np.float32),
    greedy_index=-1,
  )
  example = types.Example('1', 'the text', None)

  def reason_of(sample):
    row = predict.prediction_of(setup, method, 0, example, [sample])
    assert row.prediction is None
    return row.invalid_reason

  assert reason_of(nothing) == reason
  lost = np.full_like(nothing.score_probs, np.nan)
  failed = dataclasses.replace(
    nothing, score_probs=lost, finish_reason='too_long'
  )
  assert reason_of(failed) == 'too_long'


def test_row_without_score_is_written_as_null(sampler, params, tmp_path):
  prompt = 'the text'
  example = types.Example('1', prompt, None, human_score=2.5, pair_id='a')
  run = make_run(tmp_path / 'run', [example])
  predict.predict(sampler, lambda: params, run)
  path = epath.Path(tmp_path / 'rows.jsonl')
  path.write_text(prediction_files.read_chunks(run.folder, 1))
  assert '"score": null' in path.read_text()
  (row,) = prediction_files.read_predictions(path)
  assert row.score is None
  assert (row.human_score, row.pair_id) == (2.5, 'a')
  path.write_text(path.read_text() + '{"score": 1}\n')
  with pytest.raises(types.InputError, match='rows.jsonl: line 2'):
    prediction_files.read_predictions(path)
