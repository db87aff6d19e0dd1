"""What a prediction file says, as the report takes it.

In: the rows of predictions/<method>/<benchmark>.jsonl. Out: for every seed what
each predictor makes of the first and of all CoTs, the calibration of their
distributions, the curve over the number of CoTs, and the judgements that the
report's page shows.

Axes: n rows of a seed, C CoTs, Y score grid.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from tract_jax import types
from tract_jax.evaluation import breakdowns as breakdowns_lib
from tract_jax.evaluation import (
  calibration,
  judgements,
  metrics,
  preference_pairs,
  resampling,
)
from tract_jax.evaluation import cot_curve as cot_curve_lib
from tract_jax.evaluation import cot_texts as cot_texts_lib
from tract_jax.objectives import predictors
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import (
  other_systems,
  progress,
  row_facets,
)
from tract_jax.text import prompt_template


def _empty() -> Any:
  return dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Found:
  """What files say; each file adds to it.

  Attributes:
    systems: by every predictor, from the first CoT and from all.
    own: those by the methods' own predictors from all CoTs.
    calibrations: from the first CoT and from all.
    cot_curve: by the methods' own predictors, from one CoT to all.
    groups: judgements to be shown.
    breakdowns: of the methods' own predictors from all CoTs.
    cot_texts: of all CoTs.
    paired: by every predictor, from the first CoT and from all, of preference
      pairs.
    own_systems: methods' own predictors from all CoTs, of pairs.
  """

  systems: list[metrics.SystemPredictions] = _empty()
  own: list[metrics.SystemPredictions] = _empty()
  calibrations: list[calibration.Calibration] = _empty()
  cot_curve: list[cot_curve_lib.CotCurvePoint] = _empty()
  groups: list[judgements.Group] = _empty()
  breakdowns: list[breakdowns_lib.Part] = _empty()
  cot_texts: list[cot_texts_lib.CotTexts] = _empty()
  paired: list[preference_pairs.PairPredictions] = _empty()
  own_systems: list[metrics.System] = _empty()

  def told(self) -> dict[str, Any]:
    """What the report has as it is, by its fields."""
    names = 'calibrations', 'cot_curve', 'breakdowns', 'cot_texts'
    return {name: getattr(self, name) for name in names}


class _Seed(NamedTuple):
  """A seed's rows of one file.

  Attributes:
    method, benchmark, seed: whose.
    rows: [n].
    ids, random_ids: [n], see `types.Example`.
    probs: [n, C, Y] float32, decoded: [n, C] float32; NaN: there is none.
  """

  method: str
  benchmark: str
  seed: int
  rows: list[types.Prediction]
  ids: tuple[str, ...]
  random_ids: tuple[str, ...]
  probs: np.ndarray
  decoded: np.ndarray


def add_file(
  found: Found,
  config,
  grid,
  method: str,
  how: methods_lib.Method | None,
  benchmark: str,
  rows: Sequence[types.Prediction],
  num_groups: int,
  examples: Mapping[str, types.Example],
) -> None:
  """Adds what a file says.

  Args:
    found: what is added to.
    config, grid: of the run.
    method, benchmark: whose file it is.
    how: the method's entry; None for another system's file.
    rows: its rows, as `rated` gives them.
    num_groups: files and seeds that share the report's page.
    examples: {id: the benchmark's row}, where they are known.
  """
  own, names, most, seeds = _asked(config, how, rows)
  fallback = grid.midpoint  # Stands in for an invalid prediction.
  ours: list[metrics.SystemPredictions] = []
  facets: dict[str, list[list[str]]] = {}
  for seed in seeds:
    part = _seed(grid, method, benchmark, seed, rows, max(most, 1), examples)
    systems = _systems(config, grid, part, names, most)
    found.systems += systems
    (judged,) = (s for s in systems if (s.predictor, s.num_cots) == (own, most))
    ours.append(judged)
    of_seed = row_facets.facets(part.rows, examples, grid, most)
    for facet, values in of_seed.items():
      facets.setdefault(facet, []).append(values)
    found.calibrations += _calibrations(config, grid, part, systems)
    if most > 1:
      found.cot_curve += (
        cot_curve_lib.point(_system(config, grid, part, own, n), fallback)
        for n in range(1, most + 1)
      )
    found.groups.append(
      judgements.group(
        *(method, benchmark, seed, _as_judged(part.rows, judged)),
        fallback=fallback,
        num_groups=num_groups,
      )
    )
  found.own += ours
  bootstrap = resampling.Bootstrap(config.evaluation.num_resamples)
  found.breakdowns += breakdowns_lib.break_down(
    ours, facets, fallback, bootstrap.level
  )
  of_seeds = [row for row in rows if row.seed in seeds]
  # Another system's texts may be unknown.
  if how or other_systems.has_texts(of_seeds):
    found.cot_texts += _cot_texts(
      *(config, method, benchmark, of_seeds, most, examples), bootstrap
    )


def _as_judged(
  rows: Sequence[types.Prediction], judged: metrics.SystemPredictions
) -> list[types.Prediction]:
  """The rows with the predictions that the report's figures are made of."""
  return [
    dataclasses.replace(
      row,
      prediction=None if math.isnan(value) else float(value),
      invalid_reason=row.invalid_reason if math.isnan(value) else None,
    )
    for row, value in zip(rows, judged.predictions, strict=True)
  ]


def _cot_texts(
  config, method, benchmark, rows, num_cots, examples, bootstrap
) -> list[cot_texts_lib.CotTexts]:
  """Facts on the CoTs, where there are, with the known rows' rubrics."""
  about = cot_texts_lib.facts(
    *(method, benchmark, rows, num_cots, bootstrap),
    rubrics={
      n: prompt_template.rubric_text(e.prompt) for n, e in examples.items()
    },
    most_overlaps=config.evaluation.overlap_cots,
  )
  return [about] if about else []


def add_pairs(
  found: Found,
  config,
  grid,
  method: str,
  how: methods_lib.Method | None,
  benchmark: str,
  path,
  rows: Sequence[types.Prediction],
  examples: Mapping[str, types.Example],
) -> None:
  """Adds what a file says of preference pairs, where it has any.

  Args:
    found: what is added to.
    config, grid: of the run.
    method, benchmark, path: whose file it is, and where.
    how: the method's entry; None for another system's file.
    rows: all of its rows.
    examples: {id: the benchmark's row}, where they are known.

  Raises:
    types.InputError: a response was predicted and the other of its pair, which
      the benchmark has, was not.
  """
  rows = [row for row in rows if row.pair_id]
  if not rows:
    return
  own, names, most, seeds = _asked(config, how, rows)
  num_lone = 0
  for seed in seeds:
    part = _seed(grid, method, benchmark, seed, rows, max(most, 1), examples)
    joined = preference_pairs.join(benchmark, part.rows)
    others = map(preference_pairs.other_side, joined.lone)
    if missing := [name for name in others if name in examples]:
      raise types.InputError(
        f'{path}: {len(missing)} responses of pairs have no prediction with '
        f'seed {seed}, such as {missing[0]!r}'
      )
    num_lone += len(joined.lone)
    found.paired += (
      joined.predictions(system.system, seed, system.predictions)
      for system in _systems(config, grid, part, names, most)
    )
  found.own_systems.append(metrics.System(method, own, most))
  if num_lone:
    progress.say(
      f'{path}: {num_lone} of {len(rows)} responses have no other of their '
      'pair and are left out of the accuracy'
    )


def _asked(
  config, how: methods_lib.Method | None, rows: Sequence[types.Prediction]
) -> tuple[str, list[str], int, Sequence[int]]:
  """A method's own predictor, all predictors, number of CoTs, and seeds.

  Of another system: RAIL, and what its file has.
  """
  names = dict.fromkeys(config.predictors)
  if how:
    names[how.predictor] = None
    most = config.num_cots if how.with_cot else 0
    return how.predictor, list(names), most, config.seeds
  names['rail'] = None
  if not all(row.decoded for row in rows):
    names.pop('decode', None)  # A file does not tell what it decodes.
  seeds = sorted({row.seed for row in rows})
  return 'rail', list(names), other_systems.num_cots(rows), seeds


def rated(path, rows: list[types.Prediction]) -> list[types.Prediction]:
  """The rows with a rater's score, or all where none has; it is said."""
  rated = [row for row in rows if row.score is not None]
  num_in_pairs = sum(row.score is None and row.pair_id != '' for row in rows)
  num_left_out = len(rows) - len(rated) - num_in_pairs
  if not rated:
    if num_left_out:
      progress.say(f"{path}: no row has a rater's score: figures are null")
    return rows
  if num_left_out:
    progress.say(
      f"{path}: {num_left_out} of {len(rows)} rows have no rater's score and "
      'are left out of the report'
    )
  return rated


def _seed(
  grid, method, benchmark, seed, rows, num_cots: int, examples
) -> _Seed:
  of_seed = [row for row in rows if row.seed == seed]
  width = len(grid.values)
  nothing = [math.nan] * width
  probs = [
    [nothing if d is None else d for d in row.distributions[:num_cots]]
    for row in of_seed
  ]
  decoded = [
    [math.nan if d is None else d for d in row.decoded[:num_cots]]
    or [math.nan] * num_cots  # Another system's rows may have none.
    for row in of_seed
  ]
  shape = len(of_seed), num_cots
  ids = tuple(row.example_id for row in of_seed)
  return _Seed(
    *(method, benchmark, seed, of_seed),
    ids=ids,
    random_ids=tuple(
      examples[name].random_id if name in examples else name for name in ids
    ),
    probs=np.array(probs, np.float32).reshape(*shape, width),
    decoded=np.array(decoded, np.float32).reshape(shape),
  )


def _systems(
  config, grid, part: _Seed, names: Sequence[str], most: int
) -> list[metrics.SystemPredictions]:
  """By every predictor, from the first CoT and from all."""
  return [
    _system(config, grid, part, name, num_cots)
    for num_cots in sorted({min(most, 1), most})
    for name in names
  ]


def _calibrations(
  config, grid, part: _Seed, systems
) -> Iterator[calibration.Calibration]:
  """One for each number of CoTs, where there are scores."""
  by_number = {s.num_cots: s for s in systems}
  # In one order, whatever that of the file: rows are split at random.
  order = sorted(range(len(part.ids)), key=part.ids.__getitem__)
  for num_cots, system in by_number.items():
    if not len(system.rated):
      continue
    probs = part.probs[order, : max(num_cots, 1)].astype(np.float64)
    is_known = np.isfinite(probs).all(axis=-1, keepdims=True)
    number = is_known.sum(axis=1)
    mean = np.where(is_known, probs, 0).sum(axis=1) / np.maximum(number, 1)
    yield calibration.calibrate(
      metrics.sorted_by_id(system),
      np.where(number > 0, mean, np.nan),
      grid.values,
      conformal_level=config.evaluation.conformal_level,
    )


def _system(
  config, grid, part: _Seed, name: str, num_cots: int
) -> metrics.SystemPredictions:
  """Predictions by one predictor from the first CoTs; 0: there are none."""
  used = max(num_cots, 1)
  probs = part.probs[:, :used]
  is_sampled = name == 'decode_sampled'
  each = np.asarray(
    predictors.per_cot(
      name,
      probs,
      part.decoded[:, :used],
      np.array(grid.values, np.float32),
      temperature=config.evaluation.tempered_temperature,
      uniforms=predictors.decode_uniforms(part.seed, part.random_ids, used)
      if is_sampled
      else None,
    )
  )
  mass = predictors.mean_over_cots(probs.sum(axis=-1))
  reasons = Counter(r for row in part.rows for r in row.finish_reasons[:used])
  return metrics.SystemPredictions(
    method=part.method,
    predictor=name,
    num_cots=num_cots,
    benchmark=part.benchmark,
    seed=part.seed,
    example_ids=part.ids,
    scores=np.array(
      [math.nan if r.score is None else r.score for r in part.rows], np.float64
    ),
    predictions=np.asarray(predictors.mean_over_cots(each), np.float64),
    grid_mass=np.asarray(mass, np.float64),
    finish_reasons=dict(reasons) if num_cots else {},
    num_invalid_cots=int(np.isnan(each).sum()) if num_cots else 0,
  )
