"""Tables of curves, by hand."""

import pytest

from benchmarks import curve_tables, results, tables

VERSIONS = {'jax': '1', 'machine': 'chip'}


def row(name, value):
  return results.checked(name, value, 1, VERSIONS)


def test_a_table_by_hand(tmp_path):
  rows = [
    row('tokens_per_sec.slots.16', 20.0),
    row('peak_memory_bytes.slots.16', 2000.0),
    row('tokens_per_sec.slots.4', 11.0),
    row('peak_memory_bytes.slots.4', 1000.0),
    row('read_rows_per_sec.data.1000', 500.0),
    row('read_rows_per_sec.data.3000', 500.0),
    # Measured for the larger size alone.
    row('cached_rows_per_sec.data.3000', 750.0),
  ]
  slots, slots_table, slots_growth, data, data_table, data_growth = (
    curve_tables.sections(rows)
  )
  assert (slots, data) == ('`slots`:', '`data`:')
  assert slots_table.splitlines() == [
    '| slots | `tokens_per_sec` |  | `peak_memory_bytes` |',
    '|---|---|---|---|',
    '| 4 | 11 | ▇▇▇▇▇▇ | 1,000 |',
    '| 16 | 20 | ▇▇▇▇▇▇▇▇▇▇ | 2,000 |',
  ]
  # 16 / 20 over 4 / 11 of a second; log 2.2 over log 4.
  assert slots_growth == (
    '- `tokens_per_sec`: 4 times the slots take 2.2 times as long (power 0.57).'
    ' The rate is highest at 16.'
  )
  assert data_table.splitlines()[2:] == [
    '| 1,000 | 500 | ▇▇▇▇▇▇▇▇▇▇ |  |  |',
    '| 3,000 | 500 | ▇▇▇▇▇▇▇▇▇▇ | 750 | ▇▇▇▇▇▇▇▇▇▇ |',
  ]
  assert data_growth == (
    '- `read_rows_per_sec`: 3 times the rows take 3 times as long (power 1.00).'
    ' The rate is highest at 1,000.'
  )
  results.write_results(tmp_path / 'curves.json', rows)
  page = tables.updated(f'{tables.BEGIN}{tables.END}', tmp_path)
  assert '**curves.json**: chip; jax 1.\n\n`slots`:\n\n| slots |' in page


def test_a_bend_is_told():
  rates = {1: 10.0, 4: 40.0, 2: 20.0, 8: 20.0}
  rows = [row(f'tokens_per_sec.batch.{n}', rate) for n, rate in rates.items()]
  *_, growth = curve_tables.sections(rows)
  # 8 / 20 over 1 / 10 of a second, and over 4 / 40.
  assert growth == (
    '- `tokens_per_sec`: 8 times the rows of an update take 4 times as long'
    ' (power 0.67); from 4 to 8, 2 times take 4 times as long (power 2.00).'
    ' The rate is highest at 4.'
  )


def test_the_other_side_has_a_column():
  compared = results.compared('tokens_per_sec.batch.2', [8.0], [4.0], VERSIONS)
  _, table, growth = curve_tables.sections([compared])
  assert table.splitlines()[0::2] == [
    '| rows of an update | `tokens_per_sec` |  | theirs |',
    '| 2 | 8 | ▇▇▇▇▇▇▇▇▇▇ | 4 |',
  ]
  assert not growth


@pytest.mark.parametrize(
  ('rate', 'power'), [(10.0, 1.0), (40.0, 0.0), (2.5, 2.0)]
)
def test_power_of_the_growth(rate, power):
  # Four times the work, at the same rate, at four times of it, at a quarter.
  found = curve_tables.growth_power((2, 10.0), (8, rate))
  assert found == pytest.approx(power)
