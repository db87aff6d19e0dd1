"""Other systems' prediction files beside ours: read, matched, judged."""

import dataclasses
import json

from etils import epath
import numpy as np
import pytest

from tests.pipeline import evaluate_test
from tract_jax import types
from tract_jax.parallel import distributed
from tract_jax.pipeline import (
  lambda_choice,
  methods,
  other_systems,
  self_cot,
  tasks,
)

GRID = evaluate_test.GRID
# Of the rows of evaluate_test.write_predictions, in the benchmark's order.
SCORES = [1.0, 2.0, 3.0, 2.0]
EXAMPLES = [
  types.Example(f'row {i}', 'p', score) for i, score in enumerate(SCORES)
]
BENCHMARKS = {'bench': EXAMPLES}


def release(order=(0, 1, 2, 3), num_cots=1, **changes):
  """A logits.json whose expected scores are exact, in this order."""
  probs = {1.0: [1.0, 0.0, 0.0], 2.0: [0.0, 1.0, 0.0], 3.0: [0.0, 0.0, 1.0]}
  texts = [[f'cot {i} {c}' for c in range(num_cots)] for i in order]
  return {
    'probs': [probs[SCORES[i]] for i in order for _ in range(num_cots)],
    'cot_outputs': texts if num_cots > 1 else [text for (text,) in texts],
    'labels': [SCORES[i] for i in order],
    'args': {'seed': 42, 'n_cot': num_cots, 'dataset': 'data/bench.json'},
    **changes,
  }


def write(tmp_path, content, name='logits.json'):
  """Writes a file as the release does, or lines as we do."""
  if isinstance(content, dict):
    text = json.dumps(content, indent=4)
  else:
    rows = map(dataclasses.asdict, content)
    text = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / name).write_text(text)
  return tmp_path / name


def read(*paths, benchmark='bench', **changes):
  others = ','.join(f'their.tract/{benchmark}={path}' for path in paths)
  config = evaluate_test.make_config(
    evaluation={'num_resamples': 100, 'others': others}, **changes
  )
  return other_systems.read(config, GRID, BENCHMARKS)


def problems(*paths, **changes):
  with pytest.raises(types.InputError) as error:
    read(*paths, **changes)
  return str(error.value).splitlines()


def ours(seed=0, **changes):
  rows = []
  for i, score in enumerate(SCORES):
    row = evaluate_test.prediction(i, seed, score, None, [0, 0, 0.5], 1.0)
    rows.append(dataclasses.replace(row, cots=['so', ''], **changes))
  return rows


@pytest.mark.parametrize('num_cots', [1, 2])
def test_release_is_matched_in_its_shuffled_order(tmp_path, num_cots):
  order = np.random.default_rng(42).permutation(4).tolist()
  assert order != [0, 1, 2, 3]
  (found,) = read(write(tmp_path, release(order, num_cots)))
  rows = {row.example_id: row for row in found.rows}
  for i, example in enumerate(EXAMPLES):
    row = rows[example.example_id]
    assert (row.seed, row.score) == (42, example.score)
    assert row.cots == [f'cot {i} {c}' for c in range(num_cots)]
    assert [p.index(1.0) + 1 for p in row.distributions] == (
      [example.score] * num_cots
    )
  (file,) = found.files
  assert file.form == 'release, shuffled with seed 42'
  assert (file.num_examples, file.num_cots) == (4, num_cots)


def test_release_shuffles_as_datasets_does():
  datasets = pytest.importorskip('datasets')
  for seed, number in ((42, 320), (7, 13)):
    table = datasets.Dataset.from_dict({'row': list(range(number))})
    expected = table.shuffle(seed=seed)['row']
    examples = [types.Example(str(i), 'p', float(i)) for i in range(number)]
    made = other_systems.release_file.ReleaseFile(
      [float(i) for i in expected], [[None]] * number, [['']] * number, seed
    )
    order, how = other_systems._order(made, examples)
    assert order == list(expected)
    assert how == f'shuffled with seed {seed}'


@pytest.mark.parametrize('args', [{}, {'args': {'seed': 42}}])
def test_file_in_our_order_without_cots(tmp_path, args):
  content = release()
  del content['args'], content['cot_outputs']
  (found,) = read(write(tmp_path, content | args))
  assert [row.example_id for row in found.rows] == [
    e.example_id for e in EXAMPLES
  ]
  assert {row.seed for row in found.rows} == {
    args.get('args', {}).get('seed', 0)
  }
  (file,) = found.files
  assert (file.form, file.num_cots) == ('release, in our order', 0)


def test_labels_of_other_rows_are_named(tmp_path):
  content = release()
  content['labels'][2] = 2.5
  (line,) = problems(write(tmp_path, content))
  assert line.startswith(f'{tmp_path}/logits.json: labels: row 3: 2.5 is not ')
  assert "for 'row 2', 3; 1 of 4 differ (in our order)" in line
  content = release((0, 1))
  (line,) = problems(write(tmp_path, content))
  assert 'labels: 2 rows, but the benchmark has 4; ' in line
  for missing in ('labels', 'probs'):
    content = release()
    del content[missing]
    (line,) = problems(write(tmp_path, content))
    assert line.endswith(f'logits.json: {missing}: missing')
  path = tmp_path / 'list.json'
  path.write_text(json.dumps([dataclasses.asdict(row) for row in ours()]))
  (line,) = problems(path)
  assert line.endswith('is a list; rows of ours are an object a line')
  # Rounding of a mean of ratings is none.
  content = release()
  content['labels'][2] = 3.0 + 1e-9
  (found,) = read(write(tmp_path, content))
  # Scores are ours to the bit: else rows could not be paired.
  assert [row.score for row in found.rows] == SCORES


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'labels': 'x'}, "labels: 'x' is not a list"),
    ({'probs': {}}, 'probs: {} is not a list'),
    ({'labels': []}, 'labels: has no rows'),
    ({'probs': []}, 'probs: 0 distributions are no multiple of 4 labels'),
    ({'probs': [[1, 0, 0]] * 6}, 'probs: 6 distributions are no multiple'),
    ({'args': []}, None),
    ({'args': [1]}, 'args: [1] is not an object'),
    ({'args': {'seed': -1}}, 'args.seed: -1 is not a whole number'),
    ({'args': {'seed': '42'}}, "args.seed: '42' is not a whole number"),
    ({'labels': [1, 2, True, 2]}, 'labels: row 3: True is no finite number'),
    ({'labels': [1, 2, '3', 2]}, "labels: row 3: '3' is no finite number"),
    ({'probs': [[1, 0]] * 4}, 'probs: entry 1: [1, 0] is not 3 probabilities'),
    ({'probs': [[1, 0.5, 0]] * 4}, 'probs: entry 1: [1, 0.5, 0] is not proba'),
    ({'probs': [[1, -1, 0]] * 4}, 'probs: entry 1: [1, -1, 0] is not probab'),
    ({'probs': [['1', 0, 0]] * 4}, "probs: entry 1: ['1', 0, 0] is not probab"),
    ({'probs': [[float('inf'), 0, 0]] * 4}, 'probs: entry 1: [inf, 0, 0] is'),
    ({'cot_outputs': 'x'}, "cot_outputs: 'x' is not a list with each of 4"),
    ({'cot_outputs': ['x']}, 'cot_outputs: 1 is not a list with each of 4'),
    ({'cot_outputs': ['', '', 5, '']}, 'cot_outputs: row 3: 5 is not 1 texts'),
    ({'cot_outputs': ['', ['', ''], '', '']}, "row 2: ['', ''] is not 1 texts"),
  ],
)
def test_bad_fields_of_a_release_file(tmp_path, changes, message):
  path = write(tmp_path, release(**changes))
  if message is None:
    read(path)
    return
  line = problems(path)[0]
  assert line.startswith(f'{path}: ')
  assert message in line


def test_distributions_that_are_not_finite_are_invalid_and_counted(tmp_path):
  content = release()
  content['probs'][1] = [float('nan'), 0.5, 0.0]
  content['probs'][2] = [None, None, None]
  # Half precision: more than 1 by rounding.
  content['probs'][0] = [1.004, 0.0, 0.0]
  (found,) = read(write(tmp_path, content))
  by_id = {row.example_id: row for row in found.rows}
  assert by_id['row 1'].distributions == by_id['row 2'].distributions == [None]
  assert by_id['row 1'].invalid_reason == 'no finite distribution'
  assert by_id['row 0'].invalid_reason is None


def test_our_own_rows_are_matched_by_id_in_any_order(tmp_path):
  rows = [*ours(1)[::-1], *ours(5)]
  unrated = [dataclasses.replace(row, score=None) for row in rows]
  for number, given in enumerate((rows, unrated)):
    (found,) = read(write(tmp_path, given, f'{number}.jsonl'))
    assert [row.score for row in found.rows] == [*SCORES[::-1], *SCORES]
    assert [f.seed for f in found.files] == [1, 5]
    assert {(f.num_cots, f.form) for f in found.files} == {(2, 'ours, by id')}


def test_other_ids_scores_and_numbers_are_named_with_their_lines(tmp_path):
  rows = ours()
  rows[1] = dataclasses.replace(rows[1], example_id='row 9')
  rows[2] = dataclasses.replace(rows[2], score=2.0)
  rows[3] = dataclasses.replace(rows[3], example_id='row 0', score=1.0)
  path = write(tmp_path, rows)
  assert problems(path) == [
    f"{path}: line 2: example_id: 'row 9' is not in the benchmark of 4 rows",
    f"{path}: line 3: score: 2 is not that of the benchmark for 'row 2', 3",
    f"{path}: line 4: example_id: 'row 0' stands twice with seed 0",
    f'{path}: example_id: 2 of 4 rows of the benchmark have no prediction with '
    "seed 0, such as 'row 1'",
  ]
  rows = ours()
  rows[0] = dataclasses.replace(rows[0], distributions=[[0.5, 0.5], None])
  rows[1] = dataclasses.replace(rows[1], decoded=[4.0, None])
  (first, second) = problems(write(tmp_path, rows))
  assert first.endswith('line 1: 2 scores, the grid has 3')
  assert second.endswith('line 2: score 4 is outside the grid 1..3')
  rows = ours()
  rows[1] = dataclasses.replace(rows[1], decoded=[1.0])
  (line,) = problems(write(tmp_path, rows))
  assert line.endswith('line 2: decoded: of 1 CoTs, not of 2')
  rows = ours()
  rows[0] = dataclasses.replace(rows[0], cot_tokens=[4])
  (line,) = problems(write(tmp_path, rows))
  assert line.endswith('line 1: cot_tokens: of 1 CoTs, not of 2')
  read(write(tmp_path, ours(cot_tokens=[4, 0])))


def test_problems_of_all_files_are_told_at_once(tmp_path):
  good = write(tmp_path, release())
  lines = tmp_path / 'rows.jsonl'
  lines.write_text('{"probs": []}\n{"labels": 1}\n')
  pickled = tmp_path / 'rows.pkl'
  pickled.write_bytes(b'\x80\x04\x95\n\x00')
  found = problems(good, lines, pickled, tmp_path / 'none', good.parent)
  assert [line.split(': ')[0] for line in found] == [
    *[str(lines)] * 2,
    *(str(tmp_path / name) for name in ('rows.pkl', 'none')),
    str(tmp_path),
  ]
  assert 'line 1: ' in found[0]
  assert found[2].endswith('is not UTF-8; convert the file to UTF-8')
  assert found[3].endswith('none: no such file')
  assert found[4].endswith('cannot be read: Is a directory')
  (line,) = problems(good, benchmark='flask')
  assert line == (
    "config.evaluation.others: 'their.tract/flask': the run has no such "
    'benchmark (there are: bench)'
  )
  (line,) = problems(good, write(tmp_path, release(), 'again.json'))
  assert line.endswith(f'seed 42 of their.tract on bench is in {good}, too')


class _Run:
  """As run.Run, as far as evaluation needs it."""

  def __init__(self, config, workdir):
    content = {'config': config, 'grid': GRID, 'methods': methods.METHODS}
    self.setup = type('Setup', (), content)
    self.data = type('Data', (), {'benchmarks': BENCHMARKS, 'train': []})
    self.host = distributed.ONLY_HOST
    self.workdir = workdir
    self.num_worked = 0
    self.stages = []

  def stage(self, *which):
    self.stages.append(which)

  def predict(self, method, seed):
    pass

  def join_predictions(self, method):
    pass

  def meet(self, where):
    pass

  def stage_folder(self, *unused_which):
    return self.workdir / 'stage'

  self_cot_folder = None


def test_a_run_reads_the_files_before_it_trains(tmp_path, monkeypatch):
  monkeypatch.setattr(lambda_choice, 'curves', lambda *_: [])
  monkeypatch.setattr(self_cot, 'read_counts', lambda *_: [])
  workdir = epath.Path(tmp_path / 'run')
  evaluate_test.write_predictions(workdir)
  path = write(tmp_path, release())
  for text, message in (
    (f'a/bench={path}', ''),
    ('a/bench=no', 'no such file'),
  ):
    config = evaluate_test.make_config(
      evaluation={'num_resamples': 100, 'gap_examples': 0, 'others': text}
    )
    run = _Run(config, workdir)
    if message:
      with pytest.raises(types.InputError, match=message):
        tasks.execute(run, 'run')
      assert not run.stages
      tasks.execute(run, 'predict')
      continue
    tasks.execute(run, 'run')
    assert run.stages and run.num_worked == 1
  content = json.loads((workdir / 'report' / 'metrics.json').read_text())
  assert [f['method'] for f in content['other_systems']] == ['a']


def test_our_own_rows_may_have_nan_and_blank_lines(tmp_path):
  rows = ours()
  rows[1] = dataclasses.replace(rows[1], distributions=[[np.nan] * 3, None])
  path = write(tmp_path, rows, 'rows.jsonl')
  path.write_text(path.read_text() + '\n\n')
  (found,) = read(path)
  assert found.rows[1].distributions == [None, None]
  assert len(found.rows) == len(rows)
