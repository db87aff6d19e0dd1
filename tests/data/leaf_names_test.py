import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tract_jax.data import leaf_names


class _Moments(NamedTuple):
  mu: Any
  nu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _State:
  step: Any
  opt: Any


_ONE = np.ones(1)


def test_names_are_keys_fields_and_indices():
  tree = _State(_ONE, [_Moments({'w': _ONE, 3: _ONE}, None), ()])
  with pytest.raises(ValueError, match='[Cc]omparator'):
    leaf_names.flatten(tree)  # Keys of two types have no order in jax.
  tree = _State(_ONE, [_Moments({'w': _ONE}, None), ()])
  assert list(leaf_names.flatten(tree)) == ['step', 'opt/0/mu/w', 'opt/0/nu']


def test_unflatten_undoes_flatten():
  tree = _State(np.int32(1), [_Moments({'w': _ONE}, None), (), {}])
  again = leaf_names.unflatten(tree, leaf_names.flatten(tree))
  assert jax.tree.structure(again) == jax.tree.structure(tree)
  assert again.opt[0].nu is None
  assert leaf_names.nested(leaf_names.flatten(tree)) == {
    'step': np.int32(1),
    'opt': {'0': {'mu': {'w': _ONE}, 'nu': None}},
  }


@pytest.mark.parametrize(
  'tree', [{'a/b': _ONE}, {'': _ONE}, _ONE, {'a': {'b/': None}}]
)
def test_names_that_would_not_be_clear_are_refused(tree):
  with pytest.raises(ValueError, match='without "/"'):
    leaf_names.flatten(tree)


@pytest.mark.parametrize(
  'leaf', ['text', 3, np.array(['text']), np.array([None])]
)
def test_what_is_no_array_of_numbers_is_refused(leaf):
  with pytest.raises(TypeError, match='leaf a: not an array'):
    leaf_names.flatten({'a': leaf})


def test_a_key_is_refused():
  with pytest.raises(TypeError, match='leaf key: not an array'):
    leaf_names.flatten({'key': jax.random.key(0)})
