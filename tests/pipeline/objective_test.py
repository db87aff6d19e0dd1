"""The objective of a stage: every choice of the configuration arrives."""

import pytest

from tract_jax.objectives import losses
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import objective


def make(name, **train):
  return objective.make_objective(config_lib.merge({'train': train}), name)


def test_defaults_are_the_papers_losses_and_the_releases_cross_entropy():
  assert make('ce') == losses.Objective(1.0, 0.0, ce_includes_score=True)
  assert make('raft') == losses.Objective(0.0, 1.0, ce_includes_score=False)
  assert make('cot_raft') == losses.Objective(1.0, 1.0, ce_includes_score=False)
  assert (make('raft').score_loss, make('raft').expectation) == (
    'squared_error',
    'full',
  )


@pytest.mark.parametrize(
  ('key', 'value', 'field'),
  [
    ('score_loss', 'crps', 'score_loss'),
    ('expectation', 'grid', 'expectation'),
    ('off_grid_penalty', 0.3, 'off_grid_weight'),
  ],
)
def test_choices_of_the_score_loss_reach_raft_and_cot_raft_alone(
  key, value, field
):
  for name in ('raft', 'cot_raft'):
    assert getattr(make(name, **{key: value}), field) == value
  assert make('ce', **{key: value}) == make('ce')


def test_lambda_zero_is_cross_entropy():
  with_score = make('cot_raft', lambda_value=0.0, ce_includes_score=True)
  assert with_score == make('ce')
  words = losses.Objective(1.0, 0.0, ce_includes_score=False)
  assert make('cot_raft', lambda_value=0.0) == words


def test_lambda_and_its_scale_reach_cot_raft_alone():
  release = {'lambda_value': 2.0, 'score_scale': 'release'}
  for choice in ({'lambda_value': 2.0}, release, {'ce_includes_score': True}):
    assert make('raft', **choice) == make('raft')
    assert make('ce', **choice) == make('ce')
  assert make('cot_raft', lambda_value=2.0).score_weight == 2.0
  assert make('cot_raft', **release).score_weight == 2 / 8
  twice = {'release_device_batch': 4, 'release_accumulation': 2}
  assert make('cot_raft', **release, **twice).score_weight == 2 * 2 / 4
  assert make('cot_raft', ce_includes_score=True).ce_includes_score
