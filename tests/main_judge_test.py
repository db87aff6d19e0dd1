"""The command line for models that are used as they are: nothing is trained."""

import dataclasses
import json
import shutil

import pytest

from tests import main_test
from tests.models import small_models
from tract_jax import judge as judge_lib
from tract_jax import main as main_lib
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import hosts, judge_file

DEMO, FILES = main_test.DEMO, main_test.FILES
errors = main_test.errors
in_root = main_test.in_root


@pytest.fixture(scope='module')
def judge_folder(tmp_path_factory):
  return small_models.save_judge(tmp_path_factory.mktemp('judge'))


FAST = {
  'sampling.max_new_tokens': 6,
  'sampling.slots': 4,
  'sampling.chunk_size': 2,
  'data.max_length': 96,
  'data.length_multiple': 96,
}


def judging(tmp_path, folder, rows, *more):
  """Arguments that judge `rows`, a list, with the model of a folder."""
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return (
    f'--workdir={tmp_path / "run"}',
    f'--config.model.path={folder}',
    f'--config.data.benchmarks={path}',
    *(f'--config.{key}={value}' for key, value in FAST.items()),
    *more,
  )


def read_jsonl(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_model_judges_rows_without_config_and_without_scores(
  capsys, tmp_path, judge_folder, in_process
):
  rows = [{'prompt': f'It is {word}.'} for word in ('good', 'clear', 'not')]
  command = judging(tmp_path, judge_folder, rows)
  assert main_lib.main(['--task=inspect', *command]) == 0
  assert not (tmp_path / 'run').exists()
  assert main_lib.main(['--task=predict', *command]) == 0
  written = tmp_path / 'run' / 'predictions' / 'zero_shot' / 'rows.jsonl'
  before = written.read_bytes()
  found = read_jsonl(written)
  # The same as in Python, whatever the chunks.
  expected = judge_lib.Judge.load(judge_folder, settings=FAST).score(rows)
  for row, prediction in zip(found, expected, strict=True):
    assert row['score'] is None
    assert row['cots'] == prediction.cots
    assert row['prediction'] == pytest.approx(prediction.prediction, abs=1e-5)
  capsys.readouterr()
  assert main_lib.main(['--task=predict', *command]) == 0
  assert 'nothing to do' in capsys.readouterr().out
  assert written.read_bytes() == before
  assert main_lib.main(['--task=evaluate', *command]) == 0
  report = json.loads((tmp_path / 'run/report/metrics.json').read_text())
  assert {row['pearson'] for row in report['rows']} == {None}
  assert all('no scores' in row['reason'] for row in report['rows'])


def test_judged_prompts_have_template_system_prompt_and_fields(
  capsys, tmp_path, judge_folder, in_process
):
  rows = [
    {'question': 'It is?', 'prompt': 'no', 'response': r, 'score': 3, 'gold': 1}
    for r in ('good {rubric}', 'not')
  ]
  template = tmp_path / 'template.txt'
  template.write_text('{instruction} {response}\n')
  command = judging(tmp_path, judge_folder, rows)
  more = (
    f'--config.data.template_path={template}',
    '--config.data.fields=instruction=question,score=gold',
    '--config.data.system_prompt=It is clear.',
  )
  assert main_lib.main(['--task=predict', *command, *more]) == 0
  found = read_jsonl(tmp_path / 'run' / 'predictions/zero_shot/rows.jsonl')
  assert [row['score'] for row in found] == [1.0, 1.0]
  # The same as of the rendered prompts in Python.
  rendered = [{'prompt': f'It is? {row["response"]}'} for row in rows]
  expected = judge_lib.Judge.load(
    judge_folder, settings=FAST | {'data.system_prompt': 'It is clear.'}
  ).score(rendered)
  assert [row['cots'] for row in found] == [e.cots for e in expected]
  plain = judge_lib.Judge.load(judge_folder, settings=FAST).score(rendered)
  assert [row['cots'] for row in found] != [e.cots for e in plain]
  # Another system prompt makes other predictions: those there are refused.
  lines = errors(
    capsys, '--task=predict', *command, *more[:2],
    '--config.data.system_prompt=It is not.',
  )  # fmt: skip
  assert any(
    line.endswith(
      'system_prompt: recorded "It is clear.", expected "It is not."'
    )
    for line in lines
  )


def test_joined_hosts_are_compared_at_the_start(
  monkeypatch, tmp_path, judge_folder, in_process
):
  compared = []
  monkeypatch.setattr(
    hosts, 'check_alike', lambda host, stop, find: compared.append(find())
  )
  command = judging(tmp_path, judge_folder, [{'prompt': 'It is good.'}])
  assert main_lib.main(['--task=predict', *command]) == 0
  before, after = compared
  assert before['task'] == 'predict'
  assert before['config.data.max_length'] == '96'
  # The model's files, its tokenizer, and every row.
  assert {'seed_model', 'tokenizer', 'train', 'benchmark rows'} <= after.keys()


def test_judge_file_names_method_and_settings(
  capsys, tmp_path, judge_folder, in_process
):
  folder = shutil.copytree(judge_folder, tmp_path / 'judge')
  own = config_lib.merge({'score.grid': (1.0, 2.0, 4.0)})
  judge_file.write(folder, judge_file.from_run(own, 'raft'))
  rows = [
    {'instruction': f'the answer {i}', 'gpt4_score': score}
    for i, score in enumerate([1, [2, 4], None, 4])
  ]
  # A config of a run that trains another method is no hindrance.
  command = judging(
    tmp_path, folder, rows, '--config=configs/mistral.py',
    '--config.evaluation.num_resamples=100', '--config.train.batch_size=3',
    '--config.sampling.mesh.fsdp=-1', '--config.sampling.mesh.tensor=1',
  )  # fmt: skip
  assert main_lib.main(['--task=predict', *command]) == 0
  assert 'raft, predictor rail, without CoT' in capsys.readouterr().out
  predictions = tmp_path / 'run' / 'predictions'
  assert [p.name for p in predictions.iterdir()] == ['raft']
  found = read_jsonl(predictions / 'raft' / 'rows.jsonl')
  assert [row['score'] for row in found] == [1.0, 3.0, None, 4.0]
  assert all(row['cots'] == [''] for row in found)
  assert all(len(row['distributions'][0]) == 3 for row in found)
  capsys.readouterr()
  assert main_lib.main(['--task=evaluate', *command]) == 0
  assert "1 of 4 rows have no rater's score" in capsys.readouterr().out
  report = json.loads((tmp_path / 'run/report/metrics.json').read_text())
  assert {(r['method'], r['num_examples']) for r in report['rows']} == {
    ('raft', 3)
  }
  lines = errors(
    capsys, '--task=predict', *command, '--config.score.grid=(1.0, 3.0)'
  )
  assert len(lines) == 1
  assert '(1.0, 3.0), but the judge in' in lines[0]


def test_the_report_has_a_judges_own_predictor(
  capsys, tmp_path, judge_folder, in_process
):
  folder = shutil.copytree(judge_folder, tmp_path / 'judge')
  own = judge_file.from_run(config_lib.merge({}), 'cot_raft')
  judge_file.write(folder, dataclasses.replace(own, predictor='median'))
  rows = [{'prompt': f'It is {i}.', 'score': i} for i in (1, 2, 4)]
  command = judging(
    tmp_path, folder, rows, '--config.evaluation.num_resamples=100',
    '--config.predictors=("rail",)',
    '--config.evaluation.differences=cot_raft/median - cot_raft/rail',
  )  # fmt: skip
  assert main_lib.main(['--task=predict', *command]) == 0
  assert 'cot_raft, predictor median, after' in capsys.readouterr().out
  assert main_lib.main(['--task=evaluate', *command]) == 0
  report = json.loads((tmp_path / 'run/report/metrics.json').read_text())
  assert {row['predictor'] for row in report['rows']} == {'rail', 'median'}
  capsys.readouterr()
  more = '--config.evaluation.differences=tract - cot_raft'
  lines = errors(capsys, '--task=evaluate', *command, more)
  assert lines == [
    "error: config.evaluation.differences: 'tract': 'tract' is none of cot_raft"
  ]


def test_a_released_model_is_judged_as_it_was_released(
  capsys, tmp_path, judge_folder, in_process
):
  rows = [{'prompt': f'It is {i}.', 'score': i} for i in (1, 2, 4)]
  more = '--config.methods=("released",)'
  command = judging(tmp_path, judge_folder, rows, more)
  assert main_lib.main(['--task=predict', *command]) == 0
  assert 'released, predictor decode, after a CoT' in capsys.readouterr().out
  predictions = tmp_path / 'run' / 'predictions'
  assert [p.name for p in predictions.iterdir()] == ['released']
  for row in read_jsonl(predictions / 'released' / 'rows.jsonl'):
    assert row['prediction'] == row['decoded'][0]


def test_preference_pairs_are_judged_and_told_of(
  capsys, tmp_path, judge_folder, in_process
):
  rows = [
    {'id': i, 'prompt': 'It is?', 'chosen': a, 'rejected': b, 'subset': subset}
    for i, (a, b, subset) in enumerate([
      ('good', 'not', 'donotanswer'), ('not', 'good', 'donotanswer'),
      ('clear', 'clear', 'hep-go'), ('good answer', 'clear', 'hep-go'),
    ])
  ]  # fmt: skip
  command = judging(
    *(tmp_path, judge_folder, rows),
    '--config.data.template={instruction} {response}',
    '--config.evaluation.ties=wrong',
  )
  assert main_lib.main(['--task=predict', *command]) == 0
  capsys.readouterr()
  assert main_lib.main(['--task=evaluate', *command]) == 0
  assert 'all pairs' in capsys.readouterr().out
  said = {
    row['example_id']: row['prediction']
    for row in read_jsonl(tmp_path / 'run/predictions/zero_shot/rows.jsonl')
  }
  won = [
    (3.0 if (a := said[f'{i}-chosen']) is None else a)
    > (3.0 if (b := said[f'{i}-rejected']) is None else b) + 1e-5
    for i in range(4)
  ]
  report = json.loads((tmp_path / 'run/report/metrics.json').read_text())
  found = {
    (row['kind'], row['subset']): row['accuracy']
    for row in report['pairwise']
    if row['predictor'] == 'rail'
  }
  assert found['overall', None] == sum(won) / 4
  assert found['section', 'Safety'] == sum(won[:2]) / 2
  assert found['subset', 'hep-go'] == sum(won[2:]) / 2
  text = (tmp_path / 'run' / 'report' / 'report.md').read_text()
  assert 'no scores' not in text and '| rows | hep-go | zero\\_shot |' in text


@pytest.mark.parametrize('task', ['run', 'train', 'self_cot', 'export'])
def test_what_trains_needs_a_config(capsys, tmp_path, task):
  command = judging(tmp_path, 'model', [{'prompt': 'p'}])
  (line,) = errors(capsys, f'--task={task}', *command)
  assert '--config=FILE' in line
  (line,) = errors(capsys, f'--task={task}', DEMO, *command[1:], FILES)
  assert 'config.data.train_path: is empty' in line


def test_judging_needs_a_model_and_rows(capsys, tmp_path):
  (line,) = errors(capsys, '--task=predict', '--config.model.path=model')
  assert 'config.data.benchmarks: is empty' in line
  (line,) = errors(capsys, '--task=predict', '--config.data.benchmarks=a.jsonl')
  assert 'config.model.path: is empty' in line
  command = judging(tmp_path, 'model', [{}], '--config.data.train_path=t.json')
  (line,) = errors(capsys, '--task=predict', *command)
  assert '--config=FILE' in line


def test_rows_that_cannot_be_judged_are_named(
  capsys, tmp_path, judge_folder, in_process
):
  command = judging(tmp_path, judge_folder, [{'prompt': 'p'}, {'text': 'p'}])
  (line,) = errors(capsys, '--task=predict', *command)
  assert 'rows.jsonl: line 2 (id 2): its columns are text' in line
