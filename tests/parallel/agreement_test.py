"""Tests of tract_jax.parallel.agreement: processes are threads here."""

import concurrent.futures
import random
import threading
import time
import types as python_types

import jax
import pytest

from tract_jax.parallel import agreement, distributed


class Service:
  """What the service of joined processes keeps, for threads of one."""

  def __init__(self):
    self.values = {}
    self._changed = threading.Condition()

  def key_value_set(self, key, value):
    with self._changed:
      assert key not in self.values, key
      self.values[key] = value
      self._changed.notify_all()

  def key_value_dir_get(self, folder):
    with self._changed:
      found = list(self.values.items())
    return [(k, v) for k, v in found if k.startswith(f'{folder}/')]

  def blocking_key_value_get(self, key, timeout_ms):
    with self._changed:
      if not self._changed.wait_for(
        lambda: key in self.values, timeout_ms / 1000
      ):
        raise jax.errors.JaxRuntimeError(f'DEADLINE_EXCEEDED: {key}')
      return self.values[key]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  service = Service()
  state = python_types.SimpleNamespace(client=service)
  monkeypatch.setattr(agreement.jax_distributed, 'global_state', state)
  monkeypatch.setattr(agreement, '_WAIT_SECS', 0.005)
  monkeypatch.setattr(agreement, '_SECS_BETWEEN_LOOKS', 0.01)
  return service


def run_all(count, work):
  """work(index, agreement, signal) in a thread each; their results."""
  signals = [threading.Event() for _ in range(count)]
  agreements = [
    agreement.Agreement(
      signals[i].is_set, distributed.Host(i, count, joined=True)
    )
    for i in range(count)
  ]
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    futures = [
      pool.submit(work, i, agreements[i], signals[i]) for i in range(count)
    ]
    return [future.result(timeout=20) for future in futures]


@pytest.mark.parametrize('slowest', range(3))
@pytest.mark.parametrize('victim', range(3))
def test_all_stop_at_the_same_point_whoever_was_asked(victim, slowest):
  rng = random.Random(victim)
  asked_at = rng.randrange(3, 20)
  places = [0, 0, 0]

  def work(index, agreed, signal):
    for point in range(100):
      places[index] = point
      # As in training: none is more than two updates ahead.
      while min(places) < point - 2:
        time.sleep(0.0005)
      if index == victim and point == asked_at:
        signal.set()
      if agreed.stop_here():
        places[index] = 1000
        return point
      time.sleep(0.004 * (index == slowest))
    return None

  points = run_all(3, work)
  assert len(set(points)) == 1
  # It is told before the next point, and the first one looks at each.
  assert asked_at <= points[0] <= asked_at + 4


def test_nobody_stops_unasked():
  def work(index, agreed, unused_signal):
    return [
      agreed.meet() if point % 2 else agreed.stop_here() for point in range(6)
    ]

  assert run_all(3, work) == [[False] * 6] * 3


def test_those_who_meet_wait_for_the_last():
  came = []

  def work(index, agreed, unused_signal):
    time.sleep(0.05 * index)
    came.append(index)
    assert not agreed.meet()
    return len(came)

  assert run_all(3, work) == [3, 3, 3]


@pytest.mark.parametrize('leaves', [0, 1, 2])
def test_who_gives_up_between_points_keeps_nobody_waiting(leaves):
  def work(index, agreed, unused_signal):
    assert not agreed.meet()
    if index == leaves:
      time.sleep(0.05)
      agreed.leave()
      return 'left'
    return agreed.meet()

  wanted = [True, True, True]
  wanted[leaves] = 'left'
  assert run_all(3, work) == wanted


@pytest.mark.parametrize('asked', [0, 1])
def test_who_works_at_its_own_pace_sees_that_another_was_asked(asked):
  def work(index, agreed, signal):
    assert not agreed.meet()
    if index == asked:
      signal.set()
    begin = time.monotonic()
    while not agreed.asked():
      assert time.monotonic() - begin < 10
      time.sleep(0.002)
    return agreed.meet()

  assert run_all(2, work) == [True, True]


def test_a_signal_while_waiting_for_process_0_reaches_it():
  def work(index, agreed, signal):
    if index == 1:
      threading.Timer(0.05, signal.set).start()
      return agreed.meet()
    while not agreed.asked():
      time.sleep(0.002)
    return agreed.meet()

  assert run_all(2, work) == [True, True]


def test_process_0_tells_the_others():
  def work(index, agreed, unused_signal):
    return agreed.tell(f'text of {index}'), agreed.stop_here()

  assert run_all(3, work) == [('text of 0', False)] * 3


def test_each_gets_the_texts_of_all_in_their_order():
  def work(index, agreed, unused_signal):
    time.sleep(0.003 * (11 - index))
    return agreed.exchange(f'text of {index}'), agreed.stop_here()

  texts = [f'text of {index}' for index in range(12)]
  assert run_all(12, work) == [(texts, False)] * 12


def test_who_gives_up_before_the_texts_are_there_keeps_nobody_waiting():
  def work(index, agreed, unused_signal):
    if index == 1:
      agreed.leave()
      return []
    return agreed.exchange('text')

  assert run_all(3, work) == [[]] * 3


def test_one_process_agrees_with_itself(quick):
  signal = threading.Event()
  agreed = agreement.Agreement(signal.is_set)
  assert not agreed.asked() and not agreed.stop_here() and not agreed.meet()
  assert agreed.tell('text') == 'text'
  assert agreed.exchange('text') == ['text']
  signal.set()
  assert agreed.exchange('text') == []
  assert agreed.asked() and agreed.stop_here() and agreed.meet()
  agreed.leave()
  assert not quick.values


@pytest.mark.parametrize('fails', [0, 1])
def test_who_stops_for_a_failure_knows_it(fails):
  def work(index, agreed, unused_signal):
    assert not agreed.meet()
    if index == fails:
      agreed.leave(failed=True)
      return None
    assert agreed.meet()
    return agreed.has_failed()

  wanted = [True, True, True]
  wanted[fails] = None
  assert run_all(3, work) == wanted


def test_who_stops_because_it_was_asked_has_not_failed():
  def work(index, agreed, signal):
    if index == 1:
      signal.set()
    while not agreed.stop_here():
      time.sleep(0.001)
    agreed.leave()
    return agreed.has_failed()

  assert run_all(2, work) == [False, False]
