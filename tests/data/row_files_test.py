import json

import pytest

from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.data import row_files

ROWS = [{'a': 1, 'b': 'é\u2028'}, {'a': 2, 'b': ''}, {'a': 3, 'b': 'c'}]


def write(folder, content, name='rows.data'):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def jsonl(rows, line_end='\n'):
  return line_end.join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.mark.parametrize('name', ['rows.json', 'rows.jsonl', 'rows'])
@pytest.mark.parametrize('bom', [b'', b'\xef\xbb\xbf'])
@pytest.mark.parametrize('line_end', ['\n', '\r\n'])
def test_content_tells_the_format(tmp_path, name, bom, line_end):
  as_list = json.dumps(ROWS, indent=1).replace('\n', line_end)
  for text in (
    as_list,
    jsonl(ROWS, line_end),
    jsonl(ROWS, line_end) + line_end,
  ):
    path = write(tmp_path, bom + text.encode(), name)
    assert row_files.read_rows(path)[0] == ROWS


def test_places(tmp_path):
  path = write(tmp_path, json.dumps(ROWS))
  assert row_files.read_rows(path)[1] == ['row 1', 'row 2', 'row 3']
  path = write(tmp_path, '\n' + jsonl(ROWS, '\n\n'))
  assert row_files.read_rows(path)[1] == ['line 2', 'line 4', 'line 6']


def test_only_the_first_rows(tmp_path):
  for text in (json.dumps(ROWS), jsonl(ROWS), jsonl(ROWS[:2]) + '\n{broken'):
    rows, places = row_files.read_rows(write(tmp_path, text), 2)
    assert rows == ROWS[:2]
    assert len(places) == 2


def test_long_line(tmp_path):
  rows = [{'a': 'x' * 10_000_000}]
  assert row_files.read_rows(write(tmp_path, jsonl(rows)))[0] == rows


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'is empty'),
    (' \r\n\n', 'is empty'),
    ('{"a": 1}\n{"a": 2\n{"a": 3}', 'line 2: JSON syntax'),
    ('{"a": 1}\n{"a": "tr', 'line 2: JSON syntax'),
    ('[\n{"a": 1},\n{"a": 2}', 'line 3: JSON syntax'),
    ('{\n  "a": 1\n}', 'line 1: JSON syntax'),
    ('{"a": "b\x00"}', 'line 1: JSON syntax: Invalid control character'),
    ('{"a": 1}'.encode('utf-16'), 'line 1: byte 0xff is not UTF-8'),
    ('a,b\n1,2\n', 'line 1: JSON syntax'),
    ('{"a": 1}\n{"a": 1, "a": 2}', "line 2: JSON: 'a' stands twice"),
    ('[{"b": {"a": 1, "a": 1}}]', "JSON: 'a' stands twice"),
    ('[' * 200_000, 'nested too deep'),
    ('{"a": 1}\n{"a": ' + '{"a":' * 200_000, 'line 2: JSON: nested too deep'),
    ('[' + '1' * 5000 + ']', 'JSON: a whole number with thousands of digits'),
    ('{"a": ' + '1' * 5000 + '}', 'line 1: JSON: a whole number with'),
    (b'{"a": 1}\n{"a": "\xe9"}\n', 'line 2: byte 0xe9 is not UTF-8'),
    (
      'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n',
      'is a git-lfs pointer',
    ),
    (b'PAR1 and then nothing', 'parquet: cannot be read'),
  ],
)
def test_broken_file_is_named(tmp_path, content, message):
  path = write(tmp_path, content)
  with pytest.raises(types.InputError) as error:
    row_files.read_rows(path)
  assert str(error.value).startswith(f'{path}: ')
  assert message in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_name_of_a_parquet_file_is_no_pattern(tmp_path):
  datasets = pytest.importorskip('datasets')
  for name in ('rows[1].parquet', 'rows*.parquet'):
    datasets.Dataset.from_list([{'a': name}]).to_parquet(tmp_path / name)
  for name in ('rows[1].parquet', 'rows*.parquet'):
    rows, _ = row_files.read_rows(str(tmp_path / name))
    assert rows == [{'a': name}]


def test_bucket_without_its_library_is_named(monkeypatch):
  fake_gcs.hide_library(monkeypatch)
  with pytest.raises(types.InputError) as error:
    row_files.read_rows('gs://bucket/rows.jsonl')
  (line,) = str(error.value).splitlines()
  assert line.startswith('gs://bucket/rows.jsonl: cannot be read: ')


def test_path_that_is_none():
  with pytest.raises(types.InputError, match='cannot be read: embedded null'):
    row_files.read_rows('a\0b')


def test_file_that_is_none(tmp_path):
  with pytest.raises(types.InputError, match='missing.json: no such file'):
    row_files.read_rows(str(tmp_path / 'missing.json'))
  with pytest.raises(types.InputError, match='cannot be read: Is a directory'):
    row_files.read_rows(str(tmp_path))


def test_parquet(tmp_path, monkeypatch):
  parquet = pytest.importorskip('pyarrow.parquet')
  pyarrow = pytest.importorskip('pyarrow')
  path = tmp_path / 'rows.anything'
  rows = [{'a': 1, 'b': ['x', 'y']}, {'a': 2, 'b': []}, {'a': 3, 'b': None}]
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  assert row_files.read_rows(str(path)) == (rows, ['row 1', 'row 2', 'row 3'])
  assert row_files.read_rows(str(path), 2)[0] == rows[:2]
  assert row_files.read_rows(str(path), 9)[0] == rows
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(types.InputError, match='"datasets" is needed'):
    row_files.read_rows(str(path))
