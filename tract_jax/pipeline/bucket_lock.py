"""A lock for workdirs in buckets, which know of no locks.

It is a file that its run writes anew every few seconds, each time with another
number. Who finds one watches it for a while: where it changes, a run is alive
there; where it does not, the run was killed, and its lock is taken over. So no
clocks are compared, and what is killed leaves nothing to be cleared away.

Two runs that are started in the same second do not see each other.
"""

from collections.abc import Iterator
import contextlib
import secrets
import threading
import time

from etils import epath

from tract_jax import types
from tract_jax.pipeline import progress

RENEW_SECS = 15.0
# Some renewals may fail, or be late, before a run is given up.
WATCH_SECS = 60.0
_SECS_BETWEEN_LOOKS = 1.0


@contextlib.contextmanager
def held(
  path: epath.Path,
  *,
  renew_secs: float = RENEW_SECS,
  watch_secs: float = WATCH_SECS,
) -> Iterator[None]:
  """Holds a lock until the block ends.

  Args:
    path: of the lock's file, in a folder that is there.
    renew_secs: how often it is written anew.
    watch_secs: how long one that is there already is watched.

  Yields:
    Nothing.

  Raises:
    types.InputError: another run holds it.
  """
  _watch(path, watch_secs)
  name, done = secrets.token_hex(8), threading.Event()

  def renew() -> None:
    number = 0
    while not done.wait(renew_secs):
      number += 1
      # The next one may succeed; the run itself tells what cannot be written.
      with contextlib.suppress(Exception):
        if path.read_text().startswith(name):
          path.write_text(f'{name} {number:06}')

  path.write_text(f'{name} {0:06}')
  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    # Who was silent for too long has been taken for dead, and the lock is not
    # his any more.
    with contextlib.suppress(Exception):
      if path.read_text().startswith(name):
        path.unlink(missing_ok=True)


def _watch(path: epath.Path, watch_secs: float) -> None:
  """Returns once the lock is not renewed any more; raises where it is."""
  before = _read(path)
  if before is None:
    return
  progress.say(
    f'{path}: another run was here; watching for {watch_secs:.0f} s whether it '
    'still is'
  )
  deadline = time.monotonic() + watch_secs
  while (left := deadline - time.monotonic()) > 0:
    time.sleep(min(left, _SECS_BETWEEN_LOOKS))
    found = _read(path)
    if found is None:
      return
    if found != before:
      raise types.InputError(
        f'workdir {path.parent}: another run is in it ({path.name}); wait for '
        'it, or give another --workdir'
      )


def _read(path: epath.Path) -> str | None:
  """The text of a lock; None where there is none."""
  try:
    return path.read_text()
  except FileNotFoundError:
    return None
