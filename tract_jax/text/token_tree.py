"""Makes the tree of the tokens that several texts are written in."""

from collections.abc import Sequence

from tract_jax import types


def make_tree(sequences: Sequence[Sequence[int]]) -> types.TokenTree:
  """Joins token sequences where they begin alike.

  Args:
    sequences: [Y] of at least one token each.

  Returns:
    The tree; a beginning that several sequences share is in it once.

  Raises:
    ValueError: a sequence that is empty, or that another one begins with: its
      probability would hold the other's.
  """
  nodes: dict[tuple[int, ...], int] = {(): 0}
  tokens: list[int] = []
  parents: list[int] = []
  read_at: list[tuple[int, ...]] = []
  for sequence in map(tuple, sequences):
    path = [0]
    for length in range(1, len(sequence)):
      start = sequence[:length]
      if start not in nodes:
        nodes[start] = len(nodes)
        tokens.append(start[-1])
        parents.append(path[-1])
      path.append(nodes[start])
    read_at.append(tuple(path))
  whole = tuple(map(tuple, sequences))
  for sequence in whole:
    if sequence in nodes or whole.count(sequence) > 1:
      raise ValueError(f'sequence {sequence}: empty, or another begins with it')
  return types.TokenTree(tuple(tokens), tuple(parents), whole, tuple(read_at))
