"""The folder that LLaMA-Factory trains from."""

import json

from etils import epath

from tract_jax.data import llama_factory

ROWS = [
  llama_factory.Row('Rate "ä".\nNow.', 'Clear. So the overall score is 4', ''),
  llama_factory.Row('Rate b.', 'So the overall score is 1', 'Be fair.'),
]


def test_info_names_the_file_and_the_columns_of_each_dataset(tmp_path):
  folder = epath.Path(tmp_path) / 'new'
  llama_factory.write(folder, {'train': ROWS, 'one': ROWS[1:], 'empty': []})
  info = json.loads((folder / 'dataset_info.json').read_text())
  columns = {'prompt': 'instruction', 'response': 'output', 'system': 'system'}
  assert info == {
    'train': {'file_name': 'train.json', 'columns': columns},
    'one': {'file_name': 'one.json', 'columns': columns},
  }
  rows = json.loads((folder / 'train.json').read_text())
  assert rows == [
    {
      'instruction': 'Rate "ä".\nNow.',
      'output': 'Clear. So the overall score is 4',
      'system': '',
    },
    {
      'instruction': 'Rate b.',
      'output': 'So the overall score is 1',
      'system': 'Be fair.',
    },
  ]
  # A row on each line, for tools that look at lines.
  assert len((folder / 'train.json').read_text().splitlines()) == 4
  assert len(json.loads((folder / 'one.json').read_text())) == 1
  assert sorted(path.name for path in folder.iterdir()) == [
    'dataset_info.json', 'one.json', 'train.json',
  ]  # fmt: skip
