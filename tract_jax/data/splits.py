"""Which examples are held out, and a shuffle of scores as negative control."""

from collections.abc import Sequence
import dataclasses
import hashlib
import math

import numpy as np

from tract_jax import types


def split(
  examples: Sequence[types.Example], fraction: float, seed: int, salt: str
) -> tuple[list[types.Example], list[types.Example]]:
  """Holds out a share of the examples, each by a hash of its own id.

  An example's side depends on nothing but its id, the seed and the salt: not on
  the order, nor on which others are there. So a row that was held out of one
  stage is held out of the next, too. The share is met on average. If no example
  falls on one of the sides, the one nearest to it goes there.

  Args:
    examples: with unique ids.
    fraction: to hold out, in [0, 1); 0 holds out nothing.
    seed: of the split.
    salt: what the split is for; splits with different salts are independent.

  Returns:
    (rest, held_out), each in the given order, neither empty unless fraction
    is 0.

  Raises:
    types.InputError: a fraction out of range, or fewer than two examples.
  """
  if not 0 <= fraction < 1:
    raise types.InputError(
      f'config.data.{salt}_fraction: {fraction} is not in [0, 1)'
    )
  if fraction == 0:
    return list(examples), []
  if len(examples) < 2:
    raise types.InputError(
      f'config.data.{salt}_fraction: {fraction} cannot be held out of '
      f'{len(examples)} examples'
    )
  draws = [_draw(example.example_id, seed, salt) for example in examples]
  # The least draw is always held out and the largest never.
  limit = min(max(fraction, math.nextafter(min(draws), 1)), max(draws))
  rest = [e for e, draw in zip(examples, draws, strict=True) if draw >= limit]
  held = [e for e, draw in zip(examples, draws, strict=True) if draw < limit]
  return rest, held


def shuffle_scores(
  examples: Sequence[types.Example], seed: int, salt: str
) -> list[types.Example]:
  """Deals the scores anew among the examples: a negative control.

  Args:
    examples: rows of one file.
    seed: of the shuffle.
    salt: what the rows are; shuffles with different salts are independent.

  Returns:
    The examples in order, each with score and ratings of another one, or by
    chance its own; its prompt and CoT are kept.
  """
  order = np.random.default_rng([seed, *salt.encode()]).permutation(
    len(examples)
  )
  return [
    dataclasses.replace(e, score=examples[i].score, ratings=examples[i].ratings)
    for e, i in zip(examples, order, strict=True)
  ]


def hash_uniform(text: str) -> float:
  """A number in [0, 1) that the text determines, on any machine."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def _draw(example_id: str, seed: int, salt: str) -> float:
  return hash_uniform(f'{salt}\0{seed}\0{example_id}')
