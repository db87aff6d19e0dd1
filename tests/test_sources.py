"""What docs/sources.md names exists."""

import pathlib
import re

from tract_jax.objectives import losses, predictors, score_losses, targets
from tract_jax.pipeline import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_TEXT = (_ROOT / 'docs' / 'sources.md').read_text()
# They say when things are written; no number depends on them.
_BOOKKEEPING = {'log_every', 'checkpoint_every', 'max_checkpoints'}
# They say how fast CoTs come; no CoT depends on them.
_SAMPLING_SPEED = {
  'slots',
  'chunk_size',
  'steps_per_call',
  'prefill_tokens',
  'mesh',
}


def _problem(name: str) -> str | None:
  """Why `folder/module.function`, or a module alone, is not there."""
  module, _, function = name.partition('.')
  files = [
    path
    for folder in ('tract_jax', 'tests')
    for path in (_ROOT / folder).rglob(f'{module.rsplit("/", 1)[-1]}.py')
    if str(path.with_suffix('')).endswith(f'/{module}')
  ]
  if not files:
    return f'{name}: no such file'
  words = function.split('.') if function else []
  pattern = r'^\s*(def|class) {}\b'
  text = '\n'.join(path.read_text() for path in files)
  lost = [w for w in words if not re.search(pattern.format(w), text, re.M)]
  return f'{name}: no {lost[0]}' if lost else None


def test_functions_and_tests_of_the_sources_exist():
  rows = [line for line in _TEXT.splitlines() if line.startswith('| ')]
  # The last two columns; a bar within a formula is escaped.
  cells = [re.split(r'(?<!\\)\|', row)[-3:-1] for row in rows]
  names = [
    name
    for cell in cells
    for part in cell
    for name in re.findall(r'`([\w/]+(?:\.\w+)*)`', part)
  ]
  assert len(names) > 40
  assert not [problem for name in names if (problem := _problem(name))]


def test_names_that_do_not_exist_are_found():
  assert 'no such file' in _problem('objectives/lost')
  assert 'no lost' in _problem('objectives/losses.lost')
  assert _problem('types.ScoreGrid.nearest') is None


def test_every_key_of_training_and_sampling_is_there():
  config = config_lib.default_config()
  wanted = {
    *(key for key in config.train if key not in _BOOKKEEPING),
    *(f'pretrain.{key}' for key in config.pretrain),
    *(f'sampling.{key}' for key in set(config.sampling) - _SAMPLING_SPEED),
    'data.packing',
  }
  assert not [key for key in wanted if f'`{key}`' not in _TEXT]


def test_every_choice_is_there():
  choices = {
    'score_loss': score_losses.SCORE_LOSSES,
    'expectation': score_losses.EXPECTATIONS,
    'score_scale': losses.SCORE_SCALES,
  }
  rows = [f'`{key}` {name} |' for key in choices for name in choices[key]]
  rows += [f'| `{name}` |' for name in predictors.PREDICTORS]
  assert not [row for row in rows if row not in _TEXT]
  (target,) = [line for line in _TEXT.splitlines() if line.startswith('| y* |')]
  assert all(kind in target for kind in targets.KINDS)
