"""A run that gives CoTs without end up: retries, counts, and what is trained.

The real engine, on a model so small that a CoT of it ends, or does not.
"""

import contextlib
import dataclasses
import io
import json
import shutil

from etils import epath
import pytest

from tests.pipeline import run_test
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.data import self_cot as self_cot_data
from tract_jax.parallel import agreement
from tract_jax.pipeline import build, read_data, sample, self_cot, tasks
from tract_jax.pipeline import run as run_lib

pytestmark = pytest.mark.slow

MAX_RETRIES = 2
SAMPLING = {
  'slots': 8,
  'chunk_size': 16,
  'max_new_tokens': 16,
  'repetition_penalty': 1.0,
  'num_self_cots': 2,
}
DROP = {'max_retries': MAX_RETRIES, 'unfinished': 'drop'}


def make_config(**sampling):
  base = run_test.make_config()
  return run_test.make_config(
    methods=('tract',),
    model=base.model.to_dict() | {'initializer_range': 0.1},
    data=base.data.to_dict()
    | {'synthetic_train': 64, 'validation_fraction': 0.125},
    train={
      'batch_size': 8,
      'num_epochs': 4,
      'lr': 3e-3,
      'ce_includes_score': True,
    },
    sampling={**SAMPLING, **sampling},
    mesh={'data': 4, 'fsdp': 2, 'tensor': 1},
    evaluation={'gap_examples': 0, 'num_resamples': 100},
  )


@dataclasses.dataclass
class Finished:
  """A run that is over, and what it said."""

  run: run_lib.Run
  output: str

  @property
  def folder(self):
    return self.run.self_cot_folder('tract', 0)

  def samples(self):
    provenance = self_cot_data.read_summary(self.folder)['provenance']
    return self_cot_data.read_self_cots(self.folder, provenance)[0]


@pytest.fixture(scope='module')
def dropped(tmp_path_factory):
  setup = build.build(make_config(**DROP))
  run = run_lib.Run(
    setup,
    read_data.read_data(setup),
    epath.Path(tmp_path_factory.mktemp('run')),
    agreement.Agreement(lambda: False),
  )
  with contextlib.redirect_stdout(io.StringIO()) as output:
    tasks.execute(run, 'run')
  return Finished(run, ' '.join(output.getvalue().split()))


def test_what_did_not_end_was_tried_again_and_given_up(dropped):
  samples = dropped.samples()
  assert {s.finish_reason for s in samples} >= {'marker', 'length'}
  for s in samples:
    assert s.is_usable == (s.finish_reason == 'marker') == (s.greedy_index >= 0)
    if not s.is_usable:
      assert s.num_retries == MAX_RETRIES
  assert any(s.is_usable and s.num_retries for s in samples)


def test_counts_are_told_and_reported(dropped):
  samples = dropped.samples()
  ids = list(dict.fromkeys(s.example_id for s in samples))
  usable = {s.example_id for s in samples if s.is_usable}
  without = [name for name in ids if name not in usable]
  counts = {
    'num_samples': len(samples),
    'num_retries': sum(s.num_retries for s in samples),
    'num_unusable': sum(not s.is_usable for s in samples),
  }
  assert len(samples) == 2 * 64 and without
  summary = self_cot_data.read_summary(dropped.folder)
  assert summary['without_usable'] == without
  (line,) = (dropped.folder / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(line)['num_retries'] == counts['num_retries']
  (reported,) = run_test.report(dropped.run.workdir)['self_cots']
  assert (
    counts.items() <= summary.items() and counts.items() <= reported.items()
  )
  assert reported['num_without_usable'] == len(without)
  assert (
    f'{counts["num_retries"]} tried again, {counts["num_unusable"]} unusable; '
    f'{len(without)} rows without a usable one ({without[0]}'
  ) in dropped.output


def test_stage_2_and_the_copy_have_the_usable_ones_alone(dropped):
  run = dropped.run
  for kind, stage_rows in (
    ('train', run.data.train),
    ('validation', run.data.validation),
  ):
    ids = {e.example_id for e in stage_rows}
    usable = [s for s in dropped.samples() if s.is_usable]
    num_usable = sum(s.example_id in ids for s in usable)
    copy = dropped.folder / 'llama_factory' / f'self_cots_{kind}.json'
    assert len(json.loads(copy.read_text())) == num_usable > 0
    if kind == 'train':
      stage = run.stage_folder('tract', 1, 0)
      assert manifest.read_results(stage)['num_rows'] == num_usable


def test_a_row_is_predicted_from_its_usable_cots(dropped):
  path = dropped.run.workdir / 'predictions' / 'tract' / 'synthetic.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert any('length' in row['finish_reasons'] for row in rows)
  for row in rows:
    are_usable = [reason == 'marker' for reason in row['finish_reasons']]
    assert [d is not None for d in row['distributions']] == are_usable
    assert (row['prediction'] is not None) == any(are_usable)


def test_completed_ones_are_those_that_ended_at_once_and_the_others(
  dropped, tmp_path
):
  config = make_config()
  setup = dataclasses.replace(dropped.run.setup, config=config)
  stage = dropped.run.stage('tract', 0, 0)
  splits = {
    'train': dropped.run.data.train,
    'validation': dropped.run.data.validation,
  }
  self_cot.sample_self_cots(
    sample.Sampler(setup, lambda: False),
    lambda: dropped.run._weights.to_sample(stage, 0),
    splits,
    epath.Path(tmp_path),
    {},
    0,
    'completed',
  )
  completed, _ = self_cot_data.read_self_cots(tmp_path, {})
  assert all(s.is_usable and not s.num_retries for s in completed)
  num_same = 0
  for found, tried in zip(completed, dropped.samples(), strict=True):
    assert (found.finish_reason == 'marker') == (
      tried.is_usable and not tried.num_retries
    )
    if found.finish_reason == 'marker':
      assert found.tokens.tolist() == tried.tokens.tolist()
      num_same += 1
  assert 0 < num_same < len(completed)


def test_without_any_usable_cot_stage_2_is_refused(dropped, tmp_path):
  shutil.copytree(dropped.run.workdir / 'cot_raft', tmp_path / 'cot_raft')
  sampling = {'unfinished': 'drop', 'max_new_tokens': 1}
  run = run_lib.Run(
    build.build(make_config(**sampling)),
    dropped.run.data,
    epath.Path(tmp_path),
    agreement.Agreement(lambda: False),
  )
  with pytest.raises(types.InputError) as error:
    tasks.execute(run, 'train')
  assert str(error.value) == 'tract stage 2 seed 0: no training rows are left'
