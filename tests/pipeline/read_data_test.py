"""Which rows a run gets, and how they become tokens."""

import json

import numpy as np
import pytest

from tract_jax import types
from tract_jax.data import cache, splits
from tract_jax.pipeline import build, prepared_folder, read_data
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import methods as methods_lib


@pytest.fixture(scope='module')
def setup():
  overrides = {
    'data': {'source': 'synthetic', 'synthetic_train': 40, 'synthetic_test': 8},
    'mesh': {'data': -1, 'fsdp': 1},
    'model': {'lora_rank': 0},
  }
  return build.build(config_lib.merge(overrides))


def with_data(setup, **data):
  config = setup.config.copy_and_resolve_references()
  with config.unlocked():
    config.data.update(data)
  return build.Setup(**{**vars(setup), 'config': config})


def write_rows(path, num_rows):
  rows = [
    {
      'instruction': f'Judge text number {i}.',
      'gpt4_score': [2, 5],
      'gpt4_feedback': ['First words.', 'Second words.'],
      'idx': i,
      'response_source': 'model',
    }
    for i in range(num_rows)
  ]
  path.write_text(json.dumps(rows))
  return str(path)


def test_rows_of_a_prepared_data_set(setup, tmp_path, monkeypatch):
  monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
  folder = tmp_path / 'sentiment'
  folder.mkdir()
  write_rows(folder / 'train.jsonl', 20)
  write_rows(folder / 'test.jsonl', 3)
  setup = with_data(
    setup,
    source='files',
    train_path='sentiment/train.jsonl',
    benchmarks='people=sentiment/test.jsonl',
  )
  with pytest.raises(types.InputError, match='to prepare it run: python -m'):
    read_data.read_data(setup)
  prepared_folder.write_manifest(folder, {})
  data = read_data.read_data(setup)
  assert len(data.train) + len(data.validation) == 20
  assert len(data.benchmarks['people']) == 3


def test_validation_rows_are_no_training_rows(setup):
  data = read_data.read_data(setup)
  train = {e.example_id for e in data.train}
  validation = {e.example_id for e in data.validation}
  assert len(train) + len(validation) == 40
  assert not train & validation
  assert len(data.benchmarks['synthetic']) == 8


@pytest.mark.parametrize(
  ('kind', 'score', 'probs'),
  [
    ('score', 2.0, [0, 1, 0, 0, 0]),
    ('mean', 3.5, [0, 0, 0.5, 0.5, 0]),
    ('ratings', 3.5, [0, 0.5, 0, 0, 0.5]),
  ],
)
def test_rows_are_trained_towards_what_the_config_names(
  setup, tmp_path, kind, score, probs
):
  path = write_rows(tmp_path / 'rows.json', 20)
  setup = with_data(setup, source='files', train_path=path)
  with setup.config.unlocked():
    setup.config.train.score_target = kind
  data = read_data.read_data(setup)
  for rows in (data.train, data.validation):
    assert {e.score for e in rows} == {score}
    encoded = read_data.encode_for_stage(setup, rows, 'annotator', [], 'rows')
    for one in encoded:
      assert one.score == score
      np.testing.assert_allclose(one.target_probs, probs)
  assert {e.score for e in data.benchmarks['held_out']} == {3.5}


def test_held_out_rows_are_judged_by_their_mean_and_never_trained(
  setup, tmp_path
):
  path = write_rows(tmp_path / 'rows.json', 50)
  data = read_data.read_data(
    with_data(setup, source='files', train_path=path, max_train_examples=8)
  )
  held_out = data.benchmarks['held_out']
  assert len(data.train) == 8
  assert {e.score for e in data.train} == {2.0}
  assert {e.score for e in held_out} == {3.5}
  trained = {e.example_id for e in [*data.train, *data.validation]}
  assert not trained & {e.example_id for e in held_out}


def test_splits_and_limits_are_the_configs(setup, tmp_path):
  data = {
    'source': 'files',
    'train_path': write_rows(tmp_path / 'rows.json', 50),
    'split_seed': 3,
    'held_out_fraction': 0.5,
    'validation_fraction': 0.2,
  }
  found = read_data.read_data(with_data(setup, **data, max_eval_examples=4))
  rows = [types.Example(f'{i}-model', 'p', 1.0) for i in range(50)]
  rest, held_out = splits.split(rows, 0.5, 3, 'held_out')

  def ids(examples):
    return [e.example_id for e in examples]

  assert [ids(found.train), ids(found.validation)] == [
    ids(part) for part in splits.split(rest, 0.2, 3, 'validation')
  ]
  assert ids(found.benchmarks['held_out']) == ids(held_out)[:4]
  few = read_data.read_data(with_data(setup, **data, max_train_examples=4))
  assert (len(few.train), len(few.validation)) == (4, 1)


def test_rows_that_are_trained_and_judged_are_counted(setup, tmp_path, capsys):
  path = write_rows(tmp_path / 'rows.json', 10)
  read_data.read_data(
    with_data(setup, source='files', train_path=path, benchmarks=f'same={path}')
  )
  assert 'warning: 10 of 10 rows of same are trained on' in (
    capsys.readouterr().out
  )


def test_self_cots_are_used_as_they_were_sampled(setup):
  example = read_data.read_data(setup).train[0]
  words = np.array(setup.tokenizer.encode(' Colour red.')[0])
  tokens = np.concatenate([words, setup.cot_scores.lead_ids]).astype(np.int32)

  def sample(tokens, reason, probability=0.0):
    probs = np.full(5, probability, np.float32)
    return types.CotSample(example.example_id, 0, tokens, 1, reason, probs, 0)

  encoded = read_data.encode_for_stage(
    setup,
    [example],
    'self',
    [sample(tokens, 'marker'), sample(tokens[:0], 'too_long', np.nan)],
    'rows',
  )
  assert len(encoded) == 1
  assert encoded.ids == (example.example_id,)
  targets = encoded[0].targets[encoded[0].cot_mask]
  np.testing.assert_array_equal(targets[:-1], tokens)
  assert targets[-1] == setup.tokenizer.eos_id
  score_id = setup.cot_scores.ids[setup.grid.nearest(example.score)]
  assert encoded[0].targets[encoded[0].score_mask] == score_id


def test_every_usable_cot_is_a_row_and_rows_without_are_listed(setup, capsys):
  examples = read_data.read_data(setup).train[:3]
  tokens = np.array(setup.cot_scores.lead_ids, np.int32)
  given_up = np.full(5, np.nan, np.float32)

  def samples(example, *probs):
    return [
      types.CotSample(example.example_id, c, tokens, 0, 'length', p, 0)
      for c, p in enumerate(probs)
    ]

  cots = [
    *samples(examples[0], np.zeros(5), np.zeros(5)),
    *samples(examples[1], given_up, np.zeros(5)),
    *samples(examples[2], given_up, given_up),
  ]
  encoded = read_data.encode_for_stage(setup, examples, 'self', cots, 'rows')
  assert [e.score for e in encoded] == [
    examples[0].score, examples[0].score, examples[1].score,
  ]  # fmt: skip
  shown = ' '.join(capsys.readouterr().out.split())
  assert '3 of 6 self-CoTs cannot be used; 1 rows have none (' in shown
  assert f'none ({examples[2].example_id})' in shown
  mixed = read_data.encode_for_stage(setup, examples, 'mixed', cots, 'rows')
  assert len(mixed) == 3 + 3


def test_mixed_rows_have_both_cots(setup):
  examples = read_data.read_data(setup).train[:2]
  tokens = np.array(setup.cot_scores.lead_ids, np.int32)
  samples = [
    types.CotSample(e.example_id, 0, tokens, 0, 'length', np.zeros(5), 0)
    for e in examples
  ]
  encoded = read_data.encode_for_stage(
    setup, examples, 'mixed', samples, 'rows'
  )
  assert len(encoded) == 4


@pytest.mark.parametrize('name', ['ce', 'cot_raft', 'tract', 'tract_mixed'])
def test_a_stage_says_how_often_it_is_trained_on_an_input(setup, name):
  examples = read_data.read_data(setup).train[:3]
  tokens = np.array(setup.cot_scores.lead_ids, np.int32)
  cots = [
    types.CotSample(e.example_id, c, tokens, 0, 'length', np.zeros(5), 0)
    for e in examples
    for c in range(2)
  ]
  stage = methods_lib.METHODS[name].stages[-1]
  encoded = read_data.encode_for_stage(
    setup, examples, stage.cot_source, cots, 'rows'
  )
  assert len(encoded) == len(examples) * stage.examples_per_input(2)


def test_prompts_of_training_and_scoring_are_the_same_tokens(setup):
  examples = read_data.read_data(setup).train[:3]
  encoded = read_data.encode_for_stage(setup, examples, 'annotator', [], 'rows')
  given = read_data.before_score(setup, examples, with_cot=True)
  for row, tokens in zip(encoded, given, strict=True):
    score = int(np.flatnonzero(row.score_mask)[0])
    np.testing.assert_array_equal(row.inputs[: score + 1], tokens)


def test_shuffled_scores_leave_the_rows_as_they_are(setup):
  plain = read_data.read_data(setup)
  control = read_data.read_data(with_data(setup, shuffle_scores=True))
  for kind in ('train', 'validation'):
    rows, others = getattr(plain, kind), getattr(control, kind)
    assert [e.prompt for e in rows] == [e.prompt for e in others]
  assert [e.score for e in plain.train] != [e.score for e in control.train]
  for name, rows in plain.benchmarks.items():
    others = control.benchmarks[name]
    assert [e.prompt for e in rows] == [e.prompt for e in others]
    assert [e.score for e in rows] != [e.score for e in others]
    assert sorted(e.score for e in rows) == sorted(e.score for e in others)


PAIRS = [
  {'id': i, 'prompt': 'Say.', 'chosen': f'Good {i}.', 'rejected': f'Bad {i}.'}
  for i in range(4)
]
PARTS = [
  {'question': f'Ask {i}.', 'response': 'Say.', 'score': 1 + i % 5}
  for i in range(20)
]


def write_json(path, rows):
  path.write_text(json.dumps(rows))
  return str(path)


def test_template_and_fields_make_the_prompts_of_a_run(setup, tmp_path):
  path = write_json(tmp_path / 'rows.json', PARTS)
  more = {'source': 'files', 'train_path': path}
  with pytest.raises(types.InputError, match="no row has a column 'q'"):
    read_data.read_data(with_data(setup, **more, fields='instruction=q'))
  more['fields'] = 'instruction=question'
  data = read_data.read_data(
    with_data(setup, **more, template='{instruction}|{response}')
  )
  ordered = sorted(e.prompt for e in [*data.train, *data.validation])
  assert set(ordered) < {f'Ask {i}.|Say.' for i in range(20)}


def test_preference_rows_are_a_benchmark_and_no_training_rows(setup, tmp_path):
  pairs = write_json(tmp_path / 'pairs.json', PAIRS)
  rows = write_rows(tmp_path / 'rows.json', 20)
  data = read_data.read_data(
    with_data(setup, source='files', train_path=rows, benchmarks=pairs)
  )
  found = data.benchmarks['pairs']
  assert [e.example_id for e in found[:3]] == [
    '0-chosen',
    '0-rejected',
    '1-chosen',
  ]
  assert {e.score for e in found} == {None}
  with pytest.raises(types.InputError, match='no score to train on'):
    read_data.read_data(with_data(setup, source='files', train_path=pairs))
