"""What make bench-curves asks for, and all of it on a tiny model."""

import dataclasses
import json

import pytest

from benchmarks import curves, options
from benchmarks import job as job_lib
from tests.models import small_models
from tests.text import small_tokenizers

FIGURES = {'tokens_per_sec', 'peak_memory_bytes'}
# Of forty rows, which are too few for the cache.
STEPS = ('read', 'encode', 'pack', 'order')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A judge that reads prompts of the synthetic world, byte by byte."""
  folder = tmp_path_factory.mktemp('judge')
  tokenizer = small_tokenizers.byte_level()
  tokenizer.hf.save_pretrained(folder)
  small_models.save_llama(
    folder, tokenizer.vocab_size, max_position_embeddings=2048
  )
  return folder


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Of the processes: not the eight of the tests, which this one has."""
  monkeypatch.delenv('XLA_FLAGS')


@pytest.fixture
def arguments(folder, tmp_path):
  return [
    f'--model={folder}',
    f'--results={tmp_path / "curves.json"}',
    '--steps=1',
    '--length=32',
    '--targets=16',
    '--new-tokens=4',
    '--lengths=8,32',
    '--batches=2',
    '--slots=1,2',
    '--data-rows=40',
  ]


def rows_of(tmp_path):
  rows = json.loads((tmp_path / 'curves.json').read_text())
  return {row['name']: row for row in rows}


@pytest.fixture
def asked(monkeypatch):
  """(module, job) of each process, none of which is started."""
  asked = []

  def start(module, job, unused_folder):
    asked.append((module, job))
    # Seconds that tell the processes apart.
    times = 2 if module.endswith('_torch') else 1
    secs = 2.0**job.seed * times
    details = {'encode_secs': secs, 'cached_secs': secs / 4}
    return job_lib.Measurement(
      secs, 80, 0, 7 * times, {'jax': '1'}, [], details
    )

  monkeypatch.setattr(job_lib, 'start', start)
  return asked


def test_one_size_changes_along_a_curve(arguments, asked, tmp_path):
  assert curves.main(arguments) == 0
  modules = [module for module, _ in asked]
  assert modules == [*['training_jax'] * 3, *['sampling_jax'] * 2, 'data_jax']
  jobs = [job for _, job in asked]
  assert [(j.num_rows, j.length, j.num_targets) for j in jobs[:3]] == [
    (1, 8, 8),
    (1, 32, 16),
    (2, 32, 16),
  ]
  assert {j.lora_rank for j in jobs[:3]} == {8}
  for size, job in zip((1, 2), jobs[3:5], strict=True):
    assert len(job.prompts) == len(job.example_ids) == size
    assert job.settings == {'sampling.slots': size}
    assert job.max_new_tokens == 4
  assert jobs[3].prompts == jobs[4].prompts[:1]
  assert jobs[5].num_rows == 40
  rows = rows_of(tmp_path)
  points = ('length.8', 'length.32', 'batch.2', 'slots.1', 'slots.2')
  assert set(rows) == {
    *(f'{figure}.{point}' for figure in FIGURES for point in points),
    'encode_rows_per_sec.data.40',
    'cached_rows_per_sec.data.40',
    'peak_memory_bytes.data.40',
  }
  assert rows['tokens_per_sec.length.8']['ours'] == 80
  assert rows['encode_rows_per_sec.data.40']['ours'] == 40
  assert rows['cached_rows_per_sec.data.40']['ours'] == 160
  assert all(row['theirs'] is None for row in rows.values())


def test_medians_of_several_processes(arguments, asked, tmp_path):
  assert curves.main([*arguments, '--only=batch', '--runs=3']) == 0
  assert [job.seed for _, job in asked] == [0, 1, 2]
  row = rows_of(tmp_path)['tokens_per_sec.batch.2']
  assert (row['ours'], row['runs']) == (40, 3)


def test_the_other_side_where_it_is_asked_for(arguments, asked, tmp_path):
  options_ = ['--only=length,slots', '--sides=both', '--lengths=8']
  assert curves.main([*arguments, *options_, '--slots=2']) == 0
  assert [module for module, _ in asked] == [
    *('training_torch', 'training_jax', 'sampling_torch', 'sampling_jax'),
  ]
  job = asked[2][1]
  assert job.generate_rows == job.score_rows == 2
  rows = rows_of(tmp_path)
  assert rows['tokens_per_sec.slots.2']['theirs'] == 40
  assert rows['tokens_per_sec.slots.2']['ratio_median'] == 2
  # Of memory less is better.
  assert rows['peak_memory_bytes.length.8']['ratio_median'] == 2


def test_no_model_and_an_unknown_curve(arguments, capsys):
  for curve in curves.CURVES:
    code = curves.main([*arguments, f'--only={curve}', '--model=no-such-model'])
    assert code == 2
    assert 'no-such-model' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    curves.main([*arguments, '--only=lengths'])


def test_every_size_has_an_option():
  args = options.parse_curves([], tuple(curves.CURVES))
  for sizes in (args.lengths, args.batches, args.slots, args.data_rows):
    assert len(sizes) >= 5 and sizes == sorted(set(sizes))


@pytest.mark.slow
@pytest.mark.timeout(900)  # Every point is a process of its own.
def test_all_curves(arguments, tmp_path):
  assert curves.main(arguments) == 0
  rows = rows_of(tmp_path)
  points = ('length.8', 'length.32', 'batch.2', 'slots.1', 'slots.2')
  assert set(rows) == {
    *(f'{figure}.{point}' for figure in FIGURES for point in points),
    *(f'{step}_rows_per_sec.data.40' for step in STEPS),
    'peak_memory_bytes.data.40',
  }
  for row in rows.values():
    assert row['ours'] > 0
    assert {'machine', 'python', 'jax'} <= set(row['versions'])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_rows_are_read_from_the_cache(folder, tmp_path):
  job = job_lib.DataJob(kind='data', model=str(folder), num_rows=11_000)
  found = job_lib.start('data_jax', job, tmp_path)
  assert found.details['cached_secs'] < found.details['encode_secs']
  assert dataclasses.asdict(found)['num_tokens'] > 11_000
