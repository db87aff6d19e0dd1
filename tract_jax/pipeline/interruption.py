"""Signals that ask a run to stop: it saves, and says with which exit code."""

from collections.abc import Callable
import signal

from tract_jax.training import loop

SIGTERM_EXIT = 75
CTRL_C_EXIT = 130


def ignore() -> None:
  """Ends with the exit code that is decided, whatever signal comes now.

  While Python takes itself down, its handlers are gone: a signal in these last
  moments of a finished run would make it look interrupted.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


def stop_if(should_stop: Callable[[], bool], where: str) -> None:
  """Ends a piece of work that begins anew next time.

  Args:
    should_stop: whether the run was asked to stop.
    where: what is left undone, for the message.

  Raises:
    loop.Interrupted: it was.
  """
  if should_stop():
    raise loop.Interrupted(f'stopped {where}')


class StopSignal:
  """Remembers SIGTERM (preemption) and the first SIGINT (Ctrl-C).

  A second Ctrl-C ends the process at once, as usual; what was finished before
  stays whole, since files appear by renaming only.

  Attributes:
    exit_code: None until a signal came, then 75 or 130.
  """

  def __init__(self):
    self.exit_code: int | None = None

  def install(self) -> None:
    """Starts listening; call it once, from the main thread."""
    signal.signal(signal.SIGTERM, self._on_sigterm)
    signal.signal(signal.SIGINT, self._on_sigint)

  def requested(self) -> bool:
    """Whether the run should save and stop."""
    return self.exit_code is not None

  def _on_sigterm(self, *_):
    self.exit_code = SIGTERM_EXIT

  def _on_sigint(self, *_):
    if self.exit_code == CTRL_C_EXIT:
      raise KeyboardInterrupt
    self.exit_code = CTRL_C_EXIT
