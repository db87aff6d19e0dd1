"""Candidate lambdas: each a stage of its own, and the best one goes on."""

from etils import epath
import pytest

from tract_jax.data import manifest
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import finetune, lambda_choice, objective

ERRORS = {0.2: 0.7, 1.0: 0.5, 5.0: 0.6}


def make_config(*candidates, **more):
  train = {'lambda_candidates': candidates, 'lambda_value': 2.0, **more}
  config = {'train': train, 'methods': ('tract', 'raft', 'cot_raft')}
  return config_lib.merge(config)


def make_run(folder, config, name='cot_raft'):
  return finetune.StageRun(
    label='stage',
    folder=epath.Path(folder),
    seed=3,
    objective=objective.make_objective(config, name),
    with_cot=True,
    fields={'train.lambda_value': 2.0, 'train': 'digest'},
  )


class Trainer:
  """Stands for training: writes what a finished stage says."""

  def __init__(self):
    self.trained = []

  def __call__(self, run):
    if finetune.is_done(run):
      return
    value = run.fields['train.lambda_value']
    self.trained.append(value)
    results = {'validation_score_rmse': ERRORS.get(value), 'validation_ce': 0.1}
    results |= {'validation_loss': value}
    manifest.write_manifest(run.folder, 'stage', run.fields, results=results)


def test_candidate_with_the_smallest_error_goes_on(tmp_path):
  config, train = make_config(0.2, 5.0, 1.0), Trainer()
  run = make_run(tmp_path, config)
  chosen = lambda_choice.trained(config, 'cot_raft', run, train)
  assert train.trained == [0.2, 5.0, 1.0]
  assert chosen.fields == {'train.lambda_value': 1.0, 'train': 'digest'}
  assert chosen.objective.score_weight == 1.0
  assert chosen.folder == tmp_path / 'lambda' / '1.0'
  assert finetune.is_done(chosen)


def test_candidate_added_later_is_trained_alone(tmp_path):
  config, train = make_config(0.2, 5.0), Trainer()
  run = make_run(tmp_path, config)
  first = lambda_choice.trained(config, 'cot_raft', run, train)
  assert first.fields['train.lambda_value'] == 5.0
  more = make_config(0.2, 5.0, 1.0)
  second = lambda_choice.trained(more, 'cot_raft', run, train)
  assert second.fields['train.lambda_value'] == 1.0
  assert train.trained == [0.2, 5.0, 1.0]


def test_candidate_without_a_finite_error_is_not_chosen(tmp_path):
  config = make_config(0.2, 1.0, 5.0)

  def train(run):
    value = run.fields['train.lambda_value']
    results = {'validation_score_rmse': ERRORS[value], 'validation_loss': 1.0}
    if value == 1.0:
      results |= {
        'validation_score_rmse': None,
        'validation_reason': 'not finite: validation_score_rmse',
      }
    manifest.write_manifest(run.folder, 'stage', run.fields, results=results)

  run = make_run(tmp_path, config)
  chosen = lambda_choice.trained(config, 'cot_raft', run, train)
  assert chosen.fields['train.lambda_value'] == 5.0
  points = lambda_choice.read_points(config, run.folder, 'tract', 1, 3)
  assert [p.reason for p in points] == [
    None,
    'not finite: validation_score_rmse',
    None,
  ]


def test_candidates_are_in_the_scale_that_is_named(tmp_path):
  config = make_config(1.0, score_scale='release')
  run = make_run(tmp_path, config)
  chosen = lambda_choice.trained(config, 'cot_raft', run, Trainer())
  assert chosen.objective.score_weight == 1 / 8


@pytest.mark.parametrize(
  ('name', 'candidates'), [('raft', (1.0,)), ('ce', (1.0,)), ('cot_raft', ())]
)
def test_stage_without_a_choice_is_trained_as_it_is(tmp_path, name, candidates):
  config, train = make_config(*candidates), Trainer()
  run = make_run(tmp_path, config, name)
  assert lambda_choice.trained(config, name, run, train) is run
  assert train.trained == [2.0]


def test_curves_have_every_stage_once_and_what_is_trained_so_far(tmp_path):
  config = make_config(1.0, 0.2)
  folders = {
    (method, index): epath.Path(tmp_path) / method / f'{index}'
    for method, index in (('cot_raft', 0), ('tract', 1))
  }
  train = Trainer()
  run = make_run(folders['cot_raft', 0], config)
  lambda_choice.trained(config, 'cot_raft', run, train)
  half = make_config(1.0)
  run = make_run(folders['tract', 1], half)
  lambda_choice.trained(half, 'cot_raft', run, train)
  points = lambda_choice.curves(config, lambda m, i, seed: folders[m, i])
  assert [
    (p.method, p.stage, p.lambda_value, p.score_rmse, p.loss, p.chosen)
    for p in points
  ] == [
    ('cot_raft', 1, 0.2, 0.7, 0.2, False),
    ('cot_raft', 1, 1.0, 0.5, 1.0, True),
    ('tract', 2, 1.0, 0.5, 1.0, False),
  ]
