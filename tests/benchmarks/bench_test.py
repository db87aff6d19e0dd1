"""The whole of make bench on a tiny model; no time is asserted."""

import json

import numpy as np
import pytest

from benchmarks import bench, options, side_jax, training_work
from benchmarks import job as job_lib
from tests.models import small_models

torch = pytest.importorskip('torch')
pytest.importorskip('peft')

# As in make bench, but small.
JOB = job_lib.TrainingJob(
  kind='train',
  model='',
  num_rows=2,
  length=6,
  num_targets=4,
  lora_rank=0,
  num_steps=1,
  vocab_size=50,
  score_ids=[7, 9],
  score_values=[1.0, 2.0],
)


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
  folder = small_models.save_judge(tmp_path_factory.mktemp('judge'))
  data = tmp_path_factory.mktemp('data') / 'rows.json'
  prompts = ['It is good.', 'The response is clear.']
  data.write_text(json.dumps([{'prompt': p} for p in prompts]))
  return [
    f'--data={data}',
    f'--model={folder}',
    '--num-prompts=2',
    '--min-tokens=5',
    '--max-tokens=60',
    '--pairs=1',
    '--steps=2',
    '--rows=2',
    '--length=32',
    '--targets=16',
    '--their-rows=2',
    '--ours=data.length_multiple=32',
  ]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Of the processes: not the eight of the tests."""
  monkeypatch.delenv('XLA_FLAGS')


def measured(tmp_path, arguments, part):
  """{name: row} of a part, and the code and text that it ended with."""
  code = bench.main([*arguments, f'--only={part}', f'--results={tmp_path}'])
  rows = json.loads((tmp_path / f'{part}.json').read_text())
  assert {f.name for f in tmp_path.iterdir()} == {f'{part}.json'}
  return code, {row['name']: row for row in rows}


def check_compared(row):
  assert row['ours'] > 0 and row['theirs'] > 0
  # Above 1 where ours is better.
  less = {'secs', 'bytes'} & set(row['name'].split('_'))
  better = row['theirs'] / row['ours'] if less else row['ours'] / row['theirs']
  assert row['ratio_median'] == pytest.approx(better)
  assert {'machine', 'python', 'jax', 'torch'} <= set(row['versions'])


def test_rows_end_with_their_score():
  rows = training_work.make_rows(JOB)
  again = training_work.make_rows(JOB)
  for name, array in vars(rows).items():
    assert array.shape == (2, 6)
    np.testing.assert_array_equal(array, getattr(again, name))
  np.testing.assert_array_equal(rows.inputs[:, 1:], rows.targets[:, :-1])
  assert rows.cot_mask.tolist() == [[False, False, True, True, False, True]] * 2
  assert rows.score_mask.tolist() == [[False] * 4 + [True, False]] * 2
  values = dict(zip(JOB.score_ids, JOB.score_values, strict=True))
  for row in range(2):
    assert values[rows.targets[row, 4]] == rows.scores[row, 4]
  assert not rows.scores[~rows.score_mask].any()


def test_the_median_update_is_timed_after_the_first(monkeypatch):
  clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 25.0, 30.0, 33.0])
  monkeypatch.setattr(training_work.time, 'perf_counter', lambda: next(clock))
  monkeypatch.setattr(training_work.time, 'time', lambda: 112.0)
  job = job_lib.dataclasses.replace(JOB, num_steps=3, asked_at=100.0)
  losses = iter([4.0, 3.0, 2.0, 1.0])
  found = training_work.timed(job, lambda: next(losses), 8, side_jax.measured)
  assert (found.secs, found.num_tokens, found.warm_up_secs) == (3.0, 12, 9.0)
  assert found.details == {
    'first_loss': 4.0,
    'last_loss': 1.0,
    'num_trained': 8,
    'start_up_secs': 12.0,
    'compile_secs': 6.0,
  }


def test_kinds_of_training(arguments):
  args = options.parse_bench([*arguments, '--results=a'], ('training',))
  jobs = options.training_jobs(args)
  assert {
    name: (job.lora_rank, job.num_targets) for name, job in jobs.items()
  } == {
    'full_prompts': (0, 16),
    'full_all': (0, 32),
    'lora_prompts': (8, 16),
    'lora_all': (8, 32),
  }


def test_no_model_and_an_unknown_part(arguments, tmp_path, capsys):
  model = '--model=no-such-model'
  path = f'--results={tmp_path}'
  for part in bench.PARTS:
    assert bench.main([*arguments, model, path, f'--only={part}']) == 2
    assert 'no-such-model' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    bench.main([*arguments, '--only=trainin'])


@pytest.mark.slow
@pytest.mark.timeout(900)  # Every measurement is a process of its own.
def test_training(arguments, tmp_path):
  code, rows = measured(tmp_path, arguments, 'training')
  assert code == 0
  for name in ('full_prompts', 'full_all', 'lora_prompts', 'lora_all'):
    for figure in ('tokens_per_sec', 'peak_memory_bytes', 'start_up_secs'):
      check_compared(rows.pop(f'{figure}_{name}'))
    for which in ('first', 'last'):
      row = rows.pop(f'check_{which}_loss_difference_{name}')
      assert 0 <= row['ours'] < 1e-5
    row = rows.pop(f'check_trained_weights_difference_{name}')
    assert row['ours'] == 0
    assert rows.pop(f'compile_secs_{name}')['theirs'] is None
  assert not rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prediction_and_files(arguments, tmp_path):
  (tmp_path / 'a').mkdir()
  code, rows = measured(tmp_path / 'a', arguments, 'prediction')
  assert code == 0
  check = rows.pop('check_max_difference_prediction')
  assert 0 < check['ours'] < 1e-5
  assert check['runs'] == 2
  assert set(rows) == {
    f'{figure}_prediction'
    for figure in ('tokens_per_sec', 'peak_memory_bytes', 'start_up_secs')
  }
  (tmp_path / 'b').mkdir()
  code, more = measured(tmp_path / 'b', arguments, 'files')
  assert code == 0
  assert set(more) == {
    f'{what}_secs' for what in ('load', 'export', 'save_state', 'restore_state')
  }
  for row in (rows | more).values():
    check_compared(row)


def measurement(cots=(), **details):
  details = {'start_up_secs': 1.0, 'compile_secs': 1.0, **details}
  return job_lib.Measurement(1, 1, 1, 1, {}, list(cots), details)


NAN = float('nan')
PROBS = [0.5, 0.25]


@pytest.mark.parametrize(
  ('ours', 'theirs', 'code'),
  [
    (PROBS, PROBS, 0),
    (PROBS, [0.5, 0.2503], 1),
    (PROBS, [0.5, None], 1),
    # Behind a number that is right, NaN is the lesser of the two for `max`.
    (PROBS, [0.5, NAN], 1),
    ([0.5, NAN], PROBS, 1),
  ],
)
def test_other_probabilities_fail(
  arguments, tmp_path, monkeypatch, ours, theirs, code
):
  def start(module, job, folder):
    probs = theirs if module.endswith('_torch') else ours
    # A prompt that is right stands before.
    return measurement(
      job_lib.Cot(prompt, [], 0, 'marker', of_prompt)
      for prompt, of_prompt in enumerate((PROBS, probs))
    )

  monkeypatch.setattr(job_lib, 'start', start)
  found, rows = measured(tmp_path, arguments, 'prediction')
  assert found == code
  worst = rows['check_max_difference_prediction']['ours']
  assert (worst > bench.MAX_DIFFERENCE) == bool(code)


RIGHT = {'first_loss': 3.0, 'last_loss': 2.0, 'num_trained': 10}
STILL = RIGHT | {'last_loss': 3.0}


@pytest.mark.parametrize(
  ('ours', 'theirs', 'problem'),
  [
    (RIGHT, RIGHT, ''),
    (RIGHT | {'first_loss': 3.001}, RIGHT, 'first_loss of full_prompts'),
    (RIGHT | {'last_loss': 2.001}, RIGHT, 'last_loss of full_prompts'),
    (RIGHT | {'last_loss': NAN}, RIGHT, 'last_loss of full_prompts'),
    (RIGHT, RIGHT | {'last_loss': NAN}, 'last_loss of full_prompts'),
    (RIGHT | {'num_trained': 9}, RIGHT, 'trained weights of full_prompts'),
    (STILL, STILL, 'losses of full_prompts'),
  ],
)
def test_other_training_fails(
  arguments, tmp_path, monkeypatch, capsys, ours, theirs, problem
):
  def start(module, job, folder):
    is_wrong = job.seed and not job.lora_rank and job.num_targets < job.length
    details = theirs if module.endswith('_torch') else ours
    return measurement(**(details if is_wrong else RIGHT))

  monkeypatch.setattr(job_lib, 'start', start)
  # The first pair is right: what is wrong is in second place.
  code, _ = measured(tmp_path, [*arguments, '--pairs=2'], 'training')
  assert code == bool(problem)
  lines = capsys.readouterr().err.splitlines()
  assert any(f'error: {problem}' in line for line in lines) == bool(problem)


def test_both_sides_begin_with_the_same_adapters(
  arguments, tmp_path, monkeypatch
):
  calls = []

  def start(module, job, folder):
    calls.append((module, job.kind, bool(job.lora_rank), job.adapter))
    return measurement(**RIGHT)

  monkeypatch.setattr(job_lib, 'start', start)
  assert measured(tmp_path, arguments, 'training')[0] == 0
  full, lora = (
    [call for call in calls if call[2] == is_lora] for is_lora in (False, True)
  )
  assert {adapter for *_, adapter in full} == {''}
  assert [call[:2] for call in lora[:3]] == [
    ('training_jax', 'start'),
    ('training_torch', 'train'),
    ('training_jax', 'train'),
  ]
  assert len({adapter for *_, adapter in lora[:3]}) == 1 and lora[0][3]
