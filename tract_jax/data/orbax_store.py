"""A folder of numbered steps, saved and loaded with Orbax.

Every call of Orbax stands in this file and orbax_saving. A step is a tree of
arrays and a JSON object. What this adds to Orbax:

- Each leaf has a checksum, made before it is saved and compared after it is
  loaded: Orbax loads an array with a flipped bit without a word.
- A wanted tree is compared with the stored one by name, shape and dtype: Orbax
  casts in silence.
- Errors are one line that names the folder, the step and the leaf.

Leaves are stored flat, under the names of their paths ("params/layers/q"), so
that a step depends neither on the classes of the tree (optax's change) nor on
how many devices or processes wrote it.
"""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import functools
import json
from typing import Any, Self, TypeVar

from etils import epath
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.path import atomicity_types, gcs_utils

from tract_jax import types
from tract_jax.data import (
  checksum,
  disk,
  leaf_names,
  manifest,
  orbax_saving,
  saving_process,
)
from tract_jax.models import remote_files

_FORMAT = 1
_NAMES = ocp.path.step.standard_name_format()
# Of a bucket's finished steps; Orbax takes some 20 requests to look for it.
_MARK = atomicity_types.COMMIT_SUCCESS_FILE
_MAX_PROBLEMS = 8
_Result = TypeVar('_Result')


class DamagedError(types.InputError):
  """A finished step that cannot be read back as it was written."""


class Store:
  """Numbered steps in one folder; a step is there as a whole or not at all.

  Example:
    with Store(folder, max_to_keep=3) as store:
      store.save(7, {'w': w}, {'seed': 0})
      store.wait()
      arrays, metadata = store.load(7)
  """

  def __init__(
    self,
    folder: epath.PathLike,
    max_to_keep: int | None = None,
    local: bool = False,
    name: str = '',
  ):
    """Opens the folder; it is made with the first step.

    Args:
      folder: where the steps lie, each in a folder named by its number.
      max_to_keep: older steps than this many are deleted; None keeps all.
      local: every process saves and loads by itself: it saves host arrays in
        steps of its own, and loads onto its own devices. Otherwise each call
        but `steps` and `metadata` must be made by all processes together, and
        global arrays are allowed.
      name: what messages call the folder, where it stands for another.
    """
    path = epath.Path(folder)
    # Orbax takes absolute paths alone.
    self.folder = path if remote_files.is_remote(path) else path.resolve()
    self._name = name or str(self.folder)
    # Orbax writes host arrays on process 0 alone, and compares all processes'
    # paths: one of several processes can save by itself only by another one.
    alone = local and jax.process_count() > 1
    self._helper = saving_process.SavingProcess() if alone else None
    self._start = (
      self._helper.start if self._helper else orbax_saving.save_async
    )
    self._numbering = (
      orbax_saving.own_numbering if alone else contextlib.nullcontext
    )
    self._max_to_keep = max_to_keep
    self._context = orbax_saving.make_context(self.folder, local)
    self._pending: tuple[int, Any] | None = None
    self._outdated: list[int] = []

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused_error: object) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Numbers of the finished steps, ascending, as the folder has them now."""

    def find() -> list[int]:
      if remote_files.is_remote(self.folder):
        return finished_steps(remote_files.names_below(self.folder))
      found = _NAMES.find_all(self.folder) if self.folder.exists() else ()
      return sorted(step.step for step in found)

    return self._run('steps cannot be listed', types.InputError, find)

  def save(
    self, step: int, arrays: types.PyTree, metadata: Mapping[str, Any]
  ) -> None:
    """Starts to save a step and returns when the arrays may be changed.

    Files are written in the background; the step counts as finished after
    `wait`, or after the next `save` or `close`, which wait as well.

    Args:
      step: its number, not used yet.
      arrays: tree of jax or numpy arrays; dictionary keys without "/".
      metadata: a JSON object.

    Raises:
      types.InputError: the step exists, or the folder cannot be written, now
        or by the save before this one.
      TypeError: a leaf is no array.
      ValueError: two leaves have one name, or a name has "/" in it.
    """
    self.wait()
    leaves = {k: _as_array(v) for k, v in leaf_names.flatten(arrays).items()}
    if self._exists(step):
      raise types.InputError(f'{self._name}: step {step} exists already')
    if self._max_to_keep is not None:
      oldest = sorted([*self.steps(), step])[-self._max_to_keep :][0]
      self._outdated = [old for old in self._numbers() if old < oldest]
    record = {
      'format': _FORMAT,
      'leaves': checksum.leaf_records(leaves),
      # As it will be read: tuples become lists, all keys text.
      'metadata': json.loads(manifest.canonical_json(metadata)),
    }
    record['digest'] = manifest.digest_of(record)
    # Orbax refuses arrays without elements; their record says everything.
    stored = {k: v for k, v in leaves.items() if v is not None and v.size}
    stored = stored or {'empty': np.zeros(1, np.uint8)}
    response = self._run(
      f'step {step} cannot be saved',
      types.InputError,
      lambda: self._start(self._path(step), stored, record),
    )
    self._pending = (step, response)

  def wait(self) -> None:
    """Waits for the save under way, then deletes the steps it outdated.

    Raises:
      types.InputError: that save failed; the steps before it are unharmed.
    """
    if self._pending is None:
      return
    (step, response), self._pending = self._pending, None
    outdated, self._outdated = self._outdated, []
    self._run(f'step {step} cannot be saved', types.InputError, response.result)
    for old in outdated:
      # Listed before this save began, so all processes delete the same ones.
      self._run(
        f'outdated step {old} cannot be deleted',
        types.InputError,
        functools.partial(ocp.delete, self._path(old), missing_ok=True),
      )

  def load(
    self, step: int, abstract: types.PyTree | None = None
  ) -> tuple[types.PyTree, dict[str, Any]]:
    """Loads and verifies a step.

    Args:
      step: one of `steps()`.
      abstract: tree of the wanted structure; leaves with shape and dtype. One
        with a sharding is loaded as a jax array, one without as numpy. If None
        the whole step comes as numpy arrays in nested dictionaries, keyed by
        key, field or index.

    Returns:
      The tree, bit for bit as it was saved, and the metadata.

    Raises:
      DamagedError: an array or the metadata is not what was saved.
      types.InputError: the wanted structure, a shape or a dtype differs.
    """
    self.wait()
    record = self._record(step)
    stored = record['leaves']
    if abstract is None:
      targets = {
        name: leaf and jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype'])
        for name, leaf in stored.items()
      }
    else:
      targets = leaf_names.flatten(abstract)
      self._check_targets(step, stored, targets)
    values = self._load_leaves(step, targets)
    actual = checksum.leaf_records(values)
    for name, leaf in stored.items():
      if actual[name] != leaf:
        raise DamagedError(
          f'{self._name}: step {step}: leaf {name} is damaged: checksum'
          f' {leaf["checksum"]} was saved, {actual[name]["checksum"]} is read'
        )
    if abstract is None:
      return leaf_names.nested(values), record['metadata']
    return leaf_names.unflatten(abstract, values), record['metadata']

  def metadata(self, step: int) -> dict[str, Any]:
    """The JSON object of a step, verified, without its arrays."""
    return self._record(step)['metadata']

  def close(self) -> None:
    """Waits for the save under way; see `wait` for what it raises."""
    try:
      self.wait()
    finally:
      if self._helper:
        self._helper.close()

  def _path(self, step: int) -> epath.Path:
    return self.folder / _NAMES.build_name(step)

  def _numbers(self) -> list[int]:
    """As `steps`, with those in a bucket that are half saved or deleted."""
    if not remote_files.is_remote(self.folder):
      return self.steps()
    names = remote_files.names_below(self.folder)
    parts = {name.partition('/')[0] for name in names}
    return sorted(int(part) for part in parts if part.isdecimal())

  def _exists(self, step: int) -> bool:
    """Whether a step is finished, without a look at all the others."""
    if remote_files.is_remote(self.folder):
      with remote_files.answering(self._name):
        return (self._path(step) / _MARK).exists()
    try:
      _NAMES.find_step(self.folder, step)
    except ValueError:
      return False
    return True

  def _run(
    self, what: str, error_type: type[Exception], call: Callable[[], _Result]
  ) -> _Result:
    """Calls Orbax; whatever it raises becomes one line.

    One about what cannot be written tells the room that is left.
    """
    try:
      with self._context, self._numbering():
        return call()
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise
    except types.UnreachableError:
      raise
    except Exception as error:
      cause = orbax_saving.cause(error)
      is_remote = remote_files.is_remote(self.folder)
      if is_remote and remote_files.has_no_answer(orbax_saving.root(error)):
        raise types.UnreachableError(f'{self._name}: {cause}') from error
      room = '' if error_type is DamagedError else disk.free_space(self.folder)
      problem = f'{self._name}: {what}: {cause}{room}'
      raise error_type(problem) from error

  def _record(self, step: int) -> dict[str, Any]:
    """What `save` wrote beside the arrays, verified."""
    if not self._exists(step):
      raise types.InputError(f'{self._name}: there is no step {step}')

    def read() -> tuple[dict[str, Any], Any, str]:
      record = dict(ocp.metadata(self._path(step)).custom_metadata or {})
      saved = record.pop('digest', None)
      return record, saved, manifest.digest_of(record)

    record, saved, found = self._run(
      f'step {step}: metadata is damaged', DamagedError, read
    )
    if saved != found:
      raise DamagedError(
        f'{self._name}: step {step}: metadata is damaged: digest {saved}'
        f' was saved, {found} is read'
      )
    if record['format'] != _FORMAT:
      raise types.InputError(
        f'{self._name}: step {step}: format {record["format"]}, this program'
        f' reads {_FORMAT}'
      )
    return record

  def _check_targets(
    self, step: int, stored: dict[str, Any], targets: dict[str, Any]
  ) -> None:
    """Compares names, shapes and dtypes; raises with a line for each."""
    lines = []
    for name in sorted(stored.keys() | targets.keys()):
      old, new = _signature(stored, name), _signature(targets, name)
      if old != new:
        lines.append(
          f'{self._name}: step {step}: leaf {name}: stored {old}, wanted {new}'
        )
    place = f'{self._name}: '
    types.raise_problems(lines, 'more leaves differ', place, _MAX_PROBLEMS)

  def _load_leaves(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """Loads all leaves; empty and None ones are made, not read."""
    wanted = {k: _abstract(v) for k, v in targets.items() if v is not None}
    read = {k: v for k, v in wanted.items() if v.size}
    loaded = {}
    if read:
      loaded = self._run(
        f'step {step} is damaged',
        DamagedError,
        lambda: ocp.load(self._path(step), read),
      )
    for name, leaf in wanted.items():
      if not leaf.size:
        value = np.zeros(leaf.shape, leaf.dtype)
        sharding = getattr(leaf, 'sharding', None)
        loaded[name] = jax.device_put(value, sharding) if sharding else value
    return {name: loaded.get(name) for name in targets}


def finished_steps(names: Iterable[str]) -> list[int]:
  """Steps in a bucket that are finished, ascending.

  Args:
    names: of all files below their folder.
  """
  parts = (name.split('/') for name in names)
  return sorted(
    int(step) for step, *rest in parts if step.isdecimal() and rest == [_MARK]
  )


def check_bucket(folder: epath.PathLike) -> None:
  """Raises what Orbax does when it first deletes a step, where it may not.

  Before that it asks what kind of bucket it is (storage.buckets.get).
  """
  gcs_utils.is_hierarchical_namespace_enabled(folder)


def _signature(leaves: dict[str, Any], name: str) -> str:
  """Dtype and shape for comparison and for messages, e.g. "float32[2, 3]"."""
  if name not in leaves:
    return 'nothing'
  leaf = leaves[name]
  if leaf is None:
    return 'None'
  if isinstance(leaf, dict):
    return f'{leaf["dtype"]}{leaf["shape"]}'
  return f'{leaf.dtype.name}{list(leaf.shape)}'


def _as_array(leaf: Any) -> Any:
  """A numpy scalar as an array; Orbax would make a Python number of it."""
  return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def _abstract(leaf: Any) -> Any:
  """What Orbax is asked for: a jax array where a sharding is given."""
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    return np.empty(leaf.shape, leaf.dtype)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
