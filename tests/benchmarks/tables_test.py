"""The page's tables are those of the results files."""

import json

import pytest

from benchmarks import options, results, tables


def test_the_page_has_the_tables_of_the_results_files():
  text = tables.DOCS.read_text(encoding='utf-8')
  # If this fails: make bench-tables.
  assert tables.updated(text, options.RESULTS) == text
  for path in options.RESULTS.glob('*.json'):
    for row in json.loads(path.read_text()):
      # Of a curve, the figure heads a column.
      name = row['name'].split('.')[0]
      assert f'| `{name}` | ' in text


def test_ratios_of_the_results_are_above_1_where_ours_is_better():
  for path in options.RESULTS.glob('*.json'):
    for row in json.loads(path.read_text()):
      if row['runs'] == 1 and row['theirs'] is not None:
        made = results.compared(
          row['name'], [row['ours']], [row['theirs']], row['versions']
        )
        assert row['ratio_median'] == pytest.approx(made.ratio_median)


def test_a_table_by_hand(tmp_path):
  versions = {'jax': '1', 'machine': '2 x chip'}
  rows = [
    results.compared('load_secs', [1.0, 2.0], [2.0, 1.0], versions),
    results.compared('tokens_per_sec', [3000.0], [1500.0], versions),
    results.checked('check_a', 1e-6, 7, versions | {'jax': '2'}),
  ]
  results.write_results(tmp_path / 'b.json', rows)
  results.write_results(tmp_path / 'a.json', rows[:1])
  text = f'Before.\n\n{tables.BEGIN}\nold\n{tables.END}\n\nAfter.\n'
  found = tables.updated(text, tmp_path)
  assert tables.updated(found, tmp_path) == found
  before, lines, after = (
    found[: found.index('**b')],
    found[found.index('**b') : found.index(tables.END)],
    found[found.index(tables.END) :],
  )
  assert before.startswith(f'Before.\n\n{tables.BEGIN}\n\n**a.json**: ')
  assert lines.splitlines() == [
    '**b.json**: 2 x chip; jax 1 or 2.',
    '',
    '| | ours | theirs | ratio (least to most, pairs) |',
    '|---|---|---|---|',
    '| `load_secs` | 1.5 | 1.5 | 1.25 (0.50 to 2.00, 2) |',
    '| `tokens_per_sec` | 3,000 | 1,500 | 2.00 (2.00 to 2.00, 1) |',
    '| `check_a` | 1e-06 |  | of 7 |',
    '',
  ]
  assert after == f'{tables.END}\n\nAfter.\n'
  another = results.compared('a_secs', [1.0], [2.0], {'machine': 'chip'})
  results.write_results(tmp_path / 'b.json', [another])
  found = tables.updated(text, tmp_path).split('**b.json**: ')
  assert found[1] == lines.removeprefix('**b.json**: ')
  assert found[2].splitlines()[0] == 'chip; .'
  assert '| `a_secs` | 1 | 2 | 2.00 (2.00 to 2.00, 1) |' in found[2]
  with pytest.raises(ValueError, match='do not stand in the page'):
    tables.updated('Before.', tmp_path)
