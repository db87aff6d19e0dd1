"""What rows of results keep of their runs, and which rows are published."""

import dataclasses
import subprocess

import pytest

from benchmarks import job as job_lib
from benchmarks import options, pairs, provenance, results
from tests.benchmarks import bench_test

SAMPLING = job_lib.SamplingJob(
  kind='sample',
  model='/models/judge',
  seed=3,
  example_ids=['a', 'b'],
  prompts=[[1, 2], [3]],
  marker='So',
  lead_ids=[1],
  prefix_ids=[1],
  score_ids=[7],
  eos_id=0,
  pad_id=0,
)
FIGURES = {'tokens_per_sec': lambda m: m.tokens_per_sec}


def test_work_has_what_decides_it():
  assert provenance.work(SAMPLING) == {
    'kind': 'sample',
    'model': 'judge',
    'num_threads': 2,
    'num_prompts': 2,
    'prompt_tokens': 3,
    'temperature': 1.0,
    'top_p': 0.9,
    'repetition_penalty': 1.03,
    'max_new_tokens': 128,
    'num_cots': 1,
    'generate_rows': 8,
    'score_rows': 4,
  }
  job = dataclasses.replace(
    bench_test.JOB, model='judge', settings={'model.remat': 'dots'}
  )
  assert provenance.work(job) == {
    'kind': 'train',
    'model': 'judge',
    'num_threads': 2,
    'settings': {'model.remat': 'dots'},
    'num_rows': 2,
    'length': 6,
    'num_targets': 4,
    'lora_rank': 0,
    'num_steps': 1,
    'lr': 1e-4,
  }


def test_the_commit_tells_of_changes(monkeypatch):
  answers = {'rev-parse': 'abc\n', 'status': ''}

  def run(command, **_):
    return subprocess.CompletedProcess(command, 0, stdout=answers[command[1]])

  monkeypatch.setattr(subprocess, 'run', run)
  commit = provenance.commit.__wrapped__
  assert commit() == 'abc'
  answers['status'] = ' M benchmarks/job.py\n'
  assert commit() == 'abc+'

  def no_git(*_, **__):
    raise FileNotFoundError

  monkeypatch.setattr(subprocess, 'run', no_git)
  assert commit() == ''


@pytest.mark.parametrize(
  ('other_cpus', 'threads', 'is_told'),
  [(0.15, 2, False), (0.25, 2, True), (0.25, 1, False), (1.15, 1, True)],
)
def test_rows_tell_of_their_run_and_of_a_busy_machine(
  tmp_path, monkeypatch, capsys, other_cpus, threads, is_told
):
  def start(module, job, folder):
    is_busy = module.endswith('_torch') and job.seed == 1
    return job_lib.Measurement(
      2.0, 10, 1.0, 100, {}, other_cpus=other_cpus if is_busy else 0.01
    )

  monkeypatch.setattr(job_lib, 'start', start)
  monkeypatch.setattr(pairs.os, 'cpu_count', lambda: 2)
  monkeypatch.setattr(provenance, 'commit', lambda: 'abc')
  job = dataclasses.replace(SAMPLING, num_threads=threads)
  runner = pairs.Pairs(tmp_path / 'a.json', tmp_path / 'jobs')
  runner.run('sampling', job, 3, FIGURES)
  (row,) = results.read_results(tmp_path / 'a.json')
  assert (row.commit, row.other_cpus) == ('abc', other_cpus)
  assert row.work == provenance.work(job)
  lines = [
    line for line in capsys.readouterr().out.splitlines() if 'warning' in line
  ]
  assert len(lines) == is_told
  assert all(f'{other_cpus:.1f} CPUs' in line for line in lines)


def test_others_are_what_is_neither_idle_nor_ours(monkeypatch, tmp_path):
  stats = iter(
    [
      'cpu 100 10 20 5000 30 1 2 3 0 0\ncpu0 0',
      # 200 ticks more of work, and 700 idle or waiting.
      'cpu 200 20 60 5600 130 11 22 23 0 0\ncpu0 0',
    ]
  )
  # Of ours, 1.5 seconds in the process that is waited for.
  used = iter([0.25, 1.0, 0.25, 2.5])
  times = iter([10.0, 14.0])
  monkeypatch.setattr(job_lib.os, 'sysconf', lambda name: 50)
  monkeypatch.setattr(job_lib.time, 'monotonic', lambda: next(times))
  monkeypatch.setattr(
    job_lib.resource,
    'getrusage',
    lambda who: job_lib.resource.struct_rusage((next(used), 0.0, *[0] * 14)),
  )
  monkeypatch.setattr(
    job_lib.pathlib.Path, 'read_text', lambda self, encoding: next(stats)
  )
  monkeypatch.setattr(job_lib.pathlib.Path, 'write_text', lambda *_, **__: None)
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: None)
  plain = job_lib.Measurement(1.0, 1, 0.0, 1, {})
  monkeypatch.setattr(job_lib, 'read_measurement', lambda path: plain)
  found = job_lib.start('files_torch', SAMPLING, tmp_path)
  # 4 seconds of all less 1.5 of ours, in 4 seconds.
  assert found.other_cpus == pytest.approx(2.5 / 4)


def parse_bench(argv):
  return options.parse_bench(argv, ('training',))


def parse_curves(argv):
  return options.parse_curves(argv, ('slots',))


@pytest.mark.parametrize(
  ('parse', 'option'),
  [
    (parse_bench, '--length=128'),
    (parse_bench, '--steps=1'),
    (parse_bench, '--threads=1'),
    (parse_bench, '--ours=model.remat=dots'),
    (parse_bench, '--data=other.json'),
    (parse_bench, '--model=other'),
    (options.parse, '--slots=4'),
    (options.parse, '--max-new-tokens=16'),
    (parse_curves, '--new-tokens=8'),
  ],
)
def test_other_work_does_not_replace_published_rows(
  parse, option, tmp_path, capsys
):
  for results_ in ([], [f'--results={parse([]).results}']):
    with pytest.raises(SystemExit) as stopped:
      parse([option, *results_])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert option.split('=')[0] in told and '--results' in told
  assert parse([option, f'--results={tmp_path}']).results == tmp_path


@pytest.mark.parametrize(
  ('parse', 'option'),
  [
    (parse_bench, '--pairs=1'),
    (parse_bench, '--platform=cuda'),
    (parse_bench, '--keep=files'),
    (parse_bench, '--data=mt_bench_eval.json'),
    (options.parse, '--runs=1'),
    (parse_curves, '--slots=1,2'),
    (parse_curves, '--sides=both'),
  ],
)
def test_less_of_the_same_work_is_published(parse, option):
  assert parse([option]).results == parse([]).results
