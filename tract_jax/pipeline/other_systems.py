"""Other systems' predictions, as rows of ours: of the same examples and scores.

In: files of `config.evaluation.others`, each either the logits.json of TRACT's
PyTorch release or rows as we write them, by another run or by anybody. Out:
`types.Prediction` rows with our ids and the rater's scores as we have them, so
that every figure is made and paired as for our own.

Our rows have ids. The release's have none: it shuffles a benchmark with its
seed, so they are in that order, or in the file's, and their labels must be our
scores, row by row.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.evaluation import other_systems
from tract_jax.pipeline import (
  prediction_files,
  prediction_rows,
  progress,
  release_file,
  row_settings,
)


@dataclasses.dataclass(frozen=True)
class OtherPredictions:
  """What another system says of a benchmark.

  Attributes:
    method: the name that its rows have in the report.
    benchmark: whose rows these are.
    rows: of all its seeds; scores are ours.
    files: what they were read from, for the report.
  """

  method: str
  benchmark: str
  rows: list[types.Prediction]
  files: tuple[other_systems.OtherFile, ...]


def read(
  config: ml_collections.ConfigDict,
  grid: types.ScoreGrid,
  benchmarks: Mapping[str, Sequence[types.Example]],
) -> list[OtherPredictions]:
  """Reads every file of `config.evaluation.others`.

  Args:
    config: of the run.
    grid: the scores.
    benchmarks: {name: its examples, in the file's order}.

  Returns:
    One for each system and benchmark; those of several files are joined.

  Raises:
    types.InputError: a file that is missing or holds no predictions, or others
      than of these examples; a line for each problem, of all files.
  """
  found: dict[tuple[str, str], list[OtherPredictions]] = {}
  problems = []
  for method, benchmark, path in row_settings.parse_others(
    config.evaluation.others
  ):
    if benchmark not in benchmarks:
      names = ', '.join(benchmarks)
      problems.append(
        f"config.evaluation.others: '{method}/{benchmark}': the run has no such"
        f' benchmark (there are: {names})'
      )
      continue
    try:
      one = _read_one(grid, method, benchmark, path, benchmarks[benchmark])
      _check_files(one, found.setdefault((method, benchmark), []))
    except types.InputError as error:
      problems += [f'{path}: {line}' for line in str(error).splitlines()]
      continue
    found[method, benchmark].append(one)
    for file in one.files:
      progress.say(
        f'{path}: {method} on {benchmark}, seed {file.seed}:'
        f' {file.num_examples} predictions of another system ({file.form})'
      )
  if problems:
    raise types.InputError('\n'.join(problems))
  return [
    OtherPredictions(
      method,
      benchmark,
      [row for one in parts for row in one.rows],
      tuple(file for one in parts for file in one.files),
    )
    for (method, benchmark), parts in found.items()
  ]


def has_texts(rows: Sequence[types.Prediction]) -> bool:
  """Whether the texts of a system's CoTs are known."""
  return any(text for row in rows for text in row.cots)


def num_cots(rows: Sequence[types.Prediction]) -> int:
  """C of a system's rows; 0 where they have no CoT: one place and no text."""
  places = len(rows[0].distributions)
  return places if places > 1 or has_texts(rows) else 0


def _check_files(one: OtherPredictions, before) -> None:
  """Refuses a seed that another file has, too, and other numbers of CoTs."""
  places = len(one.rows[0].distributions)
  for part in before:
    for file, other in itertools.product(one.files, part.files):
      if file.seed == other.seed:
        raise types.InputError(
          f'seed {file.seed} of {one.method} on {one.benchmark} is in '
          f'{other.path}, too'
        )
    if (found := len(part.rows[0].distributions)) != places:
      raise types.InputError(
        f'distributions: of {places} CoTs, not of {found} as in '
        f'{part.files[0].path}'
      )


def _read_one(
  grid: types.ScoreGrid,
  method: str,
  benchmark: str,
  path: str,
  examples: Sequence[types.Example],
) -> OtherPredictions:
  """The predictions of one file; problems without its name."""
  text, digest = _text(path)
  content = _json(text)
  if isinstance(content, list):
    raise types.InputError('is a list; rows of ours are an object a line')
  if release_file.is_release_file(content):
    rows, form = _of_release(content, grid, examples)
  else:
    rows, form = _of_ids(text, grid, examples), 'ours, by id'
  by_seed: dict[int, list[types.Prediction]] = {}
  for row in rows:
    by_seed.setdefault(row.seed, []).append(row)
  files = tuple(
    other_systems.OtherFile(
      method=method,
      benchmark=benchmark,
      seed=seed,
      num_examples=len(of_seed),
      num_cots=num_cots(rows),
      form=form,
      path=path,
      sha256=digest,
    )
    for seed, of_seed in by_seed.items()
  )
  return OtherPredictions(method, benchmark, rows, files)


def _text(path: str) -> tuple[str, str]:
  """The file's text and its SHA-256."""
  file = epath.Path(path)
  try:
    text = prediction_files.read_text(file)
    return text, manifest.digest_of_file(file)
  except types.InputError as error:
    # The path is said once, with all other problems.
    raise types.InputError(str(error).removeprefix(f'{file}: ')) from error
  except OSError as error:
    reason = error.strerror or error
    raise types.InputError(f'cannot be read: {reason}') from error


def _json(text: str) -> Any:
  """The text as one JSON value; None where it is none, as JSONL."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return None


def _of_ids(
  text: str, grid: types.ScoreGrid, examples: Sequence[types.Example]
) -> list[types.Prediction]:
  """Rows as we write them, each with its id."""
  rows, problems = [], []
  for number, line in enumerate(prediction_rows.lines(text), start=1):
    try:
      row = prediction_rows.read_line(line)
    except types.InputError as error:
      problems.append(f'line {number}: {error}')
      continue
    found = list(prediction_rows.problems_on_grid(grid, row))
    problems += [f'line {number}: {problem}' for problem in found]
    rows.append(row)
  types.raise_problems(problems)
  types.raise_problems(list(_problems_of_cots(rows)))
  by_id = {example.example_id: example for example in examples}
  types.raise_problems(list(_problems_of_ids(rows, by_id)))
  return [_as_ours(row, by_id[row.example_id]) for row in rows]


def _as_ours(row: types.Prediction, example: types.Example) -> types.Prediction:
  """The row with what the benchmark says of it, and a text for each CoT."""
  return dataclasses.replace(
    row,
    cots=row.cots or [''] * len(row.distributions),
    score=example.score,
    category=example.category,
    pair_id=example.pair_id,
  )


def _problems_of_cots(rows: Sequence[types.Prediction]) -> Iterator[str]:
  """All rows have the same number of CoTs, with all that belongs to one.

  Texts may be missing in all rows together, and so may decoded scores; numbers
  of tokens in any.
  """
  wanted = len(rows[0].distributions)
  if not wanted:
    yield 'line 1: distributions: has no CoT, nor the place of one'
    return
  needed = ['distributions', 'finish_reasons']
  for name in ('decoded', 'cots'):
    needed += [name] if any(getattr(row, name) for row in rows) else []
  for number, row in enumerate(rows, 1):
    names = [*needed, 'cot_tokens'] if row.cot_tokens else needed
    for name in names:
      if (found := len(getattr(row, name))) != wanted:
        yield f'line {number}: {name}: of {found} CoTs, not of {wanted}'


def _problems_of_ids(
  rows: Sequence[types.Prediction], by_id: Mapping[str, types.Example]
) -> Iterator[str]:
  """Each seed has each of our examples once, with our score or none."""
  seen: dict[int, set[str]] = {}
  for number, row in enumerate(rows, 1):
    ids = seen.setdefault(row.seed, set())
    shown = f'line {number}: example_id: {row.example_id!r}'
    if row.example_id not in by_id:
      yield f'{shown} is not in the benchmark of {len(by_id)} rows'
    elif row.example_id in ids:
      yield f'{shown} stands twice with seed {row.seed}'
    elif row.score is not None:
      score = by_id[row.example_id].score
      if not prediction_rows.scores_agree(row.score, score):
        yield (
          f'line {number}: score: {row.score:g} is not that of the benchmark '
          f'for {row.example_id!r}, {_shown(score)}'
        )
    ids.add(row.example_id)
  for seed, ids in seen.items():
    missing = [name for name in by_id if name not in ids]
    if missing:
      yield (
        f'example_id: {len(missing)} of {len(by_id)} rows of the benchmark have'
        f' no prediction with seed {seed}, such as {missing[0]!r}'
      )


def _of_release(
  content: dict[str, Any],
  grid: types.ScoreGrid,
  examples: Sequence[types.Example],
) -> tuple[list[types.Prediction], str]:
  """Rows of the release's file, and how they were found among ours."""
  release = release_file.from_json(content, len(grid.values))
  order, how = _order(release, examples)
  rows = []
  for place, index in enumerate(order):
    example = examples[index]
    probs = release.distributions[place]
    is_known = any(p is not None for p in probs)
    rows.append(
      types.Prediction(
        example_id=example.example_id,
        seed=release.seed or 0,
        score=example.score,
        prediction=None,
        distributions=probs,
        cots=release.cots[place],
        # The release reads probabilities alone.
        decoded=[],
        finish_reasons=[],
        invalid_reason=None if is_known else 'no finite distribution',
        category=example.category,
        human_score=example.human_score,
        pair_id=example.pair_id,
      )
    )
  return rows, f'release, {how}'


def _order(
  release: release_file.ReleaseFile, examples: Sequence[types.Example]
) -> tuple[list[int], str]:
  """Which of our examples each row of the release is, and how it is known.

  datasets.Dataset.shuffle, which the release calls, takes the permutation of
  numpy's default generator.
  """
  num_rows, labels = len(examples), release.labels
  if len(labels) != num_rows:
    raise types.InputError(
      f'labels: {len(labels)} rows, but the benchmark has {num_rows}; a part '
      'cannot be compared'
    )
  orders = {'in our order': list(range(num_rows))}
  if release.seed is not None:
    shuffled = np.random.default_rng(release.seed).permutation(num_rows)
    orders = {f'shuffled with seed {release.seed}': shuffled.tolist()} | orders
  wrong = {
    how: [
      i
      for i, k in enumerate(order)
      if not prediction_rows.scores_agree(labels[i], examples[k].score)
    ]
    for how, order in orders.items()
  }
  how = min(wrong, key=lambda name: len(wrong[name]))
  if wrong[how]:
    first = wrong[how][0]
    example = examples[orders[how][first]]
    raise types.InputError(
      f'labels: row {first + 1}: {_shown(labels[first])} is not that of the '
      f'benchmark for {example.example_id!r}, {_shown(example.score)}; '
      f'{len(wrong[how])} of {num_rows} differ ({how}), and fewer in no order '
      'that is known'
    )
  return orders[how], how


def _shown(score: float | None) -> str:
  return 'none' if score is None else f'{score:g}'
