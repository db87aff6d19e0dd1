"""What one of several hosts says, waits for and refuses; see docs/hosts.md.

Hosts that share a job sample and predict, each its own chunks. Joined ones
train together, too; others train nothing.
"""

import collections
from collections.abc import Callable, Mapping
import json
from typing import Any

from tract_jax import types
from tract_jax.data import manifest
from tract_jax.parallel import agreement, distributed
from tract_jax.pipeline import interruption
from tract_jax.training import loop

_MAX_LINES = 20


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
  interruption.stop_if(stop.meet, where)


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


def check_alike(
  host: distributed.Host,
  stop: agreement.Agreement,
  find: Callable[[], Mapping[str, Any]],
) -> None:
  """Refuses a run whose joined hosts do not have the same.

  Args:
    host: this one.
    stop: what joined ones agree on; all of them make this call.
    find: gives what this host has, by name: config, code, digests of data.

  Raises:
    types.InputError: a host differs from most of them, or, of two, from the
      first; a line for each such host and name, with both values. It is the
      same on all hosts.
    loop.Interrupted: one of them was asked to stop.
  """
  if not host.joined:
    return
  facts = find()
  # Hosts may be thousands, and seldom differ.
  if len(set(_exchanged(stop, manifest.digest_of(facts)))) == 1:
    return
  texts = _exchanged(stop, manifest.canonical_json(facts))
  usual = collections.Counter(texts).most_common(1)[0][0]
  words = 'has', f'host {texts.index(usual) + 1} has'
  lines = [
    f'host {i} of {len(texts)}: {line}'
    for i, text in enumerate(texts, start=1)
    for line in manifest.differences(json.loads(text), json.loads(usual), words)
  ]
  if len(lines) > _MAX_LINES:
    lines[_MAX_LINES:] = [f'and {len(lines) - _MAX_LINES} more differences']
  lines.append('give all hosts the same command, code and data')
  raise types.InputError('\n'.join(lines))


def _exchanged(stop: agreement.Agreement, text: str) -> list[str]:
  """The text of each host."""
  texts = stop.exchange(text)
  if not texts:
    raise loop.Interrupted('stopped before the hosts were compared')
  return texts
