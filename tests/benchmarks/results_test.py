"""Rows of results, by hand."""

import dataclasses
import json

import pytest

from benchmarks import results

VERSIONS = {'torch': '2', 'jax': '1'}


def test_a_row_has_the_medians_and_the_ratios_of_the_pairs():
  row = results.compared(
    'rows_per_sec_1_cot', [3.0, 8.0, 4.0], [2.0, 2.0, 5.0], VERSIONS
  )
  assert row == results.Row(
    name='rows_per_sec_1_cot',
    ours=4.0,
    theirs=2.0,
    # Of 1.5, 4 and 0.8: not the ratio of the medians, which is 2.
    ratio_median=1.5,
    ratio_min=0.8,
    ratio_max=4.0,
    runs=3,
    versions=VERSIONS,
  )


@pytest.mark.parametrize('name', ['load_secs', 'peak_memory_bytes_1_cot'])
def test_less_time_and_memory_give_a_ratio_above_1(name):
  row = results.compared(name, [1.0, 4.0, 2.0], [2.0, 2.0, 8.0], VERSIONS)
  assert (row.ours, row.theirs) == (2.0, 2.0)
  assert (row.ratio_min, row.ratio_median, row.ratio_max) == (0.5, 2.0, 4.0)


def test_pairs_have_two_sides():
  with pytest.raises(ValueError, match='shorter'):
    results.compared('a', [1.0, 2.0], [1.0], VERSIONS)


def test_a_file_keeps_rows_of_other_names(tmp_path):
  path = tmp_path / 'results' / 'sampling.json'
  results.write_results(path, [results.compared('a', [1.0], [2.0], VERSIONS)])
  results.write_results(
    path,
    [
      results.compared('b', [6.0], [3.0], VERSIONS),
      results.checked('c', 0.25, 7, VERSIONS),
    ],
  )
  results.write_results(path, [results.compared('a', [5.0], [2.0], VERSIONS)])
  rows = json.loads(path.read_text())
  keys = ['name', 'ours', 'theirs', 'ratio_median', 'ratio_min', 'ratio_max']
  assert [list(row) for row in rows] == [[*keys, 'runs', 'versions']] * 3
  assert [[row[key] for key in keys] for row in rows] == [
    ['a', 5.0, 2.0, 2.5, 2.5, 2.5],
    ['b', 6.0, 3.0, 2.0, 2.0, 2.0],
    ['c', 0.25, None, None, None, None],
  ]
  assert [row['runs'] for row in rows] == [1, 1, 7]


def test_a_file_keeps_rows_of_other_machines(tmp_path):
  path = tmp_path / 'training.json'
  chip, host = VERSIONS | {'machine': 'chip, host'}, VERSIONS | {'machine': 'h'}
  results.write_results(path, [results.compared('a', [1.0], [2.0], host)])
  results.write_results(path, [results.checked('a', 9.0, 3, chip)])
  results.write_results(path, [results.compared('a', [4.0], [2.0], host)])
  rows = results.read_results(path)
  assert [(row.machine, row.ours, row.theirs) for row in rows] == [
    ('h', 4.0, 2.0),
    ('chip, host', 9.0, None),
  ]
  assert results.by_machine(rows) == {'h': rows[:1], 'chip, host': rows[1:]}


def test_a_row_of_before_stays_as_it_is(tmp_path):
  path = tmp_path / 'training.json'
  results.write_results(path, [results.checked('a', 1.0, 3, VERSIONS)])
  before = json.loads(path.read_text())
  new = dataclasses.replace(
    results.checked('b', 2.0, 3, VERSIONS),
    work={'length': 512},
    commit='abc',
    other_cpus=0.25,
  )
  results.write_results(path, [new])
  found = json.loads(path.read_text())
  assert found[:1] == before
  assert {key: found[1][key] for key in found[1].keys() - before[0].keys()} == {
    'work': {'length': 512},
    'commit': 'abc',
    'other_cpus': 0.25,
  }
  assert results.read_results(path)[1] == new


def test_the_table_shows_units_of_any_size():
  text = results.table(
    [
      results.compared('memory', [1500.0], [3000.0], VERSIONS),
      results.checked('difference', 2.5e-6, 4, VERSIONS),
    ]
  )
  header, _, memory, difference = text.splitlines()
  assert header == 'unknown machine; torch 2, jax 1'
  assert memory.split() == (
    ['memory', '1,500', '3,000', '0.50', '(0.50', 'to', '0.50,', '1', 'pairs)']
  )
  assert difference.split() == ['difference', '2.5e-06']
