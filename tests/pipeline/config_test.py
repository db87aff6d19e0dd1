"""The configuration's keys, defaults and checks."""

import dataclasses
import importlib.util
import pathlib
import re
import sys

import pytest

from tests.training import stand_in_wandb
from tract_jax import types
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import config_check, row_settings
from tract_jax.training import optimizer

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def valid_config():
  config = config_lib.default_config()
  config.name = 'test'
  config.data.source = 'synthetic'
  config.model.lora_rank = 0
  return config


def problems(config):
  with pytest.raises(types.InputError) as caught:
    config_check.check(config)
  return str(caught.value).splitlines()


def test_defaults_are_the_papers_recipe():
  config = config_lib.default_config()
  train, sampling = config.train, config.sampling
  assert (config.model.lora_rank, config.model.lora_alpha) == (8, 16.0)
  assert (train.lr, train.warmup_fraction, train.num_epochs) == (1e-5, 0.1, 2)
  assert (train.batch_size, train.clip_norm, train.lambda_value) == (
    8,
    1.0,
    1.0,
  )
  assert (train.b1, train.b2, train.eps) == (0.9, 0.999, 1e-8)
  assert train.weight_decay == 0.0
  assert (sampling.temperature, sampling.top_p) == (1.0, 0.9)
  assert sampling.repetition_penalty == 1.03
  assert sampling.max_new_tokens == 1024
  assert config.data.validation_fraction == 0.05


@pytest.mark.parametrize(
  'path', sorted(CONFIGS.glob('*.py')), ids=lambda p: p.stem
)
def test_every_config_file_is_valid(path):
  spec = importlib.util.spec_from_file_location('experiment', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = config_lib.merge(module.get_config())
  if config.data.source == 'files':
    config.data.train_path = 'rows.json'
  config.name = path.stem
  config_check.check(config)


def test_unknown_keys_are_named_with_the_nearest():
  with pytest.raises(types.InputError) as caught:
    config_lib.merge(
      {'train': {'learning_rate': 1.0, 'batchsize': 4}, 'sede': 1}
    )
  lines = str(caught.value).splitlines()
  assert len(lines) == 3
  assert 'config.train.batchsize: no such key' in lines[1]
  assert 'nearest is config.train.batch_size' in lines[1]
  assert 'nearest is config.seeds' in lines[2]


def test_key_in_the_wrong_section_is_found():
  assert 'config.train.num_epochs' in config_lib.unknown_key('num_epochs')
  assert 'config.sampling.top_p' in config_lib.unknown_key('train.top_p')
  # Not the nearest, config.sampling.weights.
  assert 'config.sampling.slots' in config_lib.unknown_key('sampling.rows')


def test_values_of_another_type_are_named():
  with pytest.raises(types.InputError, match='config.train.lr.*str, not float'):
    config_lib.merge({'train': {'lr': 'high'}})
  assert config_lib.merge({'train': {'lr': 1}}).train.lr == 1.0
  assert config_lib.merge({'seeds': [1, 2]}).seeds == (1, 2)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('methods', ('tract', 'tarct')),
    ('methods', ()),
    ('name', '../../x'),
    ('predictors', ('mode',)),
    ('num_cots', 0),
    ('seeds', (0, 0)),
    ('model.dtype', 'float16'),
    ('model.lora_rank', -1),
    ('model.lora_alpha', 0.0),
    ('model.remat', 'some'),
    ('model.attention', 'flash'),
    ('score.marker', ' So'),
    ('data.source', 'web'),
    ('data.held_out_fraction', 1.0),
    ('data.max_length', 1),
    ('data.too_long', 'cut'),
    ('data.encode_processes', -1),
    ('pretrain.num_rows', -1),
    ('pretrain.lr', 0.0),
    ('pretrain.num_epochs', 0),
    ('train.lr', 0.0),
    ('train.lr', float('nan')),
    ('train.warmup_fraction', 1.5),
    ('train.batch_size', 0),
    ('train.lambda_value', -1.0),
    ('train.lambda_candidates', (1.0, 1.0)),
    ('train.lambda_candidates', (0.2, -1.0)),
    ('train.lambda_candidates', ('1',)),
    ('train.score_scale', 'sum'),
    ('train.release_device_batch', 0),
    ('train.release_accumulation', 0),
    ('train.score_loss', 'mse'),
    ('train.expectation', 'some'),
    ('train.off_grid_penalty', -0.1),
    ('train.score_target', 'median'),
    ('evaluation.tempered_temperature', 0.0),
    ('evaluation.conformal_level', 1.0),
    ('evaluation.overlap_cots', -1),
    ('evaluation.ties', 'first'),
    ('evaluation.tie_margin', -0.1),
    ('evaluation.tie_margin', float('inf')),
    ('train.logit_chunk', 0),
    ('sampling.temperature', -0.1),
    ('sampling.top_p', 0.0),
    ('sampling.max_new_tokens', 0),
    ('sampling.max_retries', -1),
    ('sampling.unfinished', 'keep'),
    ('sampling.num_self_cots', 0),
    ('sampling.slots', -1),
    ('sampling.mesh.tensor', -2),
    ('mesh.data', 0),
    ('hosts.heartbeat_secs', 0),
    ('mapping', 'vmap'),
    ('sampling.prefill_tokens', 0),
    ('evaluation.num_resamples', 10),
    ('wandb.project', 'a/b'),
    ('wandb.mode', 'on'),
    ('plan.topology', 'v5e'),
    ('plan.rows_per_chip', -1),
    ('plan.prompt_tokens', 0),
    ('plan.cot_tokens', 0),
  ],
)
def test_bad_value_is_named_with_its_key(key, value):
  config = valid_config()
  config_check.check(config)
  *folders, name = key.split('.')
  node = config
  for folder in folders:
    node = node[folder]
  node[name] = value
  assert problems(config)[0].startswith(f'config.{key}: {value!r} is not')


@pytest.mark.parametrize(
  ('key', 'value', 'reason'),
  [
    ('methods', (['ce'],), 'holds a list, no text or number'),
    ('seeds', ([0],), 'holds a list, no text or number'),
    ('seeds', (10**5000,), 'a number of 16610 bits'),
    ('num_cots', 10**400, 'a number of 1329 bits'),
    ('score.grid', (1.0, 2j), 'holds a complex, no text or number'),
    ('score.marker', 'is \udcff', 'is not UTF-8 text'),
    ('data.train_path', 'a\0b', 'holds a NUL'),
  ],
)
def test_value_that_no_rule_can_be_asked_about(key, value, reason):
  config = valid_config()
  config.data.source = 'files'
  *folders, name = key.split('.')
  node = config_lib.get(config, folders[0]) if folders else config
  node[name] = value
  assert problems(config) == [f'config.{key}: {reason}']


def test_batch_of_any_size_is_looked_at_in_no_time():
  config = valid_config()
  config.train.batch_size = config.train.micro_batch_size = 10**12 + 39
  config.train.micro_batch_size -= 1
  (line,) = problems(config)
  assert line.endswith('is not an integer of at least 1 and at most 1048576')


def test_sections_and_mappings_that_set_nothing():
  assert config_lib.merge({'train': {}}) == config_lib.default_config()
  for overrides, message in [
    (None, 'is NoneType, not a dictionary'),
    ([('seeds', (1,))], 'is list, not a dictionary'),
    ({'tran': {}}, 'config.tran: no such key'),
    ({'train': 1}, 'config.train: 1 is of type int'),
    ({1: 2}, 'config.1: no such key'),
    ({'train': {'lr': 10**5000}}, 'a number of thousands of digits is of'),
    ({'x\n' * 9**6: 1}, "config.'x\\nx"),
  ]:
    with pytest.raises(types.InputError) as error:
      config_lib.merge(overrides)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_problems_are_reported_at_once():
  config = valid_config()
  config.train.lr = -1.0
  config.train.batch_size = 6
  config.train.micro_batch_size = 4
  found = problems(config)
  assert len(found) == 2
  assert '4 does not divide config.train.batch_size 6; 3 does' in found[1]


def test_only_a_model_from_scratch_is_pretrained():
  config = valid_config()
  config.pretrain.num_rows = 8
  config_check.check(config)
  config.model.path = 'folder'
  assert problems(config) == [
    'config.pretrain.num_rows: 8 rows of the synthetic world are for a model '
    'from scratch; with config.model.path or config.data.source="files" set 0'
  ]


def test_variants_of_the_demo():
  config = config_lib.read_config(f'{CONFIGS / "demo.py"}:raft')
  config_check.check(config)
  assert config.methods == ('ce', 'raft')
  with pytest.raises(types.InputError, match="variant 'rafd'"):
    config_lib.read_config(f'{CONFIGS / "demo.py"}:rafd')


def read(name):
  config = config_lib.read_config(f'{CONFIGS / name}')
  config.data.train_path = 'rows.json'
  config_check.check(config)
  return config


@pytest.mark.parametrize('name', ['mistral', 'llama'])
def test_configs_of_the_paper_are_its_recipe_on_a_larger_batch_if_fast(name):
  paper, fast = read(f'{name}.py'), read(f'{name}.py:fast')
  recipe = config_lib.default_config()
  for key in ('lora_rank', 'lora_alpha', 'lora_targets'):
    assert paper.model[key] == fast.model[key] == recipe.model[key]
  own = {
    'batch_size',
    'micro_batch_size',
    'lr',
    'log_every',
    'checkpoint_every',
  }
  for key in set(recipe.train) - own:
    assert paper.train[key] == fast.train[key] == recipe.train[key], key
  assert (paper.train.batch_size, paper.train.lr) == (8, 1e-5)
  assert not paper.data.packing
  # 16 chips of 8 rows, 2 at a time.
  assert fast.train.batch_size % (16 * 8) == 0
  assert fast.train.micro_batch_size % (16 * 2) == 0
  assert (fast.train.lr, fast.data.packing) == (6e-5, True)
  # No step of sampling gathers weights.
  for config in (paper, fast):
    assert (config.sampling.mesh.fsdp, config.sampling.mesh.tensor) == (1, -1)
  # Their default workdirs: one does not go on with the other's.
  assert (paper.name, fast.name) == (name, f'{name}_fast')
  assert paper.model.path == fast.model.path
  with pytest.raises(types.InputError, match='\'fats\': there are "fast" and'):
    config_lib.read_config(f'{CONFIGS / name}.py:fats')


@pytest.mark.parametrize('name', ['mistral', 'llama'])
def test_the_full_configs_train_all_weights_on_64_rows_at_once(name):
  paper, full = read(f'{name}.py'), read(f'{name}.py:full')
  assert full.name == f'{name}_full'
  assert (full.model.lora_rank, full.model.remat) == (0, 'full')
  assert (full.train.batch_size, full.train.micro_batch_size) == (64, 0)
  assert (full.train.lr, full.data.packing) == (paper.train.lr, True)
  assert full.sampling == paper.sampling
  assert full.model.path == paper.model.path


def test_wandb_is_asked_for_where_it_is_installed(monkeypatch, tmp_path):
  config = valid_config()
  config.wandb.project = 'judges'
  stand_in_wandb.install(monkeypatch)
  config_check.check(config)
  # A folder of its files is no package.
  (tmp_path / 'wandb').mkdir()
  monkeypatch.delitem(sys.modules, 'wandb')
  monkeypatch.setattr(sys, 'path', [str(tmp_path)])
  assert problems(config) == [
    "config.wandb.project: 'judges' needs wandb, which is not installed; pip "
    "install -e '.[wandb]' does it"
  ]
  config_check.check(config, as_judge=True)  # Nothing is trained.
  config.wandb.project, config.wandb.entity = '', 'team'
  assert problems(config) == [
    "config.wandb.entity: 'team' without config.wandb.project"
  ]


def test_candidate_lambdas_need_validation_rows():
  config = valid_config()
  config.train.lambda_candidates = (0.2, 1)
  config_check.check(config)
  config.data.validation_fraction = 0.0
  assert 'config.data.validation_fraction is 0' in problems(config)[0]


def test_training_needs_rows_and_a_model():
  config = config_lib.default_config()
  found = problems(config)
  assert any('config.data.train_path: is empty' in line for line in found)
  assert any('config.model.path: is empty' in line for line in found)


def test_benchmarks_are_named_by_key_or_file():
  parse = row_settings.parse_benchmarks
  assert parse('') == {}
  assert parse('a=x/y.json, /data/mt_bench.jsonl') == {
    'a': 'x/y.json',
    'mt_bench': '/data/mt_bench.jsonl',
  }
  with pytest.raises(types.InputError, match='stands twice'):
    parse('a=x,a=y')
  for name in ('../a', 'a' * 129, 'a b'):
    with pytest.raises(types.InputError, match='used in a path'):
      parse(f'{name}=x')
  with pytest.raises(types.InputError, match="'mean' is the mean of all"):
    parse('mean=x')


def test_every_key_is_read():
  package = pathlib.Path(config_lib.__file__).parent
  files = [package.parent / 'main.py', *package.glob('*.py')]
  text = '\n'.join(
    path.read_text()
    for path in files
    if path.name not in ('config.py', 'config_check.py', 'config_joint.py')
  )
  # These are handed on as a whole, under the names of their takers' fields.
  whole = {
    f'train.{f.name}' for f in dataclasses.fields(optimizer.OptimizerConfig)
  }
  sections = ('mesh', 'sampling.mesh', 'hosts')
  whole |= {
    f'{section}.{key}'
    for section in sections
    for key in config_lib.get(config_lib.default_config(), section)
  }
  assert all(re.search(rf'config\.{section}\b', text) for section in sections)
  whole |= {'name'}
  unread = {
    key
    for key in config_lib.keys(config_lib.default_config()) - whole
    if not re.search(rf'\b{key if "." in key else f"config.{key}"}\b', text)
  }
  assert not unread
