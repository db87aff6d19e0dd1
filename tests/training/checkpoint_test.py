import dataclasses
import types as python_types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tract_jax import types
from tract_jax.data import orbax_store
from tract_jax.training import checkpoint, loop


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  step: Any
  params: Any
  opt_state: Any


_OPTIMIZER = optax.chain(
  optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1, 0, 9))
)
_FIELDS = {'lr': 1e-3, 'model': {'layers': 2}}


def _state(step: int) -> _State:
  params = {'q': jnp.full((64, 8), step, jnp.bfloat16), 'frozen': None}
  opt_state = _OPTIMIZER.init(params)
  _, opt_state = _OPTIMIZER.update(
    jax.tree.map(jnp.ones_like, params), opt_state, params
  )
  return _State(jnp.int32(step), params, opt_state)


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def _save(folder, steps, state=_state):
  with orbax_store.Store(folder, max_to_keep=3) as store:
    for step in steps:
      checkpoint.save(store, state(step), {'fingerprint': _FIELDS, 'at': step})


def _restore(folder, state=None, fields=None):
  with orbax_store.Store(folder) as store:
    return checkpoint.restore_latest(
      store, _abstract(state or _state(0)), fields or _FIELDS
    )


def _damage(folder, step):
  """Flips a bit in the saved params/q of a step."""
  needle = np.full(512, step, jnp.bfloat16).tobytes()
  for path in sorted((folder / str(step)).rglob('*')):
    if path.is_file() and needle in (data := path.read_bytes()):
      at = data.index(needle)
      path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
      return
  raise AssertionError('params/q is in no file')


def test_nothing_saved_is_none(tmp_path):
  assert _restore(tmp_path / 'none') is None


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
  _save(tmp_path, [9, 10])
  state, metadata = _restore(tmp_path)
  wanted = _state(10)
  assert metadata == {'fingerprint': _FIELDS, 'at': 10}
  assert jax.tree.structure(state) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
    assert (a.dtype, a.sharding) == (b.dtype, b.sharding)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_state_does_not_depend_on_the_names_of_optax_classes(tmp_path):
  class Renamed(NamedTuple):
    count: Any
    mu: Any
    nu: Any

  def rename(node):
    if isinstance(node, optax.ScaleByAdamState):
      return Renamed(*node)
    return node

  _save(tmp_path, [1])
  wanted = jax.tree.map(
    rename,
    _state(1),
    is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState),
  )
  state, _ = _restore(tmp_path, wanted)
  assert 'Renamed' in str(state.opt_state)
  assert jax.tree.structure(state) == jax.tree.structure(wanted)


def test_another_fingerprint_lists_the_keys(tmp_path):
  _save(tmp_path, [1])
  other = {'lr': 2e-3, 'model': {'layers': 3}}
  with pytest.raises(types.InputError) as error:
    _restore(tmp_path, fields=other)
  assert str(error.value).splitlines()[:2] == [
    f'{tmp_path}: lr: recorded 0.001, expected 0.002',
    f'{tmp_path}: model.layers: recorded 2, expected 3',
  ]


def test_another_shape_dtype_or_key_names_the_leaf(tmp_path):
  _save(tmp_path, [1])
  state = _state(1)
  params = {
    'q': jnp.zeros((64, 9), jnp.float32),
    'frozen': None,
    'k': state.step,
  }
  with pytest.raises(types.InputError) as error:
    _restore(tmp_path, dataclasses.replace(state, params=params))
  assert str(error.value).splitlines() == [
    f'{tmp_path}: step 1: leaf params/k: stored nothing, wanted int32[]',
    f'{tmp_path}: step 1: leaf params/q: stored bfloat16[64, 8], wanted'
    ' float32[64, 9]',
  ]


def test_a_damaged_newest_state_names_leaf_and_whole_older_steps(tmp_path):
  _save(tmp_path, [100, 200, 300])
  _damage(tmp_path, 300)
  _damage(tmp_path, 200)
  with pytest.raises(orbax_store.DamagedError) as error:
    _restore(tmp_path)
  text = str(error.value)
  assert f'{tmp_path}: step 300: leaf params/q is damaged' in text
  assert 'older steps that are whole: 100;' in text
  assert str(tmp_path / '300') in text
  assert len(text.splitlines()) == 1


def test_when_nothing_is_whole_it_says_so(tmp_path):
  _save(tmp_path, [100])
  _damage(tmp_path, 100)
  with pytest.raises(orbax_store.DamagedError, match='no older step is whole'):
    _restore(tmp_path)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  def spoilt(step):
    state = _state(step)
    moments = jax.tree.map(
      lambda x: x * jnp.nan if x.ndim else x, state.opt_state
    )
    return dataclasses.replace(state, opt_state=moments)

  _save(tmp_path, [1])
  with pytest.raises(
    loop.NonFiniteError, match='after 2 updates is not finite'
  ):
    _save(tmp_path, [2], spoilt)
  assert int(_restore(tmp_path)[0].step) == 1


def test_metadata_must_hold_a_fingerprint(tmp_path):
  with (
    orbax_store.Store(tmp_path) as store,
    pytest.raises(ValueError, match='fingerprint'),
  ):
    checkpoint.save(store, _state(1), {'at': 1})


def test_joined_processes_load_no_older_step_for_advice(tmp_path, monkeypatch):
  """Those whose own parts are whole would not come to load it, too."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  store = python_types.SimpleNamespace(folder=tmp_path)  # Cannot load anything.
  found = checkpoint._advice(store, 9, [3, 6], None)
  assert found == (
    f'older steps: 3, 6; delete the folder {tmp_path / "9"} yourself to go on'
    ' from the last of these'
  )
