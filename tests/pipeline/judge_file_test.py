"""judge.json: written by a run, read by whoever judges, trusted by nobody."""

import dataclasses
import json

import pytest

from tract_jax import types
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import judge_file, methods

CONTENT = {
  'schema': 1,
  'method': 'cot_raft',
  'predictor': 'median',
  'with_cot': True,
  'score': {'grid': [0, 0.5, 2], 'format': '{:.1f}', 'marker': 'Score:'},
  'sampling': {
    'temperature': 0.5,
    'top_k': 7,
    'top_p': 0.8,
    'repetition_penalty': 1,
    'max_new_tokens': 77,
  },
  'data': {
    'max_length': 512,
    'too_long': 'truncate',
    'template': '{response}?',
    'use_reference': False,
    'system_prompt': 'Be strict.',
  },
}
JUDGE = judge_file.JudgeFile(
  method='cot_raft',
  predictor='median',
  with_cot=True,
  grid=(0.0, 0.5, 2.0),
  score_format='{:.1f}',
  marker='Score:',
  temperature=0.5,
  top_k=7,
  top_p=0.8,
  repetition_penalty=1.0,
  max_new_tokens=77,
  max_length=512,
  too_long='truncate',
  template='{response}?',
  use_reference=False,
  system_prompt='Be strict.',
)


def write_content(folder, content) -> None:
  (folder / judge_file.FILE).write_text(json.dumps(content))


def problems_of(folder) -> list[str]:
  with pytest.raises(types.InputError) as error:
    judge_file.read(folder)
  lines = str(error.value).splitlines()
  assert all(str(folder / 'judge.json') in line for line in lines)
  return lines


def test_every_field_is_read(tmp_path):
  write_content(tmp_path, CONTENT)
  assert judge_file.read(tmp_path) == JUDGE


def test_what_is_written_is_read(tmp_path):
  judge_file.write(tmp_path, JUDGE)
  assert json.loads((tmp_path / 'judge.json').read_text()) == CONTENT
  assert judge_file.read(tmp_path) == JUDGE


def test_no_file_is_none(tmp_path):
  assert judge_file.read(tmp_path) is None


def test_file_that_could_not_be_read_is_not_written(tmp_path):
  bad = dataclasses.replace(JUDGE, score_format='{:>1000}')
  with pytest.raises(types.InputError, match='score.format'):
    judge_file.write(tmp_path, bad)
  assert not list(tmp_path.iterdir())


def test_run_says_what_its_config_says(tmp_path):
  config = config_lib.merge(
    {'sampling.top_p': 0.5, 'data.max_length': 99, 'score.marker': 'Score:'}
  )
  content = judge_file.from_run(config, 'ce')
  assert (content.method, content.predictor) == ('ce', 'decode')
  assert not content.with_cot
  assert (content.top_p, content.max_length) == (0.5, 99)
  assert (content.marker, content.grid) == ('Score:', (1, 2, 3, 4, 5))
  judge_file.write(tmp_path, content)
  assert judge_file.read(tmp_path) == content


def changed(key, value):
  """CONTENT with one dotted key set."""
  content = json.loads(json.dumps(CONTENT))
  *sections, name = key.split('.')
  place = content
  for section in sections:
    place = place[section]
  place[name] = value
  return content


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('schema', 2, 'schema: 2 is not 1'),
    ('schema', True, 'schema: True is not 1'),
    ('method', 'tarct', "method: 'tarct' is not one of zero_shot"),
    ('method', ['tract'], "method: ['tract'] is not one of"),
    ('predictor', 'mean', "predictor: 'mean' is not one of decode"),
    ('with_cot', 1, 'with_cot: 1 is not true or false'),
    ('score.grid', [2, 1], 'score.grid: 1 does not ascend after 2'),
    ('score.grid', [], 'score.grid: is empty'),
    ('score.grid', ['1'], "score.grid: '1' is not a finite number"),
    ('score.grid', 5, 'score.grid: 5 is of type int'),
    ('score.format', '{0.__class__}', 'score.format'),
    ('score.format', '{:0>1000}', 'does not format a number'),
    ('score.format', '\n{:0>1000}', 'does not format a number'),
    ('score.grid', {}, 'score.grid: {} is of type dict, not tuple'),
    ('data.system_prompt', '\ud800', 'is not UTF-8'),
    ('score.format', 'x', 'score.format'),
    ('score.marker', '', 'score.marker'),
    ('score', [1], 'score: is unknown'),
    ('sampling.top_p', 0, 'sampling.top_p: 0.0 is not in (0, 1]'),
    ('sampling.top_p', '1', "sampling.top_p: '1' is of type str"),
    ('sampling.top_k', 1.5, 'sampling.top_k: 1.5 is of type float'),
    ('sampling.temperature', float('nan'), 'NaN is not a finite number'),
    ('sampling.slots', 8, 'sampling.slots: is unknown'),
    ('sampling.max_new_tokens', True, 'is of type bool'),
    ('sampling.max_new_tokens', 10**400, 'a number of 401 digits'),
    ('sampling.max_new_tokens', 10**12, 'of at least 1 and at most 1048576'),
    ('sampling.top_k', 10**12, 'at most 2147483647'),
    ('data.max_length', 1, 'data.max_length: 1 is not'),
    ('data.train_path', '/etc/passwd', 'data.train_path: is unknown'),
    ('model', {'path': 'other'}, 'model.path: is unknown'),
    ('data.template', 'no field', 'data.template: '),
    ('data.template', '{response.__class__}', 'needs {response}'),
    ('data.use_reference', 1, 'is of type int'),
    ('data.system_prompt', None, 'is of type NoneType'),
  ],
)
def test_bad_field_is_named(tmp_path, key, value, message):
  write_content(tmp_path, changed(key, value))
  assert any(message in line for line in problems_of(tmp_path))


@pytest.mark.parametrize('key', ['method', 'score', 'data'])
def test_missing_field_is_named(tmp_path, key):
  write_content(tmp_path, {k: v for k, v in CONTENT.items() if k != key})
  lines = problems_of(tmp_path)
  assert all(line.endswith('is missing') for line in lines)
  assert all(key in line for line in lines)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"schema": 1', 'not JSON'),
    (b'\xff\xfe\xff', 'not JSON'),
    (b'[' * 20_000, 'not JSON'),
    (b'[]', 'holds a list where an object is expected'),
  ],
)
def test_file_that_is_no_judge_file(tmp_path, content, message):
  (tmp_path / 'judge.json').write_bytes(content)
  (line,) = problems_of(tmp_path)
  assert message in line


def test_judge_takes_the_place_of_defaults(tmp_path):
  write_content(tmp_path, CONTENT)
  given = config_lib.merge({'train.lr': 0.5})
  config, used = judge_file.applied(given, tmp_path)
  assert dict(config.score) == {
    'grid': (0.0, 0.5, 2.0), 'format': '{:.1f}', 'marker': 'Score:',
  }  # fmt: skip
  assert (config.sampling.top_k, config.data.max_length) == (7, 512)
  assert (config.train.lr, config.methods) == (0.5, ('cot_raft',))
  assert config.model.lora_rank == 0
  stages = methods.METHODS['cot_raft'].stages
  assert used == {'cot_raft': methods.Method(stages, 'median', True)}
  # The config that was given stays as it was.
  assert given == config_lib.merge({'train.lr': 0.5})


def test_without_file_a_model_is_zero_shot(tmp_path):
  given = config_lib.merge({'sampling.top_k': 3})
  config, used = judge_file.applied(given, tmp_path)
  assert used == {'zero_shot': methods.METHODS['zero_shot']}
  assert (config.methods, config.model.lora_rank) == (('zero_shot',), 0)
  assert (config.sampling, config.score) == (given.sampling, given.score)


@pytest.mark.parametrize(
  ('asked', 'names'),
  [
    (('released',), ('released',)),
    (('released', 'tract', 'zero_shot'), ('released', 'zero_shot')),
    (('tract', 'ce'), ('zero_shot',)),
  ],
)
def test_without_file_methods_that_train_nothing_are_kept(
  tmp_path, asked, names
):
  given = config_lib.merge({'methods': asked})
  config, used = judge_file.applied(given, tmp_path)
  assert config.methods == tuple(used) == names
  assert used == {name: methods.METHODS[name] for name in names}


def test_asked_sampling_wins_and_another_grid_is_refused(tmp_path):
  write_content(tmp_path, CONTENT)
  given = {'sampling.top_k': 3, 'data.max_length': 64, 'score.marker': 'Score:'}
  config, _ = judge_file.applied(config_lib.merge(given), tmp_path)
  assert (config.sampling.top_k, config.sampling.top_p) == (3, 0.8)
  assert (config.data.max_length, config.score.marker) == (64, 'Score:')
  given = {'score.grid': (1.0, 2.0), 'score.marker': 'Points'}
  with pytest.raises(types.InputError) as error:
    judge_file.applied(config_lib.merge(given), tmp_path)
  lines = str(error.value).splitlines()
  assert len(lines) == 2
  assert '(1.0, 2.0), but the judge in' in lines[0]
  assert "'Points', but the judge in" in lines[1]
  assert "'Score:'" in lines[1]


def test_several_cots_of_a_judge_without_are_refused(tmp_path):
  write_content(tmp_path, {**CONTENT, 'with_cot': False})
  with pytest.raises(types.InputError, match='predicts without CoT; set 1'):
    judge_file.applied(config_lib.merge({'num_cots': 2}), tmp_path)


def test_file_of_an_earlier_version_has_no_prompt_settings(tmp_path):
  write_content(tmp_path, {**CONTENT, 'data': {'max_length': 512}})
  assert judge_file.read(tmp_path) == dataclasses.replace(
    JUDGE,
    too_long='error',
    template='',
    use_reference=True,
    system_prompt='',
  )


def test_judge_renders_the_prompts_that_it_has_learnt(tmp_path):
  write_content(tmp_path, CONTENT)
  config, _ = judge_file.applied(config_lib.merge({}), tmp_path)
  assert config.data.template == '{response}?'
  assert not config.data.use_reference
  assert config.data.system_prompt == 'Be strict.'
  assert config.data.too_long == 'truncate'
  other = {'data.template': '{response}!', 'data.system_prompt': 'Be mild.'}
  with pytest.raises(types.InputError) as error:
    judge_file.applied(config_lib.merge(other), tmp_path)
  lines = str(error.value).splitlines()
  assert len(lines) == 2
  assert "config.data.template: '{response}!', but the judge in" in lines[0]
  assert "config.data.system_prompt: 'Be mild.', but" in lines[1]
