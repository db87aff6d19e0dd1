"""What a run does with rows at the limit of length, and with many rows."""

import dataclasses
import json

import numpy as np
import pytest

from tests.pipeline import run_test
from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.data import cache, encoding, row_pool
from tract_jax.pipeline import (
  build,
  config_check,
  encode_rows,
  read_data,
  tasks,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.text import prompts, score_tokens
from tract_jax.training import loop

HEAD = '###The instruction to evaluate:\n'
TAIL = '\n###Score Rubrics:\nIs it good?\n###Feedback:'
WORDS = ' '.join(f'word{i}' for i in range(200))
# Name: prompt, CoT. Words are about 5 tokens each, the rest about 60.
ROWS = {
  'short': (f'{HEAD}word{TAIL}', 'It is good.'),
  'long': (f'{HEAD}{WORDS}{TAIL}', 'It is good.'),
  'cot': (f'{HEAD}word{TAIL}', WORDS),
}


@pytest.fixture(scope='module')
def base():
  config = config_lib.merge({'data': {'source': 'synthetic'}})
  with config.unlocked():
    config.model.lora_rank = 0
  setup = build.build(config)
  tokenizer = small_tokenizers.byte_level()

  def find(marker):
    return score_tokens.find_score_tokens(tokenizer, setup.grid, marker)

  return dataclasses.replace(
    setup,
    tokenizer=tokenizer,
    cot_scores=find(prompts.MARKER),
    bare_scores=find(''),
  )


@pytest.fixture
def make(base, tmp_path):
  """(keys of the config) -> setup that trains on and is judged on ROWS."""
  path = tmp_path / 'rows.jsonl'
  rows = [
    {'example_id': name, 'prompt': prompt, 'score': 4, 'cot': cot}
    for name, (prompt, cot) in ROWS.items()
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))

  def make(**keys):
    config = base.config.copy_and_resolve_references()
    values = {
      'data.source': 'files',
      'data.train_path': str(path),
      'data.benchmarks': f'bench={path}',
      'data.validation_fraction': 0.0,
      'data.max_length': 400,
      'sampling.max_new_tokens': 50,
    }
    with config.unlocked():
      config.update_from_flattened_dict(
        values | {key.replace('__', '.'): value for key, value in keys.items()}
      )
    return dataclasses.replace(base, config=config)

  return make


def encode(setup, rows, source='annotator'):
  return read_data.encode_for_stage(setup, rows, source, [], 'rows')


def num_tokens(setup, example):
  return len(setup.tokenizer.prompt_ids(example.prompt))


def test_error_names_each_row(make):
  setup = make()
  data = read_data.read_data(setup)
  with pytest.raises(types.InputError) as error:
    encode(setup, data.train)
  lines = str(error.value).splitlines()
  assert [line.split()[1] for line in lines] == ['long:', 'cot:']
  for line in lines:
    assert line.endswith(
      'tokens are more than data.max_length 400; raise it or set data.too_long '
      'to drop or truncate'
    )


def test_drop_lists_them(make, capsys):
  setup = make(data__too_long='drop')
  data = read_data.read_data(setup)
  encoded = encode(setup, data.train)
  assert (len(encoded), encoded.ids) == (1, ('short',))
  assert '2 left out, too long (long, cot)' in capsys.readouterr().out
  assert not data.fits


def test_truncate_cuts_prompts_once_for_all(make, capsys):
  setup = make(data__too_long='truncate')
  plain = read_data.read_data(make())
  data = read_data.read_data(setup)
  printed = capsys.readouterr().out
  assert [e.example_id for e in data.train] == ['short', 'long']
  assert (
    'training rows: 1 prompts truncated (long); 1 cannot be made to fit, left '
    'out (cot)\n'
  ) in printed
  assert 'bench: 1 prompts truncated (long)\n' in printed
  short, long = data.train
  assert short == plain.train[0]
  assert ' [...] ' in long.prompt
  assert long.prompt.startswith(HEAD) and long.prompt.endswith(TAIL)
  # A sampled CoT of any length has its room.
  found = setup.cot_scores
  room = 400 - 50 - len(found.lead_ids) - len(found.sequences[0])
  assert room - 15 < num_tokens(setup, long) <= room
  # What is trained on is what is sampled from, and what is predicted.
  for row in (encode(setup, [long])[0], encode(setup, [long], 'none')[0]):
    given = setup.tokenizer.prompt_ids(long.prompt)
    np.testing.assert_array_equal(row.inputs[: len(given)], given)
  assert data.benchmarks['bench'][1].prompt == long.prompt
  # All that is told about the data in manifests knows of it.
  assert read_data.digest(data.train) != read_data.digest(plain.train[:2])
  assert data.fits[read_data.TRAINING].truncated_ids == ('long',)
  assert data.fits[read_data.TRAINING].unfit_ids == ('cot',)


def test_row_to_predict_stays_though_no_cut_makes_it_fit(make, capsys):
  setup = make(
    data__too_long='truncate', data__max_length=75, sampling__max_new_tokens=20
  )
  data = read_data.read_data(setup)
  assert not data.train
  assert [(e.example_id, e.prompt) for e in data.benchmarks['bench']] == [
    (name, prompt) for name, (prompt, _) in ROWS.items()
  ]
  assert (
    'bench: 0 prompts truncated; 3 cannot be made to fit, kept as they are '
    '(short, long, cot)'
  ) in capsys.readouterr().out


def test_lines_about_rows_fit_into_100_columns(make, capsys):
  path = make().config.data.train_path
  names = ','.join(f'a_name_as_long_as_this_{i}={path}' for i in range(9))
  read_data.read_data(make(data__benchmarks=names))
  printed = capsys.readouterr().out
  assert 'warning: 3 of 3 rows of a_name_as_long_as_this_8 are' in printed
  assert max(map(len, printed.splitlines())) <= 100


def test_a_templates_rubric_stays_whole(make, tmp_path):
  row = {'response': WORDS, 'rubric': 'Is it? ' * 30, 'score': 4, 'cot': 'So.'}
  path = tmp_path / 'parts.jsonl'
  path.write_text(f'{json.dumps(row)}\n' * 2)
  setup = make(
    data__too_long='truncate',
    data__template='{rubric}: {response}!',
    data__train_path=str(path),
    data__benchmarks=f'bench={path}',
  )
  data = read_data.read_data(setup)
  for example in (*data.train, *data.benchmarks['bench']):
    assert example.prompt.startswith(f'{row["rubric"]}: word0 ')
    assert ' [...] ' in example.prompt
    assert example.judged is None
  # What could have been cut makes no other data.
  other = [dataclasses.replace(e, judged=(0, 1)) for e in data.train]
  assert read_data.digest(other) == read_data.digest(data.train)


def test_room_depends_on_the_methods_and_on_new_tokens(make):
  def cut(**keys):
    setup = make(data__too_long='truncate', **keys)
    rows = read_data.read_data(setup).benchmarks['bench']
    return num_tokens(setup, rows[1])

  with_cot = cut()
  assert cut(sampling__max_new_tokens=100) < with_cot - 30
  assert with_cot + 40 < cut(methods=('raft',)) <= 399
  assert cut(methods=('raft', 'ce_cot')) == with_cot


def test_limit_without_room_for_a_prompt_is_told(make):
  setup = make(
    data__too_long='truncate', data__max_length=52, sampling__max_new_tokens=50
  )
  with pytest.raises(types.InputError, match='max_length: 52 leaves a trunc'):
    read_data.read_data(setup)
  config = setup.config
  with config.unlocked():
    config.data.max_length = 50
  with pytest.raises(types.InputError) as error:
    config_check.check(config)
  assert (
    'config.data.max_length: 50 leaves a truncated prompt no room beside '
    'config.sampling.max_new_tokens 50'
  ) in str(error.value).splitlines()
  for key, value in [('data.too_long', 'drop'), ('methods', ('raft',))]:
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({key: value})
    with pytest.raises(types.InputError) as error:
      config_check.check(other)
    assert 'leaves a truncated' not in str(error.value)


def test_prompt_that_cannot_be_tokens_is_named(make):
  setup = make(data__too_long='truncate')
  bad = types.Example('bad', '\ufdd0', 4.0)
  with pytest.raises(types.InputError, match='rows: example bad: text with'):
    read_data.fit_prompts.fit(setup, [bad], 'rows', trained=True)


def test_prompts_are_looked_at_only_where_they_become_tokens(make, tmp_path):
  path = tmp_path / 'bad.json'
  path.write_text(json.dumps([{'prompt': '\ufdd0', 'score': 4}]))
  setup = make(data__benchmarks=f'bench={path}')
  with pytest.raises(types.InputError, match='bench: example 1: text with'):
    read_data.read_data(setup)
  data = read_data.read_data(setup, predicts=False)
  assert data.benchmarks['bench'][0].score == 4.0


EXAMPLES = [types.Example(f'e{i}', 'word ' * i, 4.0) for i in range(30)]


@pytest.fixture
def many(monkeypatch, tmp_path):
  """A handful of rows counts as many; gives the cache's folder."""
  monkeypatch.setattr(row_pool, 'CHARS_PER_PROCESS', 100)
  monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'encoded'


def test_processes_and_cache_are_as_configured(make, many, monkeypatch, capsys):
  used = []
  encode_all = encoding.encode_all

  def record(*args, num_processes, **kwargs):
    used.append(num_processes)
    return encode_all(*args, num_processes=1, **kwargs)

  monkeypatch.setattr(encoding, 'encode_all', record)
  rows = {}
  for number, kept in [(1, False), (3, False), (2, True), (1, True)]:
    setup = make(data__encode_processes=number, data__encode_cache=kept)
    rows[number, kept] = encode(setup, EXAMPLES)
    assert many.exists() == kept
  # The last time it was read.
  assert used == [1, 3, 2]
  printed = capsys.readouterr().out
  assert f'rows: encoded rows: read from {many}' in printed
  assert 'rows: 30/30 rows' in printed
  assert 'rows/s in each of 3 processes' in printed
  first, *others = rows.values()
  for other in others:
    np.testing.assert_array_equal(first.tokens, other.tokens)


def test_few_rows_are_encoded_here_and_not_kept(make, many, monkeypatch):
  monkeypatch.setattr(row_pool, 'CHARS_PER_PROCESS', 10**7)
  encode(make(data__encode_processes=2), EXAMPLES)
  assert not many.exists()


def test_encoding_stops_when_asked(make):
  setup = make()
  with pytest.raises(loop.Interrupted, match='amid encoding training'):
    encode_rows.encode_rows(
      setup, EXAMPLES, setup.bare_scores, None, 'training', lambda: True
    )


def test_rows_with_cots_are_measured_before_those_without_are_trained_on(
  tmp_path,
):
  """The first stage has rows that fit; those of the second do not."""
  methods = ('raft', 'cot_raft')
  bare, with_cot = (
    max(part.lengths.max() for part in run.encoded(kind, [], ''))
    for run in [run_test.make_run(tmp_path / 'wide', methods=methods)]
    for kind in ('none', 'annotator')
  )
  assert bare < with_cot
  data = run_test.make_config().data.to_dict() | {'max_length': int(bare)}
  run = run_test.make_run(tmp_path / 'run', methods=methods, data=data)
  with pytest.raises(types.InputError, match='more than data.max_length'):
    tasks.execute(run, 'train')
  assert not (tmp_path / 'run' / 'raft').exists()
