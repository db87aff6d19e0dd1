"""The command line: what is wrong is said in a line, with exit code 2."""

import json
import pathlib

import pytest

from tests.text import small_tokenizers
from tract_jax import main as main_lib
from tract_jax.models import config as model_config
from tract_jax.models import hf_config

DEMO = '--config=configs/demo.py'
FILES = '--config.data.source=files'
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def errors(capsys, *argv) -> list[str]:
  assert main_lib.main(list(argv)) == 2
  captured = capsys.readouterr()
  assert 'Traceback' not in captured.err
  return captured.err.splitlines()


def test_no_arguments_show_the_usage(capsys):
  assert main_lib.main([]) == 2
  assert main_lib.main(['--help']) == 0
  assert 'Exit codes' in capsys.readouterr().out


def test_overrides_reach_the_config():
  task, workdir, config = main_lib.parse([
    DEMO, '--task=train', '--config.train.lr=2e-5', '--config.seeds=(3,4)',
    '--config.data.max_eval_examples=8', '--config.methods=("ce",)',
  ])  # fmt: skip
  assert (task, workdir) == ('train', 'runs/demo')
  assert (config.train.lr, config.seeds) == (2e-5, (3, 4))
  assert (config.data.max_eval_examples, config.methods) == (8, ('ce',))


@pytest.mark.parametrize(
  ('argv', 'expected'),
  [
    ([], '--config=FILE'),
    ([DEMO, DEMO], '--config=FILE'),
    (['--config=configs/dmo.py'], 'configs/dmo.py: no such file'),
    ([DEMO, '--config.train.lrr=1'], 'nearest is config.train.lr'),
    ([DEMO, '--config.tran.lr=1'], 'nearest is config.train.lr'),
    ([DEMO, '--config.train.lr=fast'], 'fast'),
    ([DEMO, '--config.train.lr=-1'], 'config.train.lr: -1.0 is not above 0'),
    ([DEMO, '--config.methods=("tarct",)'], 'config.methods'),
    ([DEMO, '--task=fly'], 'fly'),
    ([DEMO, '--worker=3'], 'worker'),
    ([DEMO, '--flagfile=/'], 'Is a directory'),
    ([DEMO, '--noconfig.train.lrr'], 'nearest is config.train.lr'),
    ([DEMO, '--' + 'x' * 3000], 'recursion'),
    ([DEMO, '--config.seeds=' + '-' * 90_000 + '1'], 'MemoryError'),
    ([DEMO, '--config.seeds=([0],)'], 'config.seeds: holds a list'),
    ([DEMO, '--config.num_cots=0x' + 'f' * 400], 'config.num_cots: a number'),
    ([DEMO, 'more'], 'more: not a flag'),
    ([DEMO, '--config.score.grid=(2.0, 1.0)'], 'config.score.grid: 1 does not'),
    ([DEMO, '--config.score.format=x'], "config.score.format: 'x' does not"),
  ],
)
def test_bad_arguments_are_one_line(capsys, argv, expected):
  lines = (
    errors(capsys, *argv, '--task=run')
    if argv
    else errors(capsys, '--task=run')
  )
  assert len(lines) == 1
  assert expected in lines[0]


def write_rows(path, scores):
  rows = [
    {'prompt': f'Judge text {i}.', 'score': score, 'cot': 'Fine.'}
    for i, score in enumerate(scores)
  ]
  path.write_text(json.dumps(rows))
  return path


@pytest.fixture
def model_folder(tmp_path, in_process):
  """A folder with a tokenizer and an architecture, but no weights."""
  folder = tmp_path / 'model'
  tokenizer = small_tokenizers.byte_level()
  tokenizer.hf.save_pretrained(folder)
  architecture = model_config.ModelConfig(
    vocab_size=tokenizer.vocab_size,
    hidden_size=32,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=8192,
  )
  fields = hf_config.config_to_hf(architecture)
  (folder / 'config.json').write_text(json.dumps(fields))
  return folder


def run_files(tmp_path, model, rows, *more):
  return (
    '--config=configs/smollm2.py',
    f'--workdir={tmp_path / "run"}',
    f'--config.model.path={model}',
    f'--config.data.train_path={rows}',
    '--config.mesh.data=-1',
    '--config.mesh.fsdp=1',
    '--config.train.micro_batch_size=8',
    *more,
  )


def test_without_rows_to_predict_nothing_is_trained(
  capsys, tmp_path, model_folder
):
  rows = write_rows(tmp_path / 'rows.json', [1, 2, 3, 4, 5])
  command = run_files(
    tmp_path, model_folder, rows, '--config.data.held_out_fraction=0'
  )
  for task in ('run', 'predict', 'evaluate'):
    lines = errors(capsys, *command, f'--task={task}')
    assert len(lines) == 1
    assert lines[0].startswith('error: config.data.benchmarks: is empty, and ')
    assert not (tmp_path / 'run').exists()
  assert main_lib.main([*command, '--task=inspect']) == 0
  assert (
    'data: 4 training and 1 validation rows; none to predict'
    in capsys.readouterr().out
  )


def test_missing_files_are_named(capsys, tmp_path, model_folder):
  lines = errors(
    capsys, *run_files(tmp_path, model_folder, tmp_path / 'rows.json')
  )
  assert len(lines) == 1
  assert 'rows.json' in lines[0]
  rows = write_rows(tmp_path / 'rows.json', [1, 2])
  lines = errors(capsys, *run_files(tmp_path, tmp_path / 'none', rows))
  assert len(lines) == 1
  assert 'no such folder' in lines[0]


def test_score_outside_the_grid_names_file_row_and_value(
  capsys, tmp_path, model_folder
):
  rows = write_rows(tmp_path / 'rows.json', [1, 7, 2])
  lines = errors(capsys, *run_files(tmp_path, model_folder, rows))
  assert len(lines) == 1
  assert 'rows.json: row 2' in lines[0]
  assert 'score 7 is outside the grid 1..5' in lines[0]


def test_score_of_two_tokens_is_shown_with_both(capsys, tmp_path, model_folder):
  rows = write_rows(tmp_path / 'rows.json', [1, 10] * 20)
  more = ('--config.score.grid=(1.0, 10.0)', '--task=inspect')
  assert main_lib.main([*run_files(tmp_path, model_folder, rows, *more)]) == 0
  line = next(
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('score tokens: ')
  )
  one, ten = line.removeprefix('score tokens: ').split()[:2]
  assert ten.startswith(f'10={one.removeprefix("1=")}+')
