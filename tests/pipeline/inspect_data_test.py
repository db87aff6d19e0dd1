"""What --task=inspect shows, in 100 columns, of small and real tokenizers."""

import dataclasses
import pathlib
import unicodedata

import numpy as np
import pytest

from tests.text import real_tokenizers, small_tokenizers
from tract_jax import types
from tract_jax.pipeline import build, inspect_data, read_data, shown_text
from tract_jax.pipeline import config as config_lib
from tract_jax.text import prompts, score_tokens

MT_BENCH = (
  pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'mt_bench_eval.json'
)


@pytest.fixture(scope='module')
def base():
  config = config_lib.merge({'data': {'source': 'synthetic'}})
  with config.unlocked():
    config.model.lora_rank = 0
  return build.build(config)


def with_tokenizer(base, tokenizer, **data):
  config = base.config.copy_and_resolve_references()
  with config.unlocked():
    config.data.update(data)

  def find(marker):
    return score_tokens.find_score_tokens(tokenizer, base.grid, marker)

  return dataclasses.replace(
    base,
    config=config,
    tokenizer=tokenizer,
    cot_scores=find(prompts.MARKER),
    bare_scores=find(''),
  )


def columns(line):
  return sum(2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in line)


def inspected(setup, data, capsys):
  capsys.readouterr()
  inspect_data.inspect(setup, data)
  printed = capsys.readouterr().out
  assert max(map(columns, printed.splitlines())) <= 100
  assert printed.replace('\n', '').isprintable()
  return printed


def test_everything_is_shown_of_one_example(base, capsys):
  setup = with_tokenizer(
    base, small_tokenizers.byte_level(), max_length=9000, too_long='drop'
  )
  prompt = '\x1b[31m' + 'w' * 500 + ' 字' * 300 + '\tthe </s>\n' * 99
  rows = [
    types.Example('gone', 'x' * 9000, 1.0, 'It is so.'),
    types.Example('seen', prompt, 4.0, 'It is good.'),
    *(types.Example(f'e{i}', 'a' * i, 2.0, 'It is so.') for i in range(99)),
  ]
  data = read_data.RunData(rows, [], {'bench': rows[1:4]})
  printed = inspected(setup, data, capsys)
  lines = printed.splitlines()
  flat = ' '.join(printed.split())
  num_prompt = len(setup.tokenizer.prompt_ids(prompt))
  assert f'bench: 3 prompts, the longest of {num_prompt} tokens' in lines
  assert '100 of 101 kept, 1 dropped (gone), none truncated' in flat
  assert 'the limit is 9000' in flat
  assert 'example seen, score 4:' in lines
  assert f'[prompt, {num_prompt} tokens]' in lines
  assert any('lines, ' in line and 'not shown ...>' in line for line in lines)
  assert '\\x1b[31m' in printed and '\\tthe </s>' in printed
  found = setup.cot_scores
  lead = len(setup.tokenizer.encode('It is good.')[0]) + len(found.lead_ids)
  at = num_prompt + lead
  (score,) = found.sequences[3]
  score_line = f'[score, {score} "4" at position {at}, 1 tokens]'
  assert lines[lines.index(score_line) + 1] == '  4'
  assert f'[CoT, {lead} tokens]' in lines
  assert 'start tokens: 2 (1 "<|im_start|>")' in lines
  bars = [line for line in lines if ' to ' in line and 'tokens #' in line]
  assert sum(int(line.split()[-1]) for line in bars) >= 98
  assert 'host memory of the encoded rows: 0.0 MiB' in printed
  for what in ('score tokens: 1=', 'model: ', 'parameters'):
    assert what in printed


def test_truncated_rows_are_counted_with_their_ids(base, capsys):
  setup = with_tokenizer(
    base, small_tokenizers.byte_level(), too_long='truncate', max_length=1200
  )
  rows = [types.Example('long', 'the user asks ' * 99, 4.0, 'It is good.')]
  # What reading the rows does.
  fitted, report = read_data.fit_prompts.fit(
    setup, rows, read_data.TRAINING, trained=True
  )
  fits = {read_data.TRAINING: report, 'bench': report}
  data = read_data.RunData(fitted, [], {'bench': fitted}, fits=fits)
  printed = ' '.join(inspected(setup, data, capsys).split())
  counts = '1 truncated (long), 0 that no cut makes fit'
  assert printed.count(counts) == 2
  assert '[...]' in printed


def test_rows_are_shown_as_the_methods_train_on_them(base, capsys):
  setup = with_tokenizer(
    base, small_tokenizers.byte_level(), max_length=200, too_long='error'
  )
  rows = [types.Example('a', 'the user', 4.0, 'It is good. ' * 99)]
  data = read_data.RunData(rows, [], {})
  with pytest.raises(types.InputError, match='more than data.max_length 200'):
    inspect_data.inspect(setup, data)
  with setup.config.unlocked():
    setup.config.methods = ('raft', 'ce')
  printed = inspected(setup, data, capsys)
  assert 'training rows without CoT: 1 of 1 kept' in printed
  assert '[CoT, 0 tokens]' in printed


def test_judge_without_training_rows_has_its_prompts_shown(base, capsys):
  setup = with_tokenizer(base, small_tokenizers.byte_level())
  rows = [types.Example('a', 'the user', None)]
  printed = inspected(setup, read_data.RunData([], [], {'b': rows}), capsys)
  assert 'b: 1 prompts, the longest of' in printed
  assert 'kept' not in printed


@pytest.mark.parametrize('most', [3, 4, 10])
def test_block_elides_its_middle_and_says_how_much(most):
  text = '\n'.join(f'line {i}' for i in range(10))
  lines = shown_text.block(text, most).split('\n')
  assert len(lines) == most
  assert lines[0] == '  line 0' and lines[-1] == '  line 9'
  if most < 10:
    (cut,) = (line for line in lines if 'not shown' in line)
    assert cut == (
      f'  <... {11 - most} lines, {6 * (11 - most)} characters not shown ...>'
    )


REAL = {
  'mistral': (real_tokenizers.mistral, (28740, 28750, 28770, 28781, 28782)),
  'llama3': (real_tokenizers.llama3, (16, 17, 18, 19, 20)),
}


@pytest.fixture(scope='module', params=REAL)
def real(request, tmp_path_factory):
  """(tokenizer as a model's folder holds it, the ids of 1 to 5)."""
  make, ids = REAL[request.param]
  return make(tmp_path_factory.mktemp('tokenizer')), ids


@pytest.mark.slow
def test_scores_of_real_tokenizers(real):
  tokenizer, ids = real
  grid = prompts.make_score_grid(range(11))
  for marker in (prompts.MARKER, ''):
    found = score_tokens.find_score_tokens(tokenizer, grid, marker)
    assert found.sequences[1:6] == tuple((i,) for i in ids)
    ten = {28740: (28740, 28734), 16: (605,)}[ids[0]]
    assert found.sequences[10] == ten
  text = 'Rate "</s> <|eot_id|> [INST]" from 1 to 5'
  given = tokenizer.prompt_ids(text)
  assert np.sum(given == tokenizer.hf.bos_token_id) == 1
  assert given[0] == tokenizer.hf.bos_token_id
  assert text in tokenizer.decode(given)


@pytest.mark.slow
@pytest.mark.skipif(not MT_BENCH.exists(), reason=f'{MT_BENCH} is not here')
def test_real_judgements_with_real_tokenizers(base, real, capsys):
  tokenizer, ids = real
  setup = with_tokenizer(
    base, tokenizer, source='files', train_path=str(MT_BENCH), max_length=4096
  )
  data = read_data.read_data(setup)
  data = dataclasses.replace(data, train=data.train[:64])
  printed = inspected(setup, data, capsys)
  encoded = read_data.encode_for_stage(setup, data.train, 'annotator', [], 'r')
  start = tokenizer.hf.bos_token_id
  for example, row in zip(data.train, encoded, strict=True):
    token = ids[int(example.score) - 1]
    assert row.targets[row.score_mask].tolist() == [token]
    assert row.inputs[0] == start
    assert np.sum(row.inputs == start) == 1 and start not in row.targets
    assert row.targets[-1] == tokenizer.eos_id
  first = data.train[0]
  at = 1 + int(np.flatnonzero(encoded[0].score_mask)[0])
  token = ids[int(first.score) - 1]
  assert f'[score, {token} "{first.score:g}" at position {at},' in printed
  assert f'start tokens: 1 ({start} ' in printed
  assert '64 of 64 kept, 0 dropped' in printed
