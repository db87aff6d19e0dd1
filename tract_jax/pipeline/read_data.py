"""Reads what a run trains and is judged on, and encodes it for a stage."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

import numpy as np

from tract_jax import types
from tract_jax.data import (
  encoded_examples,
  encoding,
  manifest,
  records,
  splits,
  synthetic,
)
from tract_jax.objectives import targets
from tract_jax.pipeline import (
  build,
  data_source,
  encode_rows,
  fit_prompts,
  progress,
  row_settings,
  shown_text,
)

# What lines call the rows that are no benchmark's.
PRETRAINING = 'pretraining rows'
TRAINING = 'training rows'
VALIDATION = 'validation rows'


@dataclasses.dataclass(frozen=True)
class RunData:
  """The examples of a run.

  Attributes:
    train: what every stage trains on.
    validation: what no stage trains on; the same in both stages.
    benchmarks: {name: examples} to predict.
    pretrain: what a model from scratch is made the seed model with; [] where
      it is as it was drawn, or read from a folder.
    fits: {name of the rows: what was cut or left out for its length}.
  """

  train: list[types.Example]
  validation: list[types.Example]
  benchmarks: dict[str, list[types.Example]]
  pretrain: list[types.Example] = dataclasses.field(default_factory=list)
  fits: dict[str, fit_prompts.FitReport] = dataclasses.field(
    default_factory=dict
  )


def read_data(
  setup: build.Setup, *, as_judge: bool = False, predicts: bool = True
) -> RunData:
  """Reads all rows, splits them, and prints how many there are.

  Args:
    setup: of the run.
    as_judge: whether nothing is trained, so that rows need no rating.
    predicts: whether prompts have to be tokens; looking takes a minute for
      100,000 of them.

  Returns:
    The examples.

  Raises:
    types.InputError: a missing file or bad rows, a line each.
  """
  data = setup.config.data
  benchmarks: dict[str, list[types.Example]] = {}
  pretrain: list[types.Example] = []
  if data.source == 'synthetic':
    train, benchmarks['synthetic'], pretrain = _synthetic(setup)
  else:
    paths = row_settings.parse_benchmarks(data.benchmarks)
    role = 'judge' if as_judge else 'eval'
    benchmarks = {name: _read(setup, p, role) for name, p in paths.items()}
    train = []
    if data.train_path:
      train = _read(setup, data.train_path, 'train')
      if not benchmarks and data.held_out_fraction:
        judged = _read(setup, data.train_path, 'eval')
        train, benchmarks['held_out'] = _hold_out(setup, train, judged)
  if data.max_eval_examples:
    limit = data.max_eval_examples
    benchmarks = {name: rows[:limit] for name, rows in benchmarks.items()}
  kind = setup.config.train.score_target
  train = [targets.with_target(example, kind) for example in train]
  if data.shuffle_scores:
    progress.say('negative control: scores are shuffled among the rows')
    train = splits.shuffle_scores(train, data.split_seed, 'train')
    benchmarks = {
      name: splits.shuffle_scores(rows, data.split_seed, name)
      for name, rows in benchmarks.items()
    }
  train, validation = _split_validation(data, train)
  _say(
    f'data: {len(train)} training and {len(validation)} validation rows; '
    + (
      ', '.join(f'{n} {len(rows)} rows' for n, rows in benchmarks.items())
      or 'none to predict'
    )
  )
  _warn_of_leaks([*train, *validation], benchmarks)
  if predicts:
    check_prompts(setup, benchmarks)
  return _fitted(setup, RunData(train, validation, benchmarks, pretrain))


def check_prompts(
  setup: build.Setup, benchmarks: Mapping[str, Sequence[types.Example]]
) -> None:
  """Finds prompts that cannot be tokens now, not after all the training.

  Args:
    setup: of the run.
    benchmarks: {name: examples}.

  Raises:
    types.InputError: one line for each such prompt.
  """
  problems = []
  for name, rows in benchmarks.items():
    for example in rows:
      try:
        setup.tokenizer.prompt_ids(example.prompt)
      except types.InputError as error:
        problems.append(f'{name}: example {example.example_id}: {error}')
  types.raise_problems(problems, 'more prompts')


def digest(examples: Sequence[types.Example]) -> str:
  """SHA-256 of the examples' whole content, in order."""
  rows = [dataclasses.asdict(example) for example in examples]
  for row in rows:
    # What could have been cut is no content, and what is only reported on
    # changes no prediction.
    for name in ('judged', 'response', 'response_source'):
      del row[name]
  return manifest.digest_of(rows)


def digests(data: RunData) -> dict[str, str]:
  """`digest` of what is trained on, validated on and predicted, by name."""
  named = {'train': data.train, 'validation': data.validation}
  named |= {f'benchmark {n}': rows for n, rows in data.benchmarks.items()}
  return {name: digest(rows) for name, rows in named.items()}


def encode_for_stage(
  setup: build.Setup,
  examples: Sequence[types.Example],
  cot_source: str,
  self_cots: Sequence[types.CotSample],
  label: str,
  should_stop: Callable[[], bool] = lambda: False,
) -> encoded_examples.EncodedExamples:
  """Tokens of a stage's rows.

  Args:
    setup: of the run.
    examples: rows of one split.
    cot_source: "none", "annotator", "self" or "mixed".
    self_cots: sampled for these examples (others are passed over); each usable
      one is a row of its own.
    label: names the rows in the counts that are printed.
    should_stop: asked now and then.

  Returns:
    Encoded examples, in order of the examples; self-CoTs after annotators'.

  Raises:
    types.InputError: as `encoding.encode_all`.
    loop.Interrupted: stopped; the same call starts again.
  """
  jobs: list[tuple[list[types.Example], list[np.ndarray] | None]] = []
  if cot_source in ('none', 'annotator', 'mixed'):
    jobs.append((list(examples), None))
  if cot_source in ('self', 'mixed'):
    by_id = {e.example_id: e for e in examples}
    cots = [s for s in self_cots if s.example_id in by_id]
    usable = [s for s in cots if s.is_usable]
    _say_unusable(label, by_id, cots, usable)
    jobs.append(
      ([by_id[s.example_id] for s in usable], [s.tokens for s in usable])
    )
  kept = []
  for rows, tokens in jobs:
    encoded, report = encode_rows.encode_rows(
      setup,
      rows,
      setup.bare_scores if cot_source == 'none' else setup.cot_scores,
      tokens,
      label,
      should_stop,
    )
    kept.append(encoded)
    _say_encoded(label, report)
  return encoded_examples.concatenate(kept)


def before_score(
  setup: build.Setup, examples: Sequence[types.Example], with_cot: bool
) -> list[np.ndarray]:
  """Tokens of each example right up to its score.

  Args:
    setup: of the run.
    examples: the rows.
    with_cot: whether their own CoT stands in between.

  Returns:
    [l] int32 for each.
  """
  scores = setup.cot_scores if with_cot else setup.bare_scores
  return [
    encoding.prompt_and_cot_ids(e, setup.tokenizer, scores)[0] for e in examples
  ]


def _say_unusable(label, by_id, cots, usable) -> None:
  """Names the rows that none of their self-CoTs can be trained on for."""
  if len(usable) < len(cots):
    without = [*by_id.keys() - {s.example_id for s in usable}]
    _say(
      f'{label}: {len(cots) - len(usable)} of {len(cots)} self-CoTs cannot be '
      f'used; {len(without)} rows have none{fit_prompts.shown(sorted(without))}'
    )


def _say_encoded(label, report: encoding.EncodeReport) -> None:
  left_out = report.num_examples - report.num_kept
  shown = fit_prompts.shown(report.dropped_ids)
  _say(
    f'{label}: {report.num_kept} encoded, the longest of '
    f'{report.longest_tokens} tokens, {report.target_tokens:,} target tokens; '
    f'{left_out} left out' + (f', too long{shown}' if shown else '')
  )


def _say(line: str) -> None:
  progress.say(shown_text.wrapped(line))


def _read(setup, path: str, role: str) -> list[types.Example]:
  examples, report = records.read_examples(
    data_source.find(path),
    setup.grid,
    role=role,
    marker=setup.config.score.marker,
    row_format=row_settings.row_format(setup.config),
    name=path,
  )
  notes = {
    name.removeprefix('num_').replace('_', ' '): number
    for name, number in dataclasses.asdict(report).items()
    if name != 'name' and number
  }
  shown = ', '.join(f'{name} {number}' for name, number in notes.items())
  _say(f'{path} ({role}): {shown}')
  return examples


def _from_rows(setup, rows, role: str, name: str) -> list[types.Example]:
  examples, _ = records.examples_from_rows(
    rows,
    setup.grid,
    role=role,
    marker=setup.config.score.marker,
    name=name,
    row_format=row_settings.row_format(setup.config),
  )
  return examples


def _synthetic(setup) -> tuple[list[types.Example], ...]:
  """Rows of the made-up world: to train on, to judge, to pretrain on."""
  data = setup.config.data
  make_rows = functools.partial(
    synthetic.make_rows, seed=data.synthetic_seed, grid=setup.grid
  )
  rows = make_rows(data.synthetic_train, split='train')
  train = _from_rows(setup, rows, 'train', 'synthetic train')
  rows = make_rows(data.synthetic_test, split='test')
  judged = _from_rows(setup, rows, 'eval', 'synthetic test')
  pretrain: list[types.Example] = []
  if num_rows := setup.config.pretrain.num_rows:
    rows = make_rows(num_rows, split='pretrain')
    pretrain = _from_rows(setup, rows, 'train', 'synthetic pretrain')
  return train, judged, pretrain


def _fitted(setup, data: RunData) -> RunData:
  """The rows with long prompts cut, where the config asks for it."""
  if setup.config.data.too_long != 'truncate':
    return data
  fits = {}

  def fit(name: str, rows, trained: bool) -> list[types.Example]:
    rows, fits[name] = fit_prompts.fit(setup, rows, name, trained=trained)
    return rows

  return RunData(
    train=fit(TRAINING, data.train, True),
    validation=fit(VALIDATION, data.validation, True),
    benchmarks={n: fit(n, rows, False) for n, rows in data.benchmarks.items()},
    pretrain=fit(PRETRAINING, data.pretrain, True) if data.pretrain else [],
    fits=fits,
  )


def _warn_of_leaks(trained, benchmarks) -> None:
  """Says how many rows of a benchmark have a prompt that is trained on."""
  seen = {e.prompt for e in trained}
  for name, rows in benchmarks.items():
    leaked = sum(e.prompt in seen for e in rows)
    if leaked:
      _say(
        f'warning: {leaked} of {len(rows)} rows of {name} are trained on, too'
      )


def _split_validation(data, train):
  """Training and validation rows, both cut to what the config asks for."""
  fraction, limit = data.validation_fraction, data.max_train_examples
  if not train:  # Only models as they are will be judged.
    return [], []
  train, validation = splits.split(
    train, fraction, data.split_seed, 'validation'
  )
  if limit and limit < len(train):
    share = max(1, round(limit * fraction / (1 - fraction)))
    train, validation = train[:limit], validation[:share]
  return train, validation


def _hold_out(setup, train, judged):
  """Training rows, and the rows held out of the same file, as judged."""
  data = setup.config.data
  train, held_out = splits.split(
    train, data.held_out_fraction, data.split_seed, 'held_out'
  )
  ids = {e.example_id for e in held_out}
  return train, [e for e in judged if e.example_id in ids]
