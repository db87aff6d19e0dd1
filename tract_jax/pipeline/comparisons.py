"""Which systems are held against each other: `config.evaluation.differences`.

In: text such as "tract/rail/5 - ce_cot, raft - ce". A system is a method, with
its predictor and its number of CoTs where they are not what the method's
default is: its own predictor, and the fewest CoTs that it was run with.
"""

from collections.abc import Iterator, Mapping
import re

import ml_collections

from tract_jax import types
from tract_jax.evaluation import report
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import row_settings

_SYSTEM = re.compile(r'[A-Za-z0-9._-]+(/[a-z_]+(/[0-9]+)?)?')


def parse(text: str) -> report.Comparisons:
  """The pairs that are asked for.

  Args:
    text: "SYSTEM - SYSTEM,SYSTEM - SYSTEM", "all", or nothing.

  Returns:
    Pairs of names as `report.make_report` knows them; None without any.

  Raises:
    types.InputError: a part of another form, a system against itself, or a pair
      that stands twice; a line each.
  """
  if text.strip() in ('', report.ALL):
    return report.ALL if text.strip() else None
  found: list[tuple[str, str]] = []
  problems = []
  for part in (p.strip() for p in text.split(',')):
    # A name may have a hyphen, but no space.
    names = [name.strip() for name in re.split(r'\s-\s', part)]
    if len(names) != 2 or not all(map(_SYSTEM.fullmatch, names)):
      problems.append(
        f'{part!r} is not like METHOD/PREDICTOR/COTS - METHOD, or all'
      )
    elif names[0] == names[1]:
      problems.append(f'{part!r} is of one system')
    elif (names[0], names[1]) in found:
      problems.append(f'{part!r} stands twice')
    found.append((names[0], names[-1]))
  if problems:
    raise types.InputError(
      '\n'.join(f'config.evaluation.differences: {line}' for line in problems)
    )
  return found


def problems(
  config: ml_collections.ConfigDict,
  methods: Mapping[str, methods_lib.Method] | None = None,
) -> Iterator[str]:
  """Which systems of `config.evaluation.differences` the run will not have.

  Args:
    config: whose parts can be parsed.
    methods: those of a model that is used as it is; None: what the run trains.

  Yields:
    A line for each.
  """
  methods = methods or methods_lib.trained_with(config.train.expectation)
  pairs = parse(config.evaluation.differences)
  if pairs is None or isinstance(pairs, str):
    return
  others = {s for s, *_ in row_settings.parse_others(config.evaluation.others)}
  for name in dict.fromkeys(name for pair in pairs for name in pair):
    method, predictor, num_cots, *_ = [*name.split('/'), '', '']
    known = methods.get(method)
    if method in config.methods and known:
      predictors = {*config.predictors, known.predictor}
      numbers = {'1', str(config.num_cots)} if known.with_cot else {'0'}
    elif method in others:
      # Their number of CoTs is not known before their file is read.
      predictors, numbers = {*config.predictors, 'rail'}, {num_cots}
    else:
      names = ', '.join([*config.methods, *sorted(others)])
      yield (
        f'config.evaluation.differences: {name!r}: {method!r} is none of '
        f'{names}'
      )
      continue
    for value, allowed in ((predictor, predictors), (num_cots, numbers)):
      if value and value not in allowed:
        yield (
          f'config.evaluation.differences: {name!r}: {value!r} is none of '
          f'{", ".join(sorted(allowed))}'
        )
