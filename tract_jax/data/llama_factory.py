"""A dataset as LLaMA-Factory reads it, so that PyTorch users can train on it.

A folder for its `dataset_dir`: `dataset_info.json` describes a file for each
split, a JSON list of rows in its alpaca format:

  {"instruction": "Rate this ...", "output": "Clear. So the overall score is 4",
   "system": "Be fair."}

The keys are those of the data folder's README in hiyouga/LLaMA-Factory. Its
template adds the start token, the turns and the end token to these texts.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json

from etils import epath

from tract_jax.data import manifest

INFO = 'dataset_info.json'
_COLUMNS = {'prompt': 'instruction', 'response': 'output', 'system': 'system'}


@dataclasses.dataclass(frozen=True)
class Row:
  """One training row.

  Attributes:
    instruction: text of the user's turn.
    output: text of the target, score included.
    system: text of the system turn; "" where none.
  """

  instruction: str
  output: str
  system: str


def write(folder: epath.Path, splits: Mapping[str, Sequence[Row]]) -> None:
  """Writes a folder that LLaMA-Factory trains from.

  Args:
    folder: made if absent; files of these names are replaced.
    splits: {name of the dataset, and of its file: rows}; none without rows is
      written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  info = {}
  for name, rows in splits.items():
    if rows:
      file_name = f'{manifest.checked_name(name)}.json'
      info[name] = {'file_name': file_name, 'columns': _COLUMNS}
      _write_list(folder / file_name, rows)
  manifest.write_json_atomic(folder / INFO, info)


def _write_list(path: epath.Path, rows: Sequence[Row]) -> None:
  """A JSON list with a row on each line; it may be long."""
  with manifest.open_atomic(path) as file:
    for i, row in enumerate(rows):
      line = json.dumps(dataclasses.asdict(row), ensure_ascii=False)
      file.write((',\n' if i else '[\n') + line)
    file.write('\n]\n')
