"""How Orbax is asked to save: its options, by this process or by another.

Joined processes save together, or each by itself; see `orbax_store.Store`.
"""

from collections.abc import Iterator
import contextlib
import itertools
from typing import Any

from etils import epath
import jax
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures import synchronization

from tract_jax.models import remote_files

_MAX_CAUSE_CHARS = 400
_OWN_NUMBERS = itertools.count()


def make_context(folder: epath.PathLike, local: bool) -> ocp.Context:
  """Orbax's options for steps in a folder."""
  context = ocp.Context()
  # Each host would ask by itself whether there is a step to be overwritten, and
  # wait for ever for those that had another answer.
  context.file.skip_sync_file_validations = remote_files.is_remote(folder)
  # Weights and moments hardly compress, and small steps are saved faster.
  context.array.saving.use_compression = False
  # If the folder cannot be made, then saving threads that wait for it would
  # hold up the exit of the program for five minutes.
  context.asynchronous.create_directories_asynchronously = False
  if local:
    process = jax.process_index()
    context.multiprocessing.primary_host = process
    context.multiprocessing.active_processes = {process}
    context.multiprocessing.barrier_sync_key_prefix = f'process{process}'
  return context


@contextlib.contextmanager
def own_numbering() -> Iterator[None]:
  """Numbers what one of several processes does by itself apart.

  Orbax counts its operations in each process, and processes meet at barriers
  that are named by these numbers: those that not all do must not be among them.
  """
  ids = synchronization.OperationIdGenerator
  of_all = ids._operation_id_counter, ids._operation_id
  ids._operation_id_counter = _OWN_NUMBERS
  try:
    yield
  finally:
    ids._operation_id_counter, ids._operation_id = of_all


def save_async(
  path: epath.Path, leaves: dict[str, Any], record: dict[str, Any]
) -> Any:
  """Starts to save here; `result()` of what it returns ends it."""
  return ocp.save_async(path, leaves, **_options(path, record))


def problem_of_save(
  path: epath.Path, leaves: dict[str, Any], record: dict[str, Any]
) -> str:
  """Saves a step as `Store.save` does, for a process that cannot.

  Args:
    path: of the step.
    leaves: {name: numpy array}.
    record: what stands beside them.

  Returns:
    What went wrong; empty if nothing did.
  """
  try:
    with make_context(path.parent, local=False):
      ocp.save(path, leaves, **_options(path, record))
  except Exception as error:
    return cause(error)
  return ''


def root(error: BaseException) -> BaseException:
  """The error that started it all; Orbax wraps it in others."""
  while error.__cause__ is not None:
    error = error.__cause__
  return error


def cause(error: BaseException) -> str:
  """The first line of the error that started it all."""
  error = root(error)
  lines = str(error).strip().splitlines() or ['no message']
  return f'{type(error).__name__}: {lines[0][:_MAX_CAUSE_CHARS]}'


def _options(path: epath.Path, record: dict[str, Any]) -> dict[str, Any]:
  # In buckets, which rename nothing, unfinished steps have their final names.
  return {'custom_metadata': record, 'overwrite': remote_files.is_remote(path)}
