"""The template's file and the columns' names, as the config has them."""

import pytest

from tract_jax import types
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import config_check, row_settings


def with_file(tmp_path, content, **data):
  path = tmp_path / 'template.txt'
  path.write_bytes(content)
  return config_lib.merge({'data': {'template_path': str(path), **data}})


def problems_of(config):
  with pytest.raises(types.InputError) as error:
    row_settings.with_template(config)
  return str(error.value).splitlines()


def test_template_is_read(tmp_path):
  config = with_file(tmp_path, b'\xef\xbb\xbfIt:\r\n{response}\n\n')
  found = row_settings.with_template(config)
  assert found.data.template == 'It:\n{response}'
  assert config.data.template == ''
  plain = config_lib.merge({})
  assert row_settings.with_template(plain) is plain


@pytest.mark.parametrize(
  ('content', 'found'),
  [
    (b'\xff{response}', ['is not UTF-8']),
    (b'', ['has no field {response}']),
    (b'{respons}', ['{respons} is no field', 'has no field {response}']),
  ],
)
def test_bad_template_names_its_file(tmp_path, content, found):
  lines = problems_of(with_file(tmp_path, content))
  assert len(lines) == len(found)
  for line, message in zip(lines, found, strict=True):
    assert f'template.txt: {message}' in line


def test_template_that_is_not_there_or_there_twice(tmp_path):
  config = config_lib.merge({'data.template_path': str(tmp_path / 'none')})
  (line,) = problems_of(config)
  assert line.endswith('none: cannot be read: No such file or directory')
  config = with_file(tmp_path, b'{response}', template='{response}?')
  (line,) = problems_of(config)
  assert line.startswith('config.data.template_path: ')
  assert line.endswith(
    'another text than config.data.template; give one of them'
  )
  found = row_settings.with_template(with_file(tmp_path, b'{response}'))
  assert row_settings.with_template(found) == found


def test_row_format_is_the_configs():
  config = config_lib.merge(
    {
      'data.template': '{response}',
      'data.use_reference': False,
      'data.fields': ' score = human_score,response=a b ',
    }
  )
  found = row_settings.row_format(config)
  assert found.template == '{response}'
  assert not found.use_reference
  assert found.fields == {'score': 'human_score', 'response': 'a b'}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ('points=score', "'points' is not one of example_id, category"),
    ('score', "'score' is not like score=column"),
    ('score=', "'score=' is not like score=column"),
    ('score=a,score=b', "'score' stands twice"),
  ],
)
def test_bad_fields(fields, message):
  with pytest.raises(types.InputError) as error:
    config = config_lib.merge({'name': 'x', 'data.fields': fields})
    config_check.check_values(config)
  (line,) = str(error.value).splitlines()
  assert line.startswith(f'config.data.fields: {message}')


def test_bad_benchmark_names_are_told_with_all_else():
  config = config_lib.merge(
    {'name': 'x', 'data.benchmarks': 'my rows.json', 'data.too_long': 'cut'}
  )
  with pytest.raises(types.InputError) as error:
    config_check.check_values(config)
  lines = str(error.value).splitlines()
  assert [line.split(':')[0] for line in lines] == [
    'config.data.too_long',
    'config.data.benchmarks',
  ]
  assert "'my rows.json': name 'my rows'" in lines[1]
  assert lines[1].endswith('; write NAME=my rows.json')


def test_benchmark_of_the_hub_is_named_by_its_dataset():
  path = f'hf://datasets/org/flask@{"0" * 40}'
  assert row_settings.parse_benchmarks(path) == {'flask': path}
  assert row_settings.parse_benchmarks(f'{path}/a.json') == {
    'a': f'{path}/a.json'
  }


def test_files_of_other_systems():
  parse = row_settings.parse_others
  assert parse('') == []
  assert parse(' a/b = /x=y.json,a/b=z') == [
    ('a', 'b', '/x=y.json'),
    ('a', 'b', 'z'),
  ]


def test_bad_files_of_other_systems_are_told_all_at_once():
  text = 'a=x,a/b=,tract/b=x,a b/../c=x,d/e=x,d/e=x'
  config = config_lib.merge(
    {'name': 'x', 'evaluation.others': text, 'data.too_long': 'cut'}
  )
  with pytest.raises(types.InputError) as error:
    config_check.check_values(config)
  first, *lines = str(error.value).splitlines()
  assert first.startswith('config.data.too_long: ')
  found = [line.removeprefix('config.evaluation.others: ') for line in lines]
  assert found[:3] == [
    "'a=x' is not like SYSTEM/BENCHMARK=PATH",
    "'a/b=' is not like SYSTEM/BENCHMARK=PATH",
    "'tract/b=x': 'tract' is a method of ours; rename it",
  ]
  assert found[3].startswith("'a b/../c=x': name 'a b': used in a path")
  assert found[4].startswith("'a b/../c=x': name '../c': used in a path")
  assert found[5:] == ["'d/e=x' stands twice"]
