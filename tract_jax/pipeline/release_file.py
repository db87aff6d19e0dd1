"""The prediction file of TRACT's PyTorch release, as it stands.

In: the object of its logits.json, with a row's C CoTs one after another:

  {"probs": [[p(1), p(2), ...], ...], "cot_outputs": ["...", ...],
   "labels": [4.0, ...], "args": {"seed": 42, ...}}

`cot_outputs` has a text for each row, or a list of C texts; it and `args` may
be missing; of unknown texts all are empty. Out: the same by row, every field of
the kind that it is said to be.

  Axes: n rows, C CoTs per input, Y score grid.
"""

import dataclasses
import math
import reprlib
from typing import Any

from tract_jax import types
from tract_jax.pipeline import prediction_rows

# The release has probabilities in half precision.
_ROUNDING = 1e-2
_NEEDED = {'labels', 'probs'}


@dataclasses.dataclass(frozen=True)
class ReleaseFile:
  """What the release says of a benchmark.

  Attributes:
    labels: [n] the rater's scores; None where there is none.
    distributions: [n][C][Y] probability of each score; None in place of one
      that is not finite.
    cots: [n][C] texts.
    seed: with which the release shuffled the benchmark and sampled; None where
      it does not say.
  """

  labels: list[float | None]
  distributions: list[list[list[float] | None]]
  cots: list[list[str]]
  seed: int | None

  @property
  def num_cots(self) -> int:
    """C."""
    return len(self.distributions[0])


def is_release_file(content: Any) -> bool:
  """Whether JSON is an object with a field of the release."""
  return isinstance(content, dict) and bool(_NEEDED & content.keys())


def from_json(content: dict[str, Any], num_scores: int) -> ReleaseFile:
  """Checks the fields.

  Args:
    content: the file's object.
    num_scores: Y, of the run's grid.

  Returns:
    The same by row.

  Raises:
    types.InputError: a line for each bad field or entry.
  """
  missing = sorted(_NEEDED - content.keys())
  types.raise_problems([f'{name}: missing' for name in missing])
  labels, probs = content['labels'], content['probs']
  args = content.get('args') or {}
  problems = [
    f'{name}: {reprlib.repr(value)} is not a list'
    for name, value in (('labels', labels), ('probs', probs))
    if not isinstance(value, list)
  ]
  if not isinstance(args, dict):
    problems.append(f'args: {reprlib.repr(args)} is not an object')
  elif not _is_seed(args.get('seed')):
    seed = reprlib.repr(args['seed'])
    problems.append(f'args.seed: {seed} is not a whole number from 0 to 2**32')
  types.raise_problems(problems)
  if not labels:
    problems.append('labels: has no rows')
  elif not probs or len(probs) % len(labels):
    problems.append(
      f'probs: {len(probs)} distributions are no multiple of {len(labels)} '
      'labels'
    )
  types.raise_problems(problems)
  num_cots = len(probs) // len(labels)
  cots = content.get('cot_outputs')
  cots = [[''] * num_cots] * len(labels) if cots is None else cots
  for number, label in enumerate(labels, 1):
    if not prediction_rows.is_number(_known(label)):
      shown = reprlib.repr(label)
      problems.append(f'labels: row {number}: {shown} is no finite number')
  problems += _problems_of_probs(probs, num_scores)
  problems += _problems_of_cots(cots, len(labels), num_cots)
  types.raise_problems(problems)
  known = [None if None in map(_known, p) else list(p) for p in probs]
  starts = range(0, len(known), num_cots)
  return ReleaseFile(
    labels=[_known(label) for label in labels],
    distributions=[known[i : i + num_cots] for i in starts],
    cots=[[c] if isinstance(c, str) else list(c) for c in cots],
    seed=args.get('seed'),
  )


def _problems_of_probs(probs: list[Any], num_scores: int):
  for number, entry in enumerate(probs, 1):
    if not isinstance(entry, list) or len(entry) != num_scores:
      wanted = f'{num_scores} probabilities, one for each score of the grid'
    elif not prediction_rows.is_distribution(
      [p for p in entry if _known(p) is not None], _ROUNDING
    ):
      wanted = 'probabilities that add up to 1 at most'
    else:
      continue
    yield f'probs: entry {number}: {reprlib.repr(entry)} is not {wanted}'


def _problems_of_cots(cots: Any, num_rows: int, num_cots: int):
  if not isinstance(cots, list) or len(cots) != num_rows:
    number = len(cots) if isinstance(cots, list) else reprlib.repr(cots)
    yield f'cot_outputs: {number} is not a list with each of {num_rows} rows'
    return
  for number, cot in enumerate(cots, 1):
    texts = [cot] if isinstance(cot, str) else cot
    if not (
      isinstance(texts, list)
      and len(texts) == num_cots
      and all(isinstance(text, str) for text in texts)
    ):
      shown = reprlib.repr(cot)
      yield f'cot_outputs: row {number}: {shown} is not {num_cots} texts'


def _known(value: Any) -> Any:
  """The same, or None where Python's JSON says NaN."""
  is_nan = isinstance(value, float) and math.isnan(value)
  return None if is_nan else value


def _is_seed(value: Any) -> bool:
  return value is None or (type(value) is int and 0 <= value < 2**32)
