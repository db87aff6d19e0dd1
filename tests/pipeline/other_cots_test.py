"""Several CoTs of other systems: with texts, without, and of other numbers."""

import dataclasses
import json

import pytest

from tests.pipeline import other_systems_report_test, other_systems_test

# From the first CoT the second row is wrong by 1; from both none is.
PROBS = [
  [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
  [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
  [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]],
  [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]],
]


def release_without_texts(tmp_path):
  content = other_systems_test.release(num_cots=2)
  content['probs'] = [probs for row in PROBS for probs in row]
  del content['cot_outputs']
  return other_systems_test.write(tmp_path, content)


def own_form_without_texts(tmp_path):
  rows = [
    dataclasses.replace(row, cots=[], distributions=probs)
    for row, probs in zip(other_systems_test.ours(), PROBS, strict=True)
  ]
  return other_systems_test.write(tmp_path, rows, 'rows.jsonl')


@pytest.mark.parametrize(
  'write', [release_without_texts, own_form_without_texts]
)
def test_all_count_where_no_texts_are_known(tmp_path, write):
  path = write(tmp_path)
  (found,) = other_systems_test.read(path)
  assert [row.cots for row in found.rows] == [['', '']] * 4
  assert [row.distributions for row in found.rows] == PROBS
  (file,) = found.files
  assert file.num_cots == 2
  content = other_systems_report_test.judged(tmp_path, path)
  rows = {
    r['num_cots']: r for r in content['rows'] if r['method'] == 'their.tract'
  }
  assert {n: r['rmse'] for n, r in rows.items()} == {1: 0.5, 2: 0.0}
  # Nothing is known of texts: no words is not what they have.
  assert [c['method'] for c in content['cot_texts']] == ['tract']


@pytest.mark.parametrize('lacking', [[0], [1], [0, 1]])
def test_decode_is_no_predictor_where_decoded_scores_lack(tmp_path, lacking):
  paths = [
    other_systems_test.write(
      tmp_path,
      other_systems_test.ours(
        seed, **({'decoded': []} if seed in lacking else {})
      ),
      f'{seed}.jsonl',
    )
    for seed in (0, 1)
  ]
  found = other_systems_test.read(*paths)[0].rows
  assert {row.seed for row in found if not row.decoded} == set(lacking)
  content = other_systems_report_test.judged(
    tmp_path, *paths, predictors=('decode', 'rail')
  )
  rows = [r for r in content['rows'] if r['method'] == 'their.tract']
  assert {r['predictor'] for r in rows} == {'rail'}
  assert {r['seed'] for r in rows} == {0, 1}


def test_decoded_scores_may_lack_in_all_rows_of_a_file_alone(tmp_path):
  rows = other_systems_test.ours()
  rows[2] = dataclasses.replace(rows[2], decoded=[])
  path = other_systems_test.write(tmp_path, rows)
  (line,) = other_systems_test.problems(path)
  assert line == f'{path}: line 3: decoded: of 0 CoTs, not of 2'


def test_rows_without_cot_have_one_place_and_no_text(tmp_path):
  rows = [
    dataclasses.replace(
      row, distributions=[probs], decoded=[1.0], finish_reasons=[''], cots=cots
    )
    for cots in ([], [''])
    for row, (probs, _) in zip(other_systems_test.ours(), PROBS, strict=True)
  ]
  for number, given in enumerate((rows[:4], rows[4:])):
    path = other_systems_test.write(tmp_path, given, f'{number}.jsonl')
    (found,) = other_systems_test.read(path)
    assert found.files[0].num_cots == 0


@pytest.mark.parametrize('cots', [[''], ['so'], ['so', '', 'on'], []])
def test_other_numbers_of_texts_are_named_with_their_lines(tmp_path, cots):
  rows = other_systems_test.ours()
  rows[2] = dataclasses.replace(rows[2], cots=cots)
  path = other_systems_test.write(tmp_path, rows)
  (line,) = other_systems_test.problems(path)
  assert line == f'{path}: line 3: cots: of {len(cots)} CoTs, not of 2'


def test_a_row_that_lacks_the_field_is_named(tmp_path):
  lines = [dataclasses.asdict(row) for row in other_systems_test.ours()]
  del lines[1]['cots']
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (line,) = other_systems_test.problems(path)
  assert line.startswith(f'{path}: line 2: ') and "'cots'" in line


def test_files_of_one_system_have_the_same_number_of_cots(tmp_path):
  paths = [
    other_systems_test.write(
      tmp_path,
      other_systems_test.release(num_cots=n, args={'seed': n}),
      f'{n}.json',
    )
    for n in (1, 2)
  ]
  (line,) = other_systems_test.problems(*paths)
  assert line == (
    f'{paths[1]}: distributions: of 2 CoTs, not of 1 as in {paths[0]}'
  )


def test_seeds_of_other_numbers_than_ours(tmp_path):
  """Rows are paired, and each side has all of its seeds."""
  paths = [
    other_systems_test.write(
      tmp_path,
      other_systems_test.release(args={'seed': seed}),
      f'{seed}.json',
    )
    for seed in (42, 43, 44)
  ]
  content = other_systems_report_test.judged(tmp_path, *paths)
  (difference,) = content['differences']
  assert difference['reason'] is None
  one = next(
    r
    for r in content['rows']
    if (r['method'], r['predictor'], r['num_cots']) == ('tract', 'rail', 1)
  )
  assert difference['mean'] == pytest.approx(one['pearson'] - 1)
  assert difference['ci'][0] <= difference['mean'] <= difference['ci'][1]
  assert (difference['seeds'], difference['seeds_b']) == ([0, 1], [42, 43, 44])
  text = (tmp_path / 'run' / 'report' / 'report.md').read_text()
  assert '| 2 and 3 | 4 |' in text
