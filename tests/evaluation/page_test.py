"""The report's page: nothing from elsewhere, and text that stays text."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest

from tests.evaluation import reports
from tract_jax import types
from tract_jax.evaluation import (
  calibration,
  charts,
  cot_curve,
  judgements,
  lambda_curve,
  page,
  plots,
  report_writing,
)
from tract_jax.text import prompts

GRID = prompts.make_score_grid([1, 2, 3, 4, 5])
EVIL = '</script><script>alert(1)</script>&amp;<img src=x onerror=alert(2)>\x00'


def prediction(i, score=3.0, value=2.5, **more):
  fields = {
    'example_id': f'row {i}',
    'seed': 0,
    'score': score,
    'prediction': value,
    'distributions': [[0.1, 0.5, 0.2, 0.1, 0.1], None],
    'decoded': [2.0, None],
    'cots': [f'CoT of {i}.', EVIL],
    'finish_reasons': ['marker', 'length'],
    'invalid_reason': None if value is not None else 'length',
  }
  return types.Prediction(**(fields | more))


def example(i, response='Fine.', **more):
  prompt = f'Judge {i}.\n###Response to evaluate:\n{response}\n###Feedback:'
  return types.Example(
    f'row {i}', prompt, 3.0, response=response, ratings=(2.0, 4.0), **more
  )


def group(rows, method='tract', benchmark='mt_bench', num_groups=1):
  return judgements.group(
    *(method, benchmark, 0, rows), fallback=3.0, num_groups=num_groups
  )


def judged(num_rows=3, **more):
  """Rows of which the first is evil and the last invalid."""
  rows = [prediction(i, value=1.0 + i) for i in range(num_rows - 1)]
  rows.append(prediction(num_rows - 1, value=None))
  examples = [example(0, EVIL), *(example(i) for i in range(1, num_rows))]
  fields = {
    'grid': GRID,
    'benchmarks': {'mt_bench': examples},
    'predicted': [reports.system('tract', 'mt_bench', 0)],
    'groups': [group(rows)],
  }
  return page.Judged(**(fields | more))


def made(report=None, **more):
  return page.report_html(report or reports.report(), judged(**more))


class _Parser(html.parser.HTMLParser):
  """Tags with their attributes, and the text of scripts and styles."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts = [], {}
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    if self.tags and self.tags[-1][0] in ('script', 'style'):
      tag, attrs = self.tags[-1]
      self.texts.setdefault(attrs.get('id', tag), data)


def test_nothing_comes_from_elsewhere_and_only_its_own_code_may_run():
  parsed = _Parser(made())
  for tag, attrs in parsed.tags:
    assert tag not in ('iframe', 'object', 'embed', 'img', 'base', 'form')
    for name, value in attrs.items():
      assert not name.startswith('on') and name not in ('src', 'style'), tag
      if name == 'href':
        assert value == 'data:,' or value.startswith('#')
  (policy,) = [
    attrs['content']
    for tag, attrs in parsed.tags
    if attrs.get('http-equiv') == 'Content-Security-Policy'
  ]
  rules = dict(rule.split(' ', 1) for rule in policy.split('; '))
  assert rules['default-src'] == "'none'"
  assert 'unsafe' not in policy and 'http' not in policy
  for kind in ('script', 'style'):
    digest = hashlib.sha256(parsed.texts[kind].encode()).digest()
    found = base64.b64encode(digest).decode()
    assert rules[f'{kind}-src'] == f"'sha256-{found}'"
  assert [tag for tag, _ in parsed.tags].count('script') == 2


def test_every_two_systems_can_be_chosen_of_a_few():
  report = reports.report()
  parsed = _Parser(made(report))
  pairs = json.loads(parsed.texts['data'])['differences']
  assert [(p['a'], p['b']) for p in pairs] == [
    (str(d.a), str(d.b)) for d in report.choice
  ]
  ours = report.differences[0]
  figures = {figure['name']: figure for figure in pairs[0]['figures']}
  assert [*figures] == [
    *('r', 'rho', 'tau-b', 'RMSE', 'MAE', 'within half a step'),
  ]
  assert figures['r']['mean'] == round(-ours.mean, 6)
  low, high = ours.figures['rmse'].ci
  assert figures['RMSE']['ci'] == [round(-high, 6), round(-low, 6)]
  none = pairs[-1]['figures'][0]
  assert none['mean'] is none['ci'] is None
  assert none['reason'] == 'flask: constant predictions'
  assert 'id="choice"' in made(report)
  assert 'id="choice"' not in made(reports.report([]))


def test_judgements_are_read_back_whatever_they_hold():
  text = made()
  parsed = _Parser(text)
  data = json.loads(parsed.texts['data'])
  assert text.count('alert(1)') >= 2 and '<script>alert' not in text
  first = data['rows'][data['judgements'][1]['row']]
  rows = {row['id']: row for row in data['rows']}
  assert first['id'] in rows and rows['row 0']['prompt'][1] == EVIL
  assert ''.join(rows['row 0']['prompt']) == example(0, EVIL).prompt
  assert rows['row 1']['ratings'] == [2.0, 4.0]
  by_id = {data['rows'][j['row']]['id']: j for j in data['judgements']}
  assert by_id['row 0']['cots'] == ['CoT of 0.', EVIL]
  assert by_id['row 0']['distributions'] == [[0.1, 0.5, 0.2, 0.1, 0.1], None]
  assert (by_id['row 0']['error'], by_id['row 0']['invalid']) == (2.0, None)
  # Invalid: as the fallback, and first.
  assert (by_id['row 2']['error'], by_id['row 2']['invalid']) == (0.0, 'length')
  assert data['judgements'][0] == by_id['row 2']
  assert data['grid'] == ['1', '2', '3', '4', '5']


def test_half_a_surrogate_pair_can_be_written(tmp_path):
  rows = [prediction(0, cots=['a\ud800b', '\u2028</SCRIPT>'])]
  report_writing.write_report(
    reports.report(), tmp_path, judged(groups=[group(rows)])
  )
  text = (tmp_path / 'report.html').read_text(encoding='utf-8')
  (one,) = json.loads(_Parser(text).texts['data'])['judgements']
  assert one['cots'] == ['a\ufffdb', '\u2028</SCRIPT>']


def test_text_of_the_figures_is_escaped():
  name = '<b onclick=x>"&\n'
  report = reports.report([reports.system(name, name, 0)])
  system = reports.system(name, name, 0)
  text = page.report_html(report, judged(predicted=[system]))
  assert '<b ' not in text
  assert '&lt;b onclick=x&gt;&quot;&amp;' in text
  assert not [tag for tag, _ in _Parser(text).tags if tag == 'b']


def test_rows_without_their_benchmark_are_shown_without_texts():
  data = json.loads(_Parser(made(benchmarks={})).texts['data'])
  assert {tuple(row['prompt']) for row in data['rows']} == {()}
  assert {tuple(row['ratings']) for row in data['rows']} == {(3.0,)}
  # A response that is not in its prompt (it was cut there) stands apart.
  cut = dataclasses.replace(example(1), prompt='Judge 1: Fi [...]')
  data = json.loads(_Parser(made(benchmarks={'mt_bench': [cut]})).texts['data'])
  row = next(row for row in data['rows'] if row['id'] == 'row 1')
  assert (row['prompt'], row['response']) == (['Judge 1: Fi [...]'], 'Fine.')


def test_of_many_rows_the_worst_and_others_are_shown():
  rng = np.random.default_rng(0)
  values = rng.uniform(1, 5, 5000)
  rows = [prediction(i, value=float(v)) for i, v in enumerate(values)]
  rows[77] = prediction(77, value=None)
  found = group(rows, num_groups=10)
  assert (len(found.shown), found.num_rows) == (200, 5000)
  assert found.shown[0].example_id == 'row 77'
  errors = np.abs(values - 3.0)
  errors[77] = np.inf
  shown = {int(row.example_id[4:]) for row in found.shown}
  worst = set(np.argsort(-errors)[:90].tolist())
  assert worst <= shown
  others = [errors[i] for i in shown - set(np.argsort(-errors)[:110].tolist())]
  assert 0.8 < np.mean(others) < 1.2
  # The random half is the same rows for another method.
  again = group(
    [dataclasses.replace(row, prediction=3.0) for row in rows], num_groups=10
  )
  same = {int(row.example_id[4:]) for row in again.shown} & shown
  assert len(same) > 90
  said = judgements.said([found, again])
  assert said.startswith('400 of 10,000 judgements are here: of each method')
  assert said in made(groups=[found, again])
  assert judgements.said([group(rows[:5])]) == 'All 5 judgements are here.'


def test_long_texts_do_not_make_a_page_of_any_size():
  rows = [prediction(i, cots=['x' * 100_000, '']) for i in range(2000)]
  found = group(rows)
  assert 50 < len(found.shown) < 200
  data = judgements.content([found], {}, GRID, 3.0)
  cot = data['judgements'][0]['cots'][0]
  assert len(cot) < 21_000 and '[... 80,000 characters ...]' in cot
  # One at least, whatever its size.
  assert len(group(rows[:1], num_groups=1000).shown) == 1


class TestCharts:
  def test_those_of_what_there_is(self):
    grid = np.arange(1.0, 6.0)
    system = reports.system('tract', 'flask', 0)
    points = [
      lambda_curve.LambdaPoint('tract', 2, 0, lam, 0.5, None, 0.1)
      for lam in (0.2, 1.0)
    ]
    curve = [
      cot_curve.CotCurvePoint('tract', 'rail', 'flask', 0, n, 0.5, 1.0, None)
      for n in (1, 2)
    ]
    report = reports.report(
      lambda_points=points,
      cot_curve=curve,
      calibrations=[calibration.calibrate(system, np.full((40, 5), 0.2), grid)],
    )
    captions = re.findall('<figcaption>(.*?)</figcaption>', made(report))
    assert captions == [
      'tract on mt_bench',
      'Number of CoTs on flask',
      'Differences',
      'Calibration on flask',
      'Choice of lambda',
    ]
    nothing = page.report_html(reports.report([]), page.NOTHING)
    assert '<figure>' not in nothing and 'None.' in nothing

  def test_too_many_scatters_are_counted(self):
    systems = [reports.system(f'm{i}', 'flask', 0) for i in range(30)]
    found = charts.scatters(systems, 3.0)
    assert len(found) == 25 and found[-1] == '<p>6 more plots are left out.</p>'

  def test_points_of_a_scatter_stand_where_they_are(self):
    x = np.array([1.0, 1.0, 5.0, 5.0, 3.0])
    y = np.array([1.5, 1.5, 4.0, 5.0, np.pi])
    series = plots.density('', x, y)
    expected = {(1.0, 1.5), (5.0, 4.0), (5.0, 5.0), (3.0, np.pi)}
    assert {tuple(map(float, p)) for p in series.points} == expected
    assert series.titles[0] == '2 rows'
    assert series.sizes[0] == max(series.sizes)

  @pytest.mark.parametrize('low', [-1e3, 0.0, 1e-4])
  @pytest.mark.parametrize('span', [1e-3, 0.7, 5.0, 1e6])
  def test_ticks_are_few_round_numbers_within(self, low, span):
    found = plots.ticks(low, low + span)
    assert 2 <= len(found) <= 8
    room = 1e-6 * span
    assert low - room <= found[0] and found[-1] <= low + span + room

  def test_forest_has_zero_and_every_interval(self):
    bars = [plots.Bar('a <minus> b', 0.1, 0.05, 0.2)]
    text = plots.forest('Title', 'label', bars)
    assert 'class="zero"' in text and 'a &lt;minus&gt; b' in text
    # Its scale goes from -.012 to .212 on 12 to 350 pixels.
    (x,) = re.findall('<circle class="s0" cx="([0-9.]+)"', text)
    assert float(x) == pytest.approx(12 + 0.112 / 0.224 * 338, abs=0.1)
    assert '0.100 (0.050, 0.200)' in text
