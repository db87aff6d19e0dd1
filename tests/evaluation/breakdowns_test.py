"""Figures on parts of a benchmark, against those of the same rows alone."""

import dataclasses

import numpy as np
import pytest

from tests.evaluation import reports
from tract_jax.evaluation import breakdowns, figures, report_writing


def system(seed, **changes):
  return dataclasses.replace(reports.system('tract', 'flask', seed), **changes)


def test_figures_are_those_of_the_rows_of_a_kind():
  systems = [system(0), system(1)]
  predictions = systems[0].predictions.copy()
  predictions[0] = np.nan
  systems[0] = system(0, predictions=predictions)
  values = [['a', 'b', ''] * 13 + ['a']] * 2
  parts = breakdowns.break_down(systems, {'category': values}, 3.0, 0.95)
  few = breakdowns.break_down(
    [system(0)], {'category': [['a'] * 32 + ['b'] * 8]}, 3.0, 0.95
  )[1]
  assert few.pearson is not None and few.pearson_ci is None
  assert few.reason == 'pearson_ci, rmse_ci, bias_ci: fewer than 10 rows'
  assert [(p.facet, p.value) for p in parts] == [
    ('category', 'a'),
    ('category', 'b'),
  ]
  chosen = np.array(values[0]) == 'a'
  scores = np.concatenate([s.scores[chosen] for s in systems])
  filled = np.concatenate([s.predictions[chosen] for s in systems])
  filled[0] = 3.0
  part = parts[0]
  assert (part.num_rows, part.num_invalid) == (28, 1)
  assert part.pearson == figures.pearson(scores, filled).value
  assert part.rmse == pytest.approx(np.sqrt(np.mean((filled - scores) ** 2)))
  assert part.bias == pytest.approx(np.mean(filled - scores))
  # Two seeds of a row are one row: its errors are added up first.
  errors = (filled - scores).reshape(2, -1).mean(axis=0)
  half = 2.160 * np.std(errors, ddof=1) / np.sqrt(14)  # t of 13 degrees.
  low, high = part.bias_ci
  assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
  assert part.pearson_ci[0] < part.pearson < part.pearson_ci[1]
  assert part.rmse_ci[0] < part.rmse < part.rmse_ci[1]
  assert part.reason is None


def test_within_one_score_there_is_an_error_and_no_correlation():
  one = system(0)
  texts = [[f'{score:g}' for score in one.scores]]
  parts = breakdowns.break_down([one], {'score': texts}, 3.0, 0.95)
  assert {p.value for p in parts} <= {'1', '2', '3', '4', '5'}
  for part in parts:
    assert part.pearson is None and part.rmse > 0
    why, *few = part.reason.split('; ')
    assert why in ('constant scores', 'fewer than 3 rows')
    # Forty rows: some scores have ten and more of them.
    assert bool(few) == (part.num_rows < 10) == (part.bias_ci is None)
    assert few in ([], ['rmse_ci, bias_ci: fewer than 10 rows'])
    assert part.pearson_ci is None


def test_rare_values_go_together_and_one_value_is_no_breakdown():
  values = [f'v{i:02d}' for i in range(24)] + [f'v{i:02d}' for i in range(16)]
  found = breakdowns.break_down([system(0)], {'rubric': [values]}, 3.0, 0.95)
  assert len(found) == 21
  assert (found[-1].value, found[-1].num_rows) == (breakdowns.OTHERS, 4)
  assert sum(p.num_rows for p in found) == 40
  same = {'rubric': [['v'] * 40], 'category': [[''] * 40]}
  assert breakdowns.break_down([system(0)], same, 3.0, 0.95) == []
  unrated = system(0, scores=np.full(40, np.nan))
  assert breakdowns.break_down([unrated], {'rubric': [values]}, 3.0, 0.95) == []


def test_thirds_of_lengths():
  assert breakdowns.thirds([1, 2, 3, 4, 5, 6]) == [
    *['shortest third'] * 2,
    *['middle third'] * 2,
    *['longest third'] * 2,
  ]
  assert breakdowns.thirds([7, 7]) == ['', '']
  assert breakdowns.thirds([]) == []


def test_they_stand_in_the_report():
  part = breakdowns.Part(
    *('tract', 'rail', 1, 'flask', 'response_source', 'a|b', 9, 1),
    *(None, 0.5, -0.25, 'constant scores', None, (0.4, 0.6), (-0.5, 0.0)),
  )
  text = report_writing.report_markdown(reports.report(breakdowns=[part]))
  assert 'By response source:' in text
  assert (
    '| tract | flask | a\\|b | 9 | 1 | n/a | .500 (.400, .600) '
    '| -.250 (-.500, .000) |'
  ) in text
  assert 'Breakdowns' not in report_writing.report_markdown(reports.report())
