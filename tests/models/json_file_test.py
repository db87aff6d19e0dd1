"""Small JSON files, whoever wrote them."""

import json

import pytest

from tract_jax import types
from tract_jax.models import json_file


@pytest.mark.parametrize(
  'content, said',
  [
    (None, 'No such file'),
    (b'', 'not JSON'),
    (b'{', 'not JSON'),
    (b'\xff\xfe{', 'not JSON'),
    (b'[1]', 'holds a list where an object is expected'),
    (b'null', 'holds a NoneType'),
    (b'{"a": NaN}', 'not JSON (NaN is not a finite number)'),
    (b'{"a": -Infinity}', 'not JSON (-Infinity is not a finite number)'),
    (b'{"a": 1e999}', 'not JSON (1e999 is not a finite number)'),
    (b'{"a": ' + b'1' * 30 + b'}', 'not JSON (a number of 30 digits)'),
    (b'{"a":' * 100_000, 'nested too deeply'),
    (b'{"a":' + b'[' * 100 + b']' * 100 + b'}', 'nested too deeply'),
    (b'{"a": "' + b'x' * 50_000_000 + b'"}', 'more than 16777216 bytes'),
  ],
)
def test_json_that_is_refused(tmp_path, content, said):
  if content is not None:
    (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(types.InputError) as caught:
    json_file.read(tmp_path / 'config.json')
  (line,) = str(caught.value).splitlines()
  assert line.startswith(f'{tmp_path}/config.json: ') and said in line


def test_json_that_is_read(tmp_path):
  value = {'a': [1, 2.5, None, 'ä'], 'b': {}}
  text = json.dumps(value, ensure_ascii=False)
  (tmp_path / 'config.json').write_text(text, encoding='utf-8')
  assert json_file.read(tmp_path / 'config.json') == value


def test_byte_order_mark_is_no_text(tmp_path):
  (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf{"a": 1}')
  assert json_file.read(tmp_path / 'a.json') == {'a': 1}
