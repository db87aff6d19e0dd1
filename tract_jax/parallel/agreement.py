"""What the joined processes of a run agree on: to go on, or to stop together.

Training is one program of all processes: each must take part in every update,
or the others wait for it forever. So none stops by itself. A process that is
asked to stop (SIGTERM before a preemption, Ctrl-C) tells the others through the
service that joins them, and they leave at one point. Such points are numbered,
and all processes come to the same ones in the same order:

  process 0    point 7: go on      point 8: stop      leaves
  process 1    point 7: go on      asked ..... 8: stop      leaves

What is said at a point is process 0's decision; the others wait for it. Between
points each works at its own pace (it samples its share) and may give up as soon
as anyone was asked; a point that waits for all comes behind such work.
"""

from collections.abc import Callable
import time

import jax

# The public interface has no messages between processes.
from jax._src import distributed as jax_distributed

from tract_jax.parallel import distributed

_STOP = 'tract_jax/stop'
_FAILED = 'tract_jax/failed'
_WAIT_SECS = 0.2
_SECS_BETWEEN_LOOKS = 1.0


class Agreement:
  """A process's side of it; a single process agrees with itself.

  Example:
    agreement = Agreement(signal.requested)
    if agreement.stop_here():  # by all processes
      save_and_leave()
  """

  def __init__(
    self,
    is_asked: Callable[[], bool],
    host: distributed.Host = distributed.ONLY_HOST,
  ):
    """Begins before the first point; to be made once processes are joined.

    Args:
      is_asked: whether this very process is asked to stop.
      host: which of the processes it is.
    """
    self._is_asked = is_asked
    self._index = host.index
    self._count = host.count
    self._client = jax_distributed.global_state.client if host.joined else None
    self._num_points = 0
    self._has_told = False
    self._was_asked = False
    self._next_look = 0.0

  def asked(self) -> bool:
    """Whether any process was asked to stop; not at the same time everywhere.

    Returns:
      True once this process was, or, up to a second later, another one.
    """
    return self._look(time.monotonic() >= self._next_look)

  def stop_here(self) -> bool:
    """At a point of all processes: whether they stop.

    Returns:
      The same on every process.
    """
    return self._decided(self._next_point())

  def meet(self) -> bool:
    """As `stop_here`, once every process has come.

    Returns:
      True if anyone was asked to stop before all had come.
    """
    return not self.exchange('')

  def exchange(self, text: str) -> list[str]:
    """As `meet`, where each process brings a text for all of them.

    Args:
      text: this process's.

    Returns:
      All texts, in the order of the processes; none if anyone was asked to
      stop before all had come.
    """
    if self._client is None:
      return [] if self._is_asked() else [text]
    point = self._next_point()
    self._client.key_value_set(f'{point}/here/{self._index}', text)
    if self._decided(point, wait=True):
      return []
    found = self._client.key_value_dir_get(f'{point}/here')
    texts = {int(key.rpartition('/')[2]): each for key, each in found}
    return [texts[i] for i in range(self._count)]

  def tell(self, text: str) -> str:
    """At a point of all processes: process 0's text, on each of them."""
    if self._client is None:
      return text
    point = self._next_point()
    if self._index == 0:
      self._client.key_value_set(point, text)
    return self._waited_for(point)

  def leave(self, *, failed: bool = False) -> None:
    """Says that this process stops now, between points.

    Who waits for process 0 at the next point then stops there.

    Args:
      failed: whether it cannot go on, so that the others should not, either.
    """
    if self._client is None:
      return
    if failed:  # Before the stop: who sees that sees this.
      self._client.key_value_set(f'{_FAILED}/{self._index}', '')
    self._tell_stop()
    if self._index == 0:
      self._client.key_value_set(self._next_point(), _word(True))

  def has_failed(self) -> bool:
    """Whether a process has left because it failed."""
    return self._client is not None and bool(
      self._client.key_value_dir_get(_FAILED)
    )

  def _next_point(self) -> str:
    self._num_points += 1
    return f'tract_jax/point/{self._num_points}'

  def _decided(self, point: str, wait: bool = False) -> bool:
    if self._client is None:
      return self._is_asked()
    if self._index == 0:
      while wait and not self._are_all_here(point) and not self._look(True):
        time.sleep(_WAIT_SECS)
      stop = self._look(True)
      self._client.key_value_set(point, _word(stop))
      return stop
    self._look(False)
    return self._waited_for(point) == _word(True)

  def _are_all_here(self, point: str) -> bool:
    assert self._client is not None
    return len(self._client.key_value_dir_get(f'{point}/here')) == self._count

  def _waited_for(self, key: str) -> str:
    """A value, once it is there; signals are told to the others meanwhile."""
    assert self._client is not None
    while True:
      try:
        return self._client.blocking_key_value_get(key, int(_WAIT_SECS * 1000))
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise
      self._look(False)

  def _look(self, at_others: bool) -> bool:
    """Whether anyone was asked to stop, as far as is known."""
    if self._is_asked():
      self._was_asked = True
      self._tell_stop()
    elif at_others and not self._was_asked and self._client is not None:
      self._next_look = time.monotonic() + _SECS_BETWEEN_LOOKS
      self._was_asked = bool(self._client.key_value_dir_get(_STOP))
    return self._was_asked

  def _tell_stop(self) -> None:
    if not self._has_told and self._client is not None:
      self._client.key_value_set(f'{_STOP}/{self._index}', '')
      self._has_told = True


def _word(stop: bool) -> str:
  return 'stop' if stop else 'go on'
