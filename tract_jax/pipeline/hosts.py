"""What one of several hosts says and refuses; see docs/hosts.md.

Hosts that share a job sample and predict, each its own chunks; they train
nothing.
"""

from tract_jax import types
from tract_jax.parallel import distributed


def labelled(host: distributed.Host, label: str) -> str:
  """A job's label for progress, with the host's number where it shares it."""
  return f'{label} ({host})' if host.count > 1 else label


def check_trained(
  host: distributed.Host, label: str, is_done: bool, method: str = ''
) -> None:
  """Refuses to train on one of several hosts.

  Args:
    host: this one.
    label: of the stage.
    is_done: whether the stage is trained already.
    method: whose stage it is; empty: every method's.

  Raises:
    types.InputError: it would have to be trained; names the command for it.
  """
  if host.count > 1 and not is_done:
    only = f' --config.methods=\'("{method}",)\'' if method else ''
    raise types.InputError(
      f'{label}: not trained yet, and {host.count} hosts train nothing; run '
      f'the same command with --task=train{only} on one host first'
    )
