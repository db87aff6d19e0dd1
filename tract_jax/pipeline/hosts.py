"""What one of several hosts says, waits for and refuses; see docs/hosts.md.

Hosts that share a job sample and predict, each its own chunks. Joined ones
train together, too; others train nothing.
"""

from collections.abc import Callable

from tract_jax import types
from tract_jax.parallel import agreement, distributed
from tract_jax.training import loop


def labelled(host: distributed.Host, label: str) -> str:
  """A job's label for progress, with the host's number where it shares it."""
  return f'{label} ({host})' if host.count > 1 else label


def meet(stop: agreement.Agreement, where: str) -> None:
  """Waits for the processes that are joined with this one.

  Args:
    stop: what they agree on.
    where: what is left undone if they stop, for the message.

  Raises:
    loop.Interrupted: one of them was asked to stop.
  """
  loop.stop_if(stop.meet, where)


def at_once(unused_label: str, finish: Callable[[], None]) -> None:
  """As `together`, for a host that waits for nobody."""
  finish()


def together(
  host: distributed.Host,
  stop: agreement.Agreement,
  label: str,
  finish: Callable[[], None],
) -> None:
  """Finishes what every host had a share of, once all of them are done.

  Joined hosts meet, and the first one finishes. Others do not know of each
  other: each tries, and finds whether all shares are there.

  Args:
    host: this one.
    stop: what joined ones agree on.
    label: of the job.
    finish: writes what is made of all shares, where they are there.

  Raises:
    loop.Interrupted: one of them was asked to stop.
  """
  meet(stop, f'before all of {label} was there')
  if host.writes:
    finish()
  meet(stop, f'after {label}')


def check_trained(
  host: distributed.Host, label: str, is_done: bool, method: str = ''
) -> None:
  """Refuses to train on one of several hosts that are not joined.

  Args:
    host: this one.
    label: of the stage.
    is_done: whether the stage is trained already.
    method: whose stage it is; empty: every method's.

  Raises:
    types.InputError: it would have to be trained; names the command for it.
  """
  if host.is_alone and not is_done:
    only = f' --config.methods=\'("{method}",)\'' if method else ''
    raise types.InputError(
      f'{label}: not trained yet, and {host.count} hosts train nothing; run '
      f'the same command with --task=train{only} on one host first'
    )
