"""Configurations and command lines of any keys and values."""

import json
import os
import pathlib

from hypothesis import strategies as st

from tests.fuzz import properties, strategies
from tract_jax import main as main_lib
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import config_check, row_settings
from tract_jax.text import prompts

_DEMO = pathlib.Path(__file__).parents[2] / 'configs' / 'demo.py'
_KEYS = sorted(config_lib.keys(config_lib.default_config()))
_SECTIONS = sorted({key.split('.')[0] for key in _KEYS if '.' in key})
_keys = st.one_of(
  st.sampled_from(_KEYS),
  st.sampled_from(_KEYS),
  st.sampled_from(_SECTIONS),
  st.builds('{}.{}'.format, st.sampled_from(_KEYS), st.text(max_size=3)),
  st.text('abc.train_lr', max_size=12),
  strategies.texts(surrogates=True),
)
_values = st.one_of(
  strategies.json_values(),
  st.sampled_from(
    [10**5000, [10**5000], 2j, {}, {'x': {}}, (1, (2,)), b'x', ..., {1: 2},
     ['tract', ['ce']], 'hf_' + 'a1' * 12, 'gs://me:it@b/c'],
  ),
  st.sampled_from(['jit', 'int8', 'float32', 'v5e:4x4', 'a=b', 'a=b,a=c']),
)  # fmt: skip


@st.composite
def _of_its_type(draw) -> tuple[str, object]:
  """A key, and a value of its type."""
  key = draw(st.sampled_from(_KEYS))
  old = config_lib.get(config_lib.default_config(), key)
  whole = st.one_of(
    st.integers(-2, 20), st.integers(), st.just(10**400), st.just(2**63)
  )
  single = {
    bool: st.booleans(),
    int: whole,
    float: st.one_of(st.floats(), st.floats(0, 1)),
    str: st.one_of(strategies.texts(surrogates=True), st.just(old)),
  }
  if isinstance(old, tuple):
    return key, tuple(draw(st.lists(_values, max_size=3)))
  return key, draw(single[type(old)])


@properties.fuzzed(
  8,
  few=60,
  overrides=st.one_of(
    st.lists(_of_its_type(), max_size=4).map(dict),
    st.dictionaries(_keys, _values, max_size=2),
    st.dictionaries(
      st.one_of(st.sampled_from(_SECTIONS), st.integers(0, 3)),
      st.dictionaries(_keys, _values, max_size=3),
      max_size=3,
    ),
    _values,
  ),
)
def test_overrides(overrides):
  config = config_lib.merge(overrides)
  # Nothing but what is asked for has changed.
  default = config_lib.default_config()
  changed = {
    key
    for key in _KEYS
    if config_lib.get(config, key) != config_lib.get(default, key)
  }
  assert len(changed) <= len(dict(_flat(overrides)))
  for key, value in _flat(overrides):
    found = config_lib.get(config, key)
    if not isinstance(value, dict):
      value = tuple(value) if isinstance(value, list) else value
      assert found == value or found != found, key


def _flat(tree, root=''):
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from _flat(value, f'{root}{key}.')
    else:
      yield f'{root}{key}', value


@properties.fuzzed(
  6,
  few=60,
  given=st.lists(_of_its_type(), max_size=3),
  synthetic=st.booleans(),
  as_judge=st.booleans(),
)
def test_values_of_the_right_type(given, synthetic, as_judge):
  config = config_lib.merge(
    {'name': 'x', 'data.source': 'synthetic', 'model.lora_rank': 0}
    if synthetic
    else {'data.train_path': 'rows.json', 'model.path': 'model'}
  )
  for key, value in given:
    *sections, name = key.split('.')
    node = config_lib.get(config, '.'.join(sections)) if sections else config
    node[name] = value
  config_check.check(config, as_judge=as_judge)
  # What is accepted can name files, and be written down.
  for name in row_settings.parse_benchmarks(config.data.benchmarks):
    assert os.path.basename(name) == name not in ('', '.', '..')
  prompts.make_score_grid(config.score.grid, config.score.format)
  assert json.dumps(config.to_dict(), allow_nan=False)


_flags = st.one_of(
  st.builds(
    '--{}config.{}{}{}'.format,
    st.sampled_from(['', '', '', 'no']),
    st.one_of(st.sampled_from(_KEYS), _keys),
    st.sampled_from(['=', '=', '', ' ']),
    st.one_of(
      strategies.texts(surrogates=True),
      strategies.json_values().map(str),
      st.sampled_from(
        ['-' * 3000 + '1', '(' * 300, '0x' + 'f' * 5000, '("tract",)', '1e999',
         '{[]}', '[' * 90 + ']' * 90, '(0,)', '1', 'True', 'hf_' + 'a1' * 12]
      ),
    ),
  ),
  st.sampled_from(
    ['--task=run', '--task=predict', '--task=fly', '--workdir=x', '--workdir',
     '--workdir=gs://me:it@b', '--', '-', '--=', 'x', '--' + 'x' * 3000,
     '--flagfile=/', '--undefok=x', '--helpfull', '--config', '--noconfig']
  ),
  strategies.texts(surrogates=True),
)  # fmt: skip


@properties.fuzzed(
  1, with_file=st.booleans(), argv=st.lists(_flags, max_size=4)
)
def test_command_line(with_file, argv):
  argv = [a for a in argv if not a.startswith('--config=')]
  task, workdir, config = main_lib.parse(
    [f'--config={_DEMO}', *argv] if with_file else argv
  )
  assert task in main_lib.TASKS and workdir
  assert config_lib.keys(config) == set(_KEYS)
