"""A store whose steps are all read, at once: of a bucket, a copy of them.

A step in a bucket takes Orbax some 150 requests, one behind another. The files
of all steps come together, many at a time.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import tempfile

from etils import epath

from tract_jax.data import orbax_store
from tract_jax.models import remote_files


@contextlib.contextmanager
def opened(folder: epath.PathLike) -> Iterator[orbax_store.Store]:
  """Opens a store to be read, by this process alone.

  Args:
    folder: of the store; in a bucket its finished steps are copied, as they
      are now.

  Yields:
    The store; messages name `folder`, not the copy.

  Raises:
    types.UnreachableError: the bucket gives no answer.
  """
  if not remote_files.is_remote(folder):
    with orbax_store.Store(folder, local=True) as store:
      yield store
    return
  with tempfile.TemporaryDirectory() as scratch:
    names = remote_files.names_below(folder)
    steps = {str(step) for step in orbax_store.finished_steps(names)}
    wanted = (name for name in names if name.partition('/')[0] in steps)
    remote_files.fetch(folder, wanted, pathlib.Path(scratch))
    copy = orbax_store.Store(scratch, local=True, name=str(folder))
    with copy as store:
      yield store
