"""Facts on CoTs, by hand, and their intervals against a plain bootstrap."""

import json

import numpy as np
import pytest

from tests.evaluation import reports
from tract_jax import types
from tract_jax.evaluation import cot_texts, report_writing, resampling

BOOTSTRAP = resampling.Bootstrap(num_resamples=2000)
NO_OVERLAP = 'bleu, rouge_l: config.evaluation.overlap_cots is 0'


def row(example_id, cots, tokens=(), seed=0):
  return types.Prediction(
    example_id=example_id,
    seed=seed,
    score=1.0,
    prediction=None,
    distributions=[None] * len(cots),
    decoded=[None] * len(cots),
    cots=list(cots),
    finish_reasons=[],
    invalid_reason=None,
    cot_tokens=list(tokens),
  )


def facts(rows, num_cots=1):
  return cot_texts.facts('tract', 'flask', rows, num_cots, BOOTSTRAP, {}, 0)


def test_words_and_digits_by_hand():
  texts = ['a b c', 'a 2', '', 'no \u0664']
  found = facts([row(str(i), [text]) for i, text in enumerate(texts)])
  assert (found.num_cots, found.mean_words) == (4, 7 / 4)
  assert found.share_with_digits == 0.25
  assert facts([row('a', [''])], num_cots=0) is None


def test_tokens_by_hand():
  rows = [row(str(i), ['', 'x'], [n, 99]) for i, n in enumerate(range(11))]
  found = facts(rows)
  assert (found.mean_tokens, found.median_tokens, found.p90_tokens) == (5, 5, 9)
  low, high = found.mean_tokens_ci
  # The error of a mean of 11 is sqrt(10 / 11).
  assert (high - low) / 2 == pytest.approx(1.96 * (10 / 11) ** 0.5, rel=0.1)
  assert found.reason == NO_OVERLAP
  assert facts(rows, num_cots=2).mean_tokens == 52.0


def test_a_mean_moves_with_whole_rows_not_with_cots():
  rng = np.random.default_rng(0)
  tokens = rng.integers(10, 100, 60)
  alone = facts([row(f'{i:02d}', [''], [n]) for i, n in enumerate(tokens)])
  # The same tokens from each CoT and seed tell nothing more.
  many = [
    row(f'{i:02d}', [''] * 3, [n] * 3, seed)
    for seed in (0, 1)
    for i, n in enumerate(tokens)
  ]
  found = facts(many, num_cots=3)
  assert found.num_cots == 360
  assert found.mean_tokens_ci == pytest.approx(alone.mean_tokens_ci)
  resampled = rng.choice(tokens, (4000, 60)).mean(axis=1)
  expected = np.quantile(resampled, [0.025, 0.975])
  np.testing.assert_allclose(found.mean_tokens_ci, expected, rtol=0.02)


def test_rows_with_other_numbers_of_cots_weigh_by_them():
  rows = [row('a', ['', ''], [1, 2]), row('b', [''], [9])]
  assert facts(rows, num_cots=2).mean_tokens == 4.0


def test_without_tokens_of_every_cot_there_is_no_figure_but_a_reason():
  rows = [row('a', ['x'], [3]), row('b', ['y'])]
  found = facts(rows)
  assert facts([row('a', ['x'], [3, 4]), *rows[1:]], num_cots=2).reason
  assert found.mean_tokens is found.p90_tokens is found.mean_tokens_ci is None
  assert found.reason == (
    'mean_tokens, median_tokens, p90_tokens: not told by 1 of 2 rows; '
    f'{NO_OVERLAP}'
  )
  assert found.mean_words == 1
  text = report_writing.report_markdown(reports.report(cot_texts=[found]))
  assert 'CoTs of tract on flask: mean\\_tokens' in text


def test_they_stand_in_the_report():
  found = cot_texts.CotTexts(
    *('tract', 'flask', 9, 12.34, 0.5, 40.25, (39.0, 42.0), 38.0, 61.5),
    *(0.125, (0.1, 0.15), 0.25, (0.2, 0.3), 9),
  )
  report = reports.report(cot_texts=[found])
  line = (
    '| tract | flask | 9 | 12.3 | .500 | 40.2 (39.0, 42.0) | 38.0 | 61.5 '
    '| .125 (.100, .150) | .250 (.200, .300) |'
  )
  assert line in report_writing.report_markdown(report)
  (content,) = json.loads(report_writing.metrics_json(report))['cot_texts']
  assert content['mean_tokens_ci'] == [39.0, 42.0]
  assert content['p90_tokens'] == 61.5
