"""Train states in a store: save one, find the one to go on from.

A state is any tree of arrays with a field `step`. Its metadata is a JSON
object with the key "fingerprint": everything that must be the same for a run
to go on from it. The rest of the metadata (position in the data, counters)
belongs to the caller.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tract_jax import types
from tract_jax.data import manifest, orbax_store
from tract_jax.training import loop

_FINGERPRINT = 'fingerprint'


def save(
  store: orbax_store.Store, state: types.PyTree, metadata: Mapping[str, Any]
) -> None:
  """Starts to save a state under its step; `store.wait()` ends it.

  Args:
    store: of the stage.
    state: tree of arrays with `state.step`, an int32 scalar.
    metadata: JSON object with the key "fingerprint".

  Raises:
    types.InputError: the step exists, or this save or the one before it
      failed.
    loop.NonFiniteError: a number in the state is not finite; it is not saved.
  """
  if not isinstance(metadata.get(_FINGERPRINT), Mapping):
    raise ValueError(f'metadata lacks the object {_FINGERPRINT!r}')
  step = int(np.asarray(state.step))
  if not _all_finite(jax.tree.leaves(state)):
    raise loop.NonFiniteError(
      f'the state after {step} updates is not finite, and is not saved'
    )
  store.save(step, state, metadata)


def restore_latest(
  store: orbax_store.Store,
  abstract_state: types.PyTree,
  expected: Mapping[str, Any],
) -> tuple[types.PyTree, dict[str, Any]] | None:
  """Loads the newest state, if there is one that this run may go on from.

  Args:
    store: of the stage.
    abstract_state: tree of jax.ShapeDtypeStruct with the shardings wanted,
      which may be of other devices than those it was saved from.
    expected: the fingerprint of this run.

  Returns:
    (state, metadata), or None where nothing was saved yet.

  Raises:
    types.InputError: it was saved by a run with another fingerprint (each
      differing key is listed with both values), or with another structure,
      shape or dtype (each differing leaf is listed).
    orbax_store.DamagedError: it is damaged; names the leaf, and the older
      steps that are whole. Which to go on from is for the user to say.
  """
  steps = store.steps()
  if not steps:
    return None
  latest = steps[-1]
  try:
    recorded = store.metadata(latest).get(_FINGERPRINT, {})
    lines = manifest.differences(recorded, expected)
    if lines:
      raise types.InputError('\n'.join(manifest.foreign(store.folder, lines)))
    return store.load(latest, abstract_state)
  except orbax_store.DamagedError as error:
    advice = _advice(store, latest, steps[:-1], abstract_state)
    raise orbax_store.DamagedError(f'{error}; {advice}') from error


@jax.jit
def _all_finite(leaves: list[types.Array]) -> types.Array:
  """Whether every number is finite; the same on all processes."""
  return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def _advice(
  store: orbax_store.Store,
  damaged: int,
  older: list[int],
  abstract_state: types.PyTree,
) -> str:
  """Which older steps can be loaded, and how to choose one."""
  whole = []
  if jax.process_count() > 1:
    # To load them all processes are needed, and the others may not know.
    steps = ', '.join(map(str, older)) or 'none'
    return (
      f'older steps: {steps}; delete the folder {store.folder / str(damaged)}'
      ' yourself to go on from the last of these'
    )
  for step in older:
    try:
      store.load(step, abstract_state)
    except types.InputError:
      continue
    whole.append(str(step))
  if not whole:
    return f'no older step is whole; delete {store.folder} to start again'
  return (
    f'older steps that are whole: {", ".join(whole)}; delete the folder'
    f' {store.folder / str(damaged)} yourself to go on from step {whole[-1]}'
  )
