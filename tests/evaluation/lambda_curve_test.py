"""The choice of lambda from validation figures."""

import dataclasses

import pytest

from tract_jax import types
from tract_jax.evaluation import lambda_curve


def point(value, rmse, loss=1.0):
  return lambda_curve.LambdaPoint('tract', 2, 0, value, rmse, 0.5, loss)


def chosen(*points):
  found = lambda_curve.with_choice(points)
  assert [p.lambda_value for p in found] == sorted(
    p.lambda_value for p in points
  )
  (one,) = [p.lambda_value for p in found if p.chosen]
  return one


def test_smallest_error_is_chosen_whatever_the_loss():
  assert chosen(point(5.0, 0.7, 0.1), point(0.2, 0.6), point(1.0, 0.4, 9)) == 1


def test_smaller_lambda_is_chosen_on_a_tie():
  assert chosen(point(5.0, 0.4), point(0.2, 0.4)) == 0.2


def test_without_validation_rows_nothing_is_chosen():
  with pytest.raises(types.InputError, match='no validation rows to choose on'):
    lambda_curve.with_choice([point(1.0, 0.4), point(2.0, None)])


def test_candidate_that_is_not_finite_is_passed_over_and_says_why():
  lost = dataclasses.replace(point(5.0, None), reason='not finite: loss')
  assert chosen(lost, point(1.0, 0.4), point(0.2, 0.6)) == 1
  assert lambda_curve.notes([lost, point(1.0, 0.4)]) == [
    'tract stage 2, seed 0, lambda 5: not finite: loss'
  ]
  with pytest.raises(types.InputError, match='with none of them'):
    lambda_curve.with_choice([lost])


def test_cells_have_a_line_for_each_point():
  points = lambda_curve.with_choice([point(1.0, 0.4), point(0.25, 0.5)])
  header, lines = lambda_curve.cells(points)
  assert lines == [
    ['tract', 2, 0, '0.25', '.500', '.500', '1.000', ''],
    ['tract', 2, 0, '1', '.400', '.500', '1.000', 'yes'],
  ]
  assert all(len(header) == len(line) for line in lines)
