"""The short form of `make faults`."""

import random
import signal

import pytest

from tests.faults import harness, random_kills


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_killed_at_random_end_as_if_they_never_had_been(
  undisturbed, tmp_path
):
  counts = random_kills.Counts()
  random_kills.disturb(
    random_kills.Course('alone'),
    [signal.SIGKILL] * 2,
    harness.results(undisturbed),
    4.0,
    tmp_path,
    random.Random(0),
    counts,
  )
  assert not counts.problems, '\n'.join(counts.problems)
  assert counts.kills.total() == 2
  assert counts.runs and counts.whole


def test_lost_and_repeated_work_is_told():
  checkpoints = 'ce/stage1/seed0/checkpoints'
  before = {f'{checkpoints}/8': 1, f'{checkpoints}/16': 1, 'a': 1, 'b': 1}
  assert not harness.redone(before, before)
  # An outdated checkpoint goes.
  assert not harness.redone(
    before, {f'{checkpoints}/16': 1, f'{checkpoints}/24': 2, 'a': 1, 'b': 1}
  )
  assert harness.redone(before, {f'{checkpoints}/8': 1, 'a': 2}) == [
    f'{checkpoints}/16', 'a', 'b'
  ]  # fmt: skip
  assert harness.redone(before, {**before, f'{checkpoints}/16': 2})
