"""Which seeds of two systems are compared, and whether in pairs.

In: the seeds that each of the systems has. Out: those of each that a difference
is made of. Seeds that both have are paired, and others left out. Where they
have none in common, or one has a single seed, all of both count and none are
paired: a seed of another system is not the one of ours with the nearest number.
"""

from collections.abc import Sequence

# Of the first system, and of the second; the same where they are paired.
Seeds = tuple[Sequence[int], Sequence[int]]


def choose(own: Seeds) -> Seeds:
  """The seeds that are compared.

  Args:
    own: those that each has, in order.

  Returns:
    Those of each, in order.
  """
  shared = [seed for seed in own[0] if seed in own[1]]
  return (shared, shared) if shared and min(map(len, own)) > 1 else own


def are_paired(seeds: Seeds) -> bool:
  """Whether each seed of the one is compared with the same of the other."""
  return [*seeds[0]] == [*seeds[1]]


def shown(seeds: Seeds) -> str:
  """How many there are: "3" where they are paired, else as in "3 and 1"."""
  first, second = map(len, seeds)
  return f'{first}' if are_paired(seeds) else f'{first} and {second}'
