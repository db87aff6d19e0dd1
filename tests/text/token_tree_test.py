import numpy as np
import pytest

from tract_jax.text import token_tree


def test_by_hand():
  tree = token_tree.make_tree([(1, 9), (1, 0, 9), (2, 9)])
  assert tree.tokens == (1, 0, 2)
  assert tree.parents == (0, 1, 0)
  assert tree.sequences == ((1, 9), (1, 0, 9), (2, 9))
  assert tree.read_at == ((0, 1), (0, 1, 2), (0, 3))
  assert tree.depths.tolist() == [0, 1, 2, 1]
  assert tree.sees.astype(int).tolist() == [
    [1, 0, 0, 0],
    [1, 1, 0, 0],
    [1, 1, 1, 0],
    [1, 0, 0, 1],
  ]


def test_every_beginning_is_in_it_once():
  texts = [f'{value / 10:.1f}' for value in range(0, 105, 5)]
  tree = token_tree.make_tree([[*map(ord, text), 0] for text in texts])
  beginnings = {text[:i] for text in texts for i in range(1, len(text) + 1)}
  assert len(tree.tokens) == len(beginnings)
  # Each sequence is read along a path from node 0.
  for text, nodes in zip(texts, tree.read_at, strict=True):
    assert nodes[0] == 0
    assert [tree.tokens[node - 1] for node in nodes[1:]] == [*map(ord, text)]
    for parent, node in zip(nodes, nodes[1:], strict=False):
      assert tree.parents[node - 1] == parent
      assert np.array_equal(tree.sees[node, :node], tree.sees[parent, :node])


def test_sequences_that_overlap_are_refused():
  for bad in ([(1,), (1, 2)], [(1, 2), (1, 2)], [()]):
    with pytest.raises(ValueError, match='empty, or another begins with it'):
      token_tree.make_tree(bad)
