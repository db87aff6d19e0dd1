"""The whole benchmark on a tiny model; no time is asserted."""

import dataclasses
import json
import pathlib

import pytest

from benchmarks import job as job_lib
from benchmarks import options, sampling
from tests.models import small_models
from tract_jax import types

pytest.importorskip('torch')
pytest.importorskip('transformers')

PROMPTS = ['It', 'x' * 90, 'It is good.', 'The response is clear.']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_models.save_judge(tmp_path_factory.mktemp('judge'))


@pytest.fixture(scope='module')
def arguments(folder, tmp_path_factory):
  """Of two prompts; one before them is too short, another too long."""
  data = tmp_path_factory.mktemp('data') / 'rows.json'
  data.write_text(json.dumps([{'prompt': p} for p in PROMPTS]))
  return [
    f'--data={data}',
    f'--model={folder}',
    '--num-prompts=2',
    '--min-tokens=13',
    '--max-tokens=60',
    '--max-new-tokens=5',
    '--slots=2',
    '--ours=data.length_multiple=32',
  ]


@pytest.fixture(scope='module')
def job(arguments):
  return options.make_job(options.parse(arguments))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Of the processes: not the eight of the tests."""
  monkeypatch.delenv('XLA_FLAGS')


def test_a_job_has_the_prompts_of_these_lengths(job):
  assert job.example_ids == ['3', '4']
  assert all(13 <= len(prompt) <= 60 for prompt in job.prompts)
  assert job.lead_ids[len(job.lead_ids) - len(job.prefix_ids) :] == (
    job.prefix_ids
  )
  assert job.settings == {'sampling.slots': 2, 'data.length_multiple': 32}


def test_too_few_prompts(arguments):
  with pytest.raises(types.InputError, match='2 prompts have 13 to 60 tokens'):
    options.make_job(options.parse([*arguments, '--num-prompts=3']))


def test_a_model_that_is_not_there(arguments, capsys):
  assert sampling.main([*arguments, '--model=no-such-model']) == 2
  assert 'no-such-model' in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark(arguments, tmp_path, capfd):
  path = tmp_path / 'results.json'
  code = sampling.main(
    [
      *arguments,
      f'--results={path}',
      f'--keep={tmp_path / "files"}',
      '--runs=1',
      '--sweep=1,4',
      '--decode-rows=2',
      '--decode-steps=12',
      '--greedy-prompts=2',
    ]
  )
  text = capfd.readouterr().out
  assert code == 0, text
  rows = {row['name']: row for row in json.loads(path.read_text())}
  compared = {
    f'{figure}_{cots}'
    for figure in ('rows_per_sec', 'tokens_per_sec', 'peak_memory_bytes')
    for cots in ('1_cot', '4_cots')
  } | {'decode_tokens_per_sec_2_rows'}
  for name in compared:
    row = rows.pop(name)
    assert row['ours'] > 0
    assert row['theirs'] > 0
    assert row['ratio_median'] == pytest.approx(row['ours'] / row['theirs'])
    assert set(row['versions']) == {'jax', 'torch', 'transformers'}
    assert name in text
  greedy = 'check_greedy_texts'
  found = {name: (row['ours'], row['runs']) for name, row in rows.items()}
  one, four = (
    found.pop('check_max_difference_of_distributions'),
    found.pop('check_max_difference_of_distributions_4_cots'),
  )
  assert 0 < one[0] < 1e-5
  assert 0 < four[0] < 1e-5
  assert (one[1], four[1]) == (2, 8)
  assert sum(number for number, _ in found.values()) == 2
  assert found[f'{greedy}_differing'] == (0, 2)
  _check_work(tmp_path / 'files')
  _check_theirs(tmp_path / 'files')


def _check_work(folder: pathlib.Path) -> None:
  """Both sides wrote as many CoTs for the same prompts, within the limit."""
  for asked in folder.glob('*_sample.job.json'):
    job = json.loads(asked.read_text())
    measured = job_lib.read_measurement(job_lib.answer_path(asked))
    owners = sorted(cot.prompt for cot in measured.cots)
    assert owners == [i for i in (0, 1) for _ in range(job['num_cots'])]
    written = [cot.num_sampled_tokens for cot in measured.cots]
    assert 0 < max(written) <= 5
    assert measured.num_tokens == sum(written)
    for cot in measured.cots:
      assert cot.tokens[-len(job['prefix_ids']) :] == job['prefix_ids']
      assert 0 < sum(p for p in cot.score_probs if p is not None) <= 1


def _check_theirs(folder: pathlib.Path) -> None:
  """Their padded batches give what a pass over each row alone gives."""
  asked = max(folder.glob('*_sampling_torch_sample.job.json'))
  job = job_lib.Job(**json.loads(asked.read_text()))
  assert (job.num_cots, len(job.prompts)) == (4, 2)
  ours = str(job_lib.answer_path(asked))
  job = dataclasses.replace(job, kind='check', ours=ours, score_rows=8)
  checked = job_lib.start('checks_torch', job, folder)
  assert checked.details['num_rows'] == 8
  assert 0 <= checked.details['max_difference'] < 1e-5


@pytest.mark.slow
def test_a_wrong_sample_fails_the_checks(job, tmp_path):
  checked = dataclasses.replace(job, kind='greedy', temperature=0.0, top_p=1.0)
  job_lib.start('sampling_jax', checked, tmp_path)
  path = pathlib.Path(job_lib.last_answer(tmp_path))
  right = job_lib.read_measurement(path)
  first, second = right.cots
  probs = [p + 1e-3 for p in first.score_probs if p is not None]
  tokens = [(first.tokens[0] + 1) % 50 + 3, *first.tokens[1:]]
  wrong = dataclasses.replace(first, tokens=tokens, score_probs=probs)
  path.write_text(
    json.dumps(
      dataclasses.asdict(dataclasses.replace(right, cots=[wrong, second]))
    )
  )
  checked = dataclasses.replace(checked, ours=str(path))
  kinds = {
    kind: job_lib.start(
      'checks_torch', dataclasses.replace(checked, kind=kind), tmp_path
    )
    for kind in ('check', 'greedy')
  }
  assert kinds['check'].details['max_difference'] > 5e-4
  assert kinds['greedy'].details['num_differing'] == 1
  assert kinds['greedy'].lines[0].startswith('3: token 0 differs')
