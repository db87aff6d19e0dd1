"""A prediction file of ours, with the scores that PyTorch reads."""

import json

import numpy as np
import pytest

from tests.models import small_models
from tract_jax import main as main_lib
from tract_jax import types
from tract_jax.pipeline import build, read_data
from tract_jax.pipeline import config as config_lib

pytest.importorskip('torch')
pytest.importorskip('peft')
rescore = pytest.importorskip('benchmarks.rescore')

SETTINGS = {
  'sampling.max_new_tokens': 2,
  'sampling.slots': 4,
  'num_cots': 2,
  'data.max_length': 96,
  'data.length_multiple': 96,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_models.save_judge(tmp_path_factory.mktemp('judge'))


@pytest.fixture
def command(tmp_path, folder):
  """Arguments of a run that judges rows; predictions are its first task."""
  rows = [
    {'id': str(score), 'prompt': f'It is {word}.', 'score': score}
    for score, word in enumerate(('good', 'clear', 'not', 'long'), start=1)
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return [
    f'--workdir={tmp_path / "run"}',
    f'--config.model.path={folder}',
    f'--config.data.benchmarks={path}',
    *(f'--config.{key}={value}' for key, value in SETTINGS.items()),
  ]


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_pytorch_reads_the_same_scores_and_stands_in_the_report(
  command, tmp_path, folder, in_process
):
  assert main_lib.main(['--task=predict', *command]) == 0
  ours = tmp_path / 'run' / 'predictions' / 'zero_shot' / 'rows.jsonl'
  theirs = tmp_path / 'theirs.jsonl'
  arguments = [
    f'--model={folder}',
    f'--benchmark={tmp_path / "rows.jsonl"}',
    f'--predictions={ours}',
    f'--out={theirs}',
    '--ours=data.max_length=96',
  ]
  assert rescore.main(arguments) == 0
  num_equal = 0
  for mine, other in zip(read(ours), read(theirs), strict=True):
    assert np.shape(other['distributions']) == (2, 5)
    mean = np.mean(other['distributions'], axis=0) @ np.arange(1, 6)
    assert other['prediction'] == pytest.approx(mean)
    # A model with random weights writes bytes that are no text; read again,
    # these are other tokens.
    for text, *probs in zip(
      mine['cots'], mine['distributions'], other['distributions'], strict=True
    ):
      if '\N{REPLACEMENT CHARACTER}' not in text:
        np.testing.assert_allclose(*probs, atol=1e-5)
        num_equal += 1
    for key in ('example_id', 'seed', 'score', 'cots', 'finish_reasons'):
      assert other[key] == mine[key]

  others = [
    f'--config.evaluation.others=pytorch/rows={theirs}',
    "--config.predictors=('rail', 'decode')",
  ]
  assert main_lib.main(['--task=evaluate', *command, *others]) == 0
  report = json.loads((tmp_path / 'run/report/metrics.json').read_text())
  assert num_equal > 2
  found = {(row['method'], row['predictor']) for row in report['rows']}
  # What PyTorch would decode was not asked.
  assert found == {
    ('zero_shot', 'rail'),
    ('zero_shot', 'decode'),
    ('pytorch', 'rail'),
  }


@pytest.mark.parametrize('with_cot', [False, True])
def test_tokens_are_those_of_a_target(folder, with_cot):
  config = config_lib.merge({'name': 'a', 'model.path': str(folder)})
  setup = build.build(config, as_judge=True)
  scores = setup.cot_scores if with_cot else setup.bare_scores
  example = types.Example('a', 'It is?', 3.0, cot='It is clear.')
  (whole,) = read_data.before_score(setup, [example], with_cot)
  prompt = setup.tokenizer.prompt_ids(example.prompt)
  text = f'{example.cot} {scores.marker}' if with_cot else ''
  found = rescore.before_score(setup.tokenizer, text, scores)
  assert [*prompt, *found] == whole.tolist()


ROW = {
  'example_id': '1',
  'seed': 0,
  'score': 1.0,
  'prediction': 1.0,
  'distributions': [[1.0, 0, 0, 0, 0]],
  'decoded': [1.0],
  'cots': ['It is. So the overall score is'],
  'finish_reasons': ['marker'],
  'invalid_reason': None,
}


@pytest.mark.parametrize(
  ('seeds', 'asked', 'found', 'problem'),
  [
    ((3,), [], [3], ''),
    ((0, 3), ['--seed=3'], [3], ''),
    ((0, 3), [], [], 'has rows of seeds 0, 3, and the model is that of one'),
    ((0, 3), ['--seed=1'], [], 'has seeds 0, 3, not 1'),
  ],
)
def test_a_model_reads_the_rows_of_one_seed(
  command, tmp_path, folder, capsys, seeds, asked, found, problem
):
  rows = tmp_path / 'predictions.jsonl'
  rows.write_text(''.join(json.dumps(ROW | {'seed': s}) + '\n' for s in seeds))
  theirs = tmp_path / 'theirs.jsonl'
  arguments = [
    f'--model={folder}',
    f'--benchmark={tmp_path / "rows.jsonl"}',
    f'--predictions={rows}',
    f'--out={theirs}',
  ]
  assert rescore.main([*arguments, *asked]) == (2 if problem else 0)
  assert problem in capsys.readouterr().err
  if not problem:
    assert [(row['seed'], row['decoded']) for row in read(theirs)] == [
      (seed, []) for seed in found
    ]


@pytest.mark.parametrize(
  ('changes', 'more', 'message'),
  [
    ({'example_id': 'elsewhere'}, [], "'elsewhere' is not a row"),
    ({'cots': ['It is.']}, [], "a CoT without 'So the overall score is'"),
    ({}, ['--adapter=nowhere'], '--adapter: nowhere: no such folder'),
  ],
)
def test_what_cannot_be_read_is_refused(
  command, tmp_path, folder, capsys, changes, more, message
):
  rows = tmp_path / 'predictions.jsonl'
  rows.write_text(json.dumps(ROW | changes) + '\n')
  arguments = [
    f'--model={folder}',
    f'--benchmark={tmp_path / "rows.jsonl"}',
    f'--predictions={rows}',
    f'--out={tmp_path / "theirs.jsonl"}',
    *more,
  ]
  assert rescore.main(arguments) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'theirs.jsonl').exists()
