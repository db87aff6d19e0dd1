"""The whole benchmark on a tiny model; no time is asserted."""

import dataclasses
import json
import pathlib

import pytest

from benchmarks import job as job_lib
from benchmarks import options, sampling
from tests.models import small_models
from tract_jax import types

torch = pytest.importorskip('torch')
# Both import torch.
checks_torch = pytest.importorskip('benchmarks.checks_torch')
sampling_torch = pytest.importorskip('benchmarks.sampling_torch')

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
  return options.sampling_job(options.parse([*arguments, '--results=a']))


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
    asked = [*arguments, '--num-prompts=3', '--results=a']
    options.sampling_job(options.parse(asked))


def test_a_model_that_is_not_there(arguments, tmp_path, capsys):
  asked = ['--model=no-such-model', f'--results={tmp_path / "a.json"}']
  assert sampling.main([*arguments, *asked]) == 2
  assert 'no-such-model' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)  # Every measurement is a process of its own.
def test_the_whole_benchmark(arguments, tmp_path, capfd):
  path = tmp_path / 'results.json'
  code = sampling.main(
    [
      *arguments,
      f'--results={path}',
      f'--keep={tmp_path / "files"}',
      '--parts=four_cots,decode,checks',
      '--runs=1',
      '--sweep=4',
      '--decode-rows=2',
      '--decode-steps=12',
      '--greedy-prompts=2',
    ]
  )
  text = capfd.readouterr().out
  assert code == 0, text
  rows = {row['name']: row for row in json.loads(path.read_text())}
  compared = {
    'rows_per_sec_4_cots',
    'tokens_per_sec_4_cots',
    'peak_memory_bytes_4_cots',
    'decode_tokens_per_sec_2_rows',
  }
  for name in compared:
    row = rows.pop(name)
    assert row['ours'] > 0
    assert row['theirs'] > 0
    ratio = row['ours'] / row['theirs']
    if 'bytes' in name:  # Less is better.
      ratio = 1 / ratio
    assert row['ratio_median'] == pytest.approx(ratio)
    of_both = {'jax', 'torch', 'transformers', 'python', 'machine'}
    assert set(row['versions']) == of_both
    assert name in text
  difference = rows.pop('check_max_difference_4_cots')
  assert 0 < difference['ours'] < 1e-5
  assert difference['runs'] == 8
  kinds = ('equal', 'ties', 'differing')
  texts = [rows.pop(f'check_greedy_texts_{kind}') for kind in kinds]
  assert sum(row['ours'] for row in texts) == 2
  assert texts[2]['ours'] == 0
  assert not rows
  _check_work(tmp_path / 'files')


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


def _greedy_cots(
  job: job_lib.SamplingJob, path: pathlib.Path
) -> job_lib.SamplingJob:
  """Their greedy CoTs, in padded batches, to be checked like ours."""
  job = dataclasses.replace(
    job,
    temperature=0.0,
    repetition_penalty=1.0,
    generate_rows=2,
    score_rows=2,
    num_threads=torch.get_num_threads(),
    ours=str(path),
  )
  _write(path, sampling_torch.sample(job))
  return job


def _write(path: pathlib.Path, measured: job_lib.Measurement) -> None:
  path.write_text(json.dumps(dataclasses.asdict(measured)))


def test_right_samples_pass_the_checks(job, tmp_path):
  checked = _greedy_cots(job, tmp_path / 'ours.json')
  details = checks_torch.check(checked).details
  assert details['num_rows'] == 2
  assert 0 <= details['max_difference'] < 1e-5
  found = checks_torch.greedy(checked)
  assert found.details == {'num_equal': 2, 'num_ties': 0, 'num_differing': 0}
  assert not found.lines


@pytest.mark.parametrize('wrong', [1e-3, float('nan')])
def test_a_wrong_second_cot_fails_the_check(job, tmp_path, wrong):
  checked = _greedy_cots(job, tmp_path / 'ours.json')
  right = job_lib.read_measurement(checked.ours)
  # Four CoTs of each prompt, of which the second is wrong.
  cots = [
    dataclasses.replace(cot, score_probs=[p + add for p in cot.score_probs])
    for cot in sorted(right.cots, key=lambda cot: cot.prompt)
    for add in (0.0, wrong, 0.0, 0.0)
  ]
  _write(tmp_path / 'ours.json', dataclasses.replace(right, cots=cots))
  # A fourth of them, the number of prompts; of some seed the wrong one, too.
  largest = [
    checks_torch.check(
      dataclasses.replace(checked, max_checks=2, seed=seed)
    ).details
    for seed in range(6)
  ]
  assert {found['num_rows'] for found in largest} == {2}
  assert max(found['max_difference'] for found in largest) > 5e-4


def test_checked_cots_are_of_every_place(job):
  cots = [job_lib.Cot(i // 4, [i % 4], 0, '', []) for i in range(256)]
  found = checks_torch.chosen(cots, job)
  assert len(found) == job.max_checks == 64
  assert {cot.tokens[0] for cot in found} == {0, 1, 2, 3}
  assert found == checks_torch.chosen(cots, job)
  assert found != checks_torch.chosen(cots, dataclasses.replace(job, seed=1))
  assert checks_torch.chosen(cots[:9], job) == cots[:9]


def test_wrong_samples_fail_the_checks(job, tmp_path):
  checked = _greedy_cots(job, tmp_path / 'ours.json')
  right = job_lib.read_measurement(checked.ours)
  first = next(cot for cot in right.cots if cot.prompt == 0)
  others = [cot for cot in right.cots if cot is not first]
  probs = [p + 1e-3 for p in first.score_probs if p is not None]
  wrong = dataclasses.replace(first, score_probs=probs)
  _write(
    tmp_path / 'ours.json', dataclasses.replace(right, cots=[wrong, *others])
  )
  difference = checks_torch.check(checked).details['max_difference']
  assert difference == pytest.approx(1e-3, abs=1e-5)

  missing = dataclasses.replace(first, score_probs=[None] * len(probs))
  _write(
    tmp_path / 'ours.json', dataclasses.replace(right, cots=[missing, *others])
  )
  assert checks_torch.check(checked).details['max_difference'] == 1.0

  tokens = [first.tokens[0] + 1, *first.tokens[1:]]
  wrong = dataclasses.replace(first, tokens=tokens)
  _write(
    tmp_path / 'ours.json', dataclasses.replace(right, cots=[wrong, *others])
  )
  found = checks_torch.greedy(checked)
  assert found.details == {'num_equal': 1, 'num_ties': 0, 'num_differing': 1}
  assert found.lines[0].startswith('3: token 0 differs')
