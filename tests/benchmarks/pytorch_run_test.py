"""A whole run with PyTorch, beside ours; and what it does not do."""

import json

from etils import epath
import numpy as np
import pytest

from tests.faults import harness
from tests.models import small_models
from tract_jax import main as main_lib
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.pipeline import build
from tract_jax.pipeline import config as config_lib

pytest.importorskip('torch')
pytest.importorskip('peft')
run = pytest.importorskip('benchmarks.pytorch.run')
judge = pytest.importorskip('benchmarks.pytorch.judge')
prediction = pytest.importorskip('benchmarks.pytorch.prediction')

DEMO = harness.ROOT / 'configs' / 'demo.py'
SETTINGS = {
  **harness.TINY,
  'methods': '("raft","tract")',
  'data.synthetic_test': 48,
  'sampling.max_new_tokens': 16,
  'sampling.slots': 32,
}


def arguments(workdir, settings, config=DEMO):
  return [
    f'--config={config}',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in settings.items()),
  ]


def do(*of_arguments):
  """Exit code of a run of theirs."""
  return run.main([*arguments(*of_arguments), '--threads=1'])


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def theirs(shared_folder):
  """The workdir of a run of theirs; half a batch at a time, as ours is not."""
  workdir = shared_folder / 'pytorch_run'
  settings = SETTINGS | {'train.micro_batch_size': 2}

  def make():
    assert do(workdir, settings) == 0

  return harness.once(workdir, make)


@pytest.fixture(scope='module')
def ours(theirs, shared_folder):
  """The workdir of our run, which has theirs in its report."""
  workdir = shared_folder / 'beside_pytorch_run'
  others = theirs / 'predictions' / 'tract' / 'synthetic.jsonl'
  settings = SETTINGS | {
    'evaluation.others': f'pytorch/synthetic={others}',
    'evaluation.differences': 'tract - pytorch',
  }
  return harness.once(
    workdir,
    lambda: harness.finish(harness.start(workdir, settings=settings)),
  )


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['raft/stage1', 'cot_raft/stage1'])
def test_losses_are_ours(ours, theirs, stage):
  found = harness.losses(theirs, stage)
  assert len(found) == 63
  assert found == pytest.approx(harness.losses(ours, stage), rel=1e-4)
  assert np.ptp(found) > 1


@pytest.mark.slow
def test_without_cot_predictions_are_ours(ours, theirs):
  name = 'predictions/raft/synthetic.jsonl'
  for mine, other in zip(read(ours / name), read(theirs / name), strict=True):
    assert other['prediction'] == pytest.approx(mine['prediction'], abs=1e-3)
    for key in other.keys() - {'prediction', 'distributions'}:
      assert other[key] == mine[key]


@pytest.mark.slow
def test_the_second_stage_is_trained_on_own_cots(ours, theirs):
  found = harness.losses(theirs, 'tract/stage2')
  # From the seed model, on every row, but on other CoTs than ours.
  assert len(found) == len(harness.losses(ours, 'tract/stage2'))
  assert found[0] != harness.losses(theirs, 'cot_raft/stage1')[0]
  assert found != pytest.approx(harness.losses(ours, 'tract/stage2'), rel=1e-4)


@pytest.mark.slow
def test_they_stand_in_our_report(ours, theirs):
  report = json.loads((ours / 'report' / 'metrics.json').read_text())
  (row,) = (
    row
    for row in report['rows']
    if (row['method'], row['predictor']) == ('pytorch', 'rail')
  )
  figures = [row[k] for k in ('num_cots', 'num_examples', 'num_invalid')]
  assert figures == [1, 48, 0]
  rows = read(theirs / 'predictions' / 'tract' / 'synthetic.jsonl')
  assert len({row['cots'][0] for row in rows}) > 24
  assert all('So the overall score is' in row['cots'][0] for row in rows)


@pytest.mark.slow
def test_nothing_is_done_twice_or_overwritten(theirs, capsys):
  def stamps():
    return {p: p.stat().st_mtime_ns for p in theirs.rglob('*.jsonl')}

  before = stamps()
  assert do(theirs, SETTINGS) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[-2:] == ['raft: done before', 'tract: done before']
  assert do(theirs, SETTINGS | {'train.lr': 1e-2}) == 2
  assert 'train.lr: recorded 0.003, expected 0.01' in capsys.readouterr().err
  assert stamps() == before


def test_a_file_of_another_program_is_not_overwritten(tmp_path, capsys):
  path = tmp_path / 'predictions' / 'raft' / 'synthetic.jsonl'
  path.parent.mkdir(parents=True)
  path.write_text('mine\n')
  settings = SETTINGS | {'methods': '("raft",)'}
  assert do(tmp_path, settings) == 2
  assert f'{path}: is there, and not of this' in capsys.readouterr().err
  assert path.read_text() == 'mine\n'
  assert manifest.read_manifest(path.parent) is None


def test_nothing_is_written_beside_a_stage_of_ours(tmp_path, capsys):
  folder = tmp_path / 'raft' / 'stage1' / 'seed0'
  manifest.write_manifest(epath.Path(folder), 'stage', {}, finished=False)
  assert do(tmp_path, SETTINGS | {'methods': '("raft",)'}) == 2
  assert f'{folder}: is of a run of tract_jax' in capsys.readouterr().err
  assert [path.name for path in folder.iterdir()] == ['manifest.json']


@pytest.mark.parametrize(
  ('changes', 'more', 'message'),
  [
    ({'methods': '("raft","tract_ce")'}, [], "config.methods: 'tract_ce' is"),
    ({'methods': '("zero_shot",)'}, [], "config.methods: 'zero_shot' is none"),
    ({'data.packing': True}, [], 'config.data.packing: True, but'),
    ({'train.score_loss': 'crps'}, [], "config.train.score_loss: 'crps', but"),
    ({'sampling.max_retries': 1}, [], 'config.sampling.max_retries: 1, but'),
    (
      {'sampling.temperature': 0.0, 'num_cots': 2},
      [],
      'config.sampling.temperature: 0, and 2 CoTs',
    ),
    ({'score.grid': '(0,5,10)'}, [], 'scores of several tokens'),
    ({'train.lrr': 1}, [], 'config.train.lrr: no such key'),
    ({}, ['--task=train'], "--task: 'train': there is only"),
    ({}, ['--threads=0'], '--threads: 0 is below 1'),
    ({}, ['--platform=cuda'], '--platform: cuda, but PyTorch finds no GPU'),
  ],
)
def test_what_is_not_done_is_refused(
  changes, more, message, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(run.torch.cuda, 'is_available', lambda: False)
  workdir = tmp_path / 'run'
  assert run.main([*arguments(workdir, SETTINGS | changes), *more]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert [line for line in lines if message in line] == lines
  assert not list(workdir.rglob('*.jsonl'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_models.save_judge(tmp_path_factory.mktemp('judge'))


@pytest.mark.slow
def test_an_adapter_is_trained_and_read(folder, tmp_path, in_process):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(
    ''.join(
      json.dumps({'id': str(i), 'prompt': f'It is {i}.', 'score': i % 5 + 1})
      + '\n'
      for i in range(8)
    )
  )
  settings = {
    'name': 'small',
    'methods': '("raft",)',
    'model.path': folder,
    'data.train_path': rows,
    'data.benchmarks': f'rows={rows}',
    'data.length_multiple': 8,
    'train.lr': 0.03,
    'train.num_epochs': 12,
  }
  config = tmp_path / 'small.py'
  config.write_text('def get_config():\n  return {}\n')
  assert do(tmp_path / 'run', settings, config) == 0
  mine = arguments(tmp_path / 'ours', settings, config)
  assert main_lib.main(['--task=train', *mine]) == 0
  losses = [
    harness.losses(tmp_path / side, 'raft/stage1') for side in ('run', 'ours')
  ]
  assert losses[0] == pytest.approx(losses[1], rel=1e-4)
  trained = tmp_path / 'run' / 'raft' / 'stage1' / 'seed0'
  assert (trained / 'adapter_model.safetensors').exists()
  found = read(tmp_path / 'run' / 'predictions' / 'raft' / 'rows.jsonl')
  setup = build.build(config_lib.merge({'model.path': str(folder)}))
  prompts = [
    np.concatenate(
      [setup.tokenizer.prompt_ids(f'It is {i}.'), setup.bare_scores.lead_ids]
    )
    for i in range(8)
  ]
  ids = setup.bare_scores.ids
  vocabulary = range(setup.tokenizer.vocab_size)
  probs, untrained = (
    judge.score_probs(judge.load(str(folder), adapter), prompts, vocabulary)
    for adapter in (str(trained), None)
  )
  read_probs = np.array([row['distributions'][0] for row in found])
  np.testing.assert_allclose(read_probs, probs[:, ids], atol=1e-5)
  assert np.abs(read_probs - untrained[:, ids]).max() > 1e-2
  decoded = [
    [float(ids.index(best) + 1) if best in ids else None]
    for best in probs.argmax(axis=-1)
  ]
  assert [row['decoded'] for row in found] == decoded != [[None]] * 8


@pytest.fixture(scope='module')
def reader(folder):
  settings = {'model.path': str(folder), 'sampling.max_new_tokens': 24}
  setup = build.build(config_lib.merge(settings))
  reader = prediction.Reader(setup, folder, platform='cpu', num_threads=1)
  return setup, reader


@pytest.mark.parametrize('max_length', [60, 128])
def test_cots_fit_and_have_their_distributions(reader, folder, max_length):
  setup, reader = reader
  examples = [
    types.Example(str(i), f'It is {"very " * i}good.', 3.0) for i in range(3)
  ]
  samples = reader.cots(examples, 2, seed=0, max_length=max_length)
  assert [len(of_row) for of_row in samples] == [2] * 3
  model = judge.load(str(folder))
  prefix_ids = setup.cot_scores.prefix_ids
  for example, of_row in zip(examples, samples, strict=True):
    prompt = setup.tokenizer.prompt_ids(example.prompt)
    for index, sample in enumerate(of_row):
      assert (sample.example_id, sample.cot_index) == (
        example.example_id,
        index,
      )
      tokens = np.concatenate([prompt, sample.tokens])
      # Texts of random bytes have more tokens than were written.
      assert len(tokens) < max_length
      assert tuple(sample.tokens[-len(prefix_ids) :]) == prefix_ids
      assert setup.config.score.marker in setup.tokenizer.decode(sample.tokens)
      (probs,) = judge.score_probs(
        model, [tokens], range(setup.tokenizer.vocab_size)
      )
      ids = setup.cot_scores.ids
      np.testing.assert_allclose(
        sample.score_probs, probs[list(ids)], atol=1e-5
      )
      best = int(probs.argmax())
      assert sample.greedy_index == (ids.index(best) if best in ids else -1)


def test_a_prompt_without_room_is_told(reader):
  _, reader = reader
  example = types.Example('a', 'It is good.', 3.0)
  ((sample,),) = reader.cots([example], 1, seed=0, max_length=20)
  assert sample.finish_reason == 'too_long'
  assert not sample.is_usable
