"""Targets beside what was measured, by hand."""

import pytest

from benchmarks import options, results, tables, targets


def compared(name, ours, theirs, machine):
  return results.compared(name, [ours], [theirs], {'machine': machine})


def test_a_table_by_hand(tmp_path):
  rows = [
    compared('tokens_per_sec_full_prompts', 1.25, 1.0, 'a'),
    compared('tokens_per_sec_full_prompts', 1.24, 1.0, 'b'),
    # Of memory less is better: .6 of theirs, and .62.
    compared('peak_memory_bytes_full_prompts', 30.0, 50.0, 'b'),
    compared('peak_memory_bytes_full_prompts', 31.0, 50.0, 'a'),
    # No target, on a machine of its own; and nothing to compare with.
    compared('load_secs', 1.0, 1.0, 'c'),
    results.checked('tokens_per_sec_prediction', 9.0, 3, {'machine': 'd'}),
  ]
  results.write_results(tmp_path / 'training.json', rows)
  page = tables.updated(f'{tables.BEGIN}{tables.END}', tmp_path)
  title, _, *lines = page.split(tables.BEGIN)[1].strip().splitlines()
  assert title == '**Targets**:'
  assert lines[:2] == ['| times theirs | asked | a | b |', '|---|---|---|---|']
  cells = {
    line.split(' | ')[0].removeprefix('| '): line.split(' | ')[1:]
    for line in lines[2 : 2 + len(targets.TARGETS)]
  }
  assert cells['tokens/s, all weights, rows with prompts'] == [
    'at least 1.25',
    '1.25, met',
    '1.24, **not met** |',
  ]
  assert cells['memory, all weights, rows with prompts'] == [
    'at most 0.60',
    '0.62, **not met**',
    '0.60, met |',
  ]
  assert cells['tokens/s of prediction'] == ['at least 1.00', '', ' |']
  assert len(cells) == len(targets.TARGETS)


def test_no_target_no_table():
  assert not targets.table([compared('load_secs', 1.0, 1.0, 'c')])


@pytest.mark.parametrize('target', targets.TARGETS, ids=lambda t: t.row)
def test_every_target_is_measured(target):
  names = {
    row.name
    for path in options.RESULTS.glob('*.json')
    for row in results.read_results(path)
    if row.ratio_median is not None
  }
  assert target.row in names
