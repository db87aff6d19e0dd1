"""How many slots work."""

import dataclasses

import pytest

from tests.sampling import cases, fakes


@pytest.mark.parametrize(
  ('num_cots', 'num_in_all', 'num_slots'),
  [(3, None, 16), (17, None, 32), (3, 33, 64), (3, 1000, 100), (99, 2, 16)],
)
def test_fewer_cots_have_fewer_slots(num_cots, num_in_all, num_slots):
  engine = cases.make_engine(slots=100)
  requests = [cases.make_request(name=str(i)) for i in range(num_cots)]
  seen = []
  stream = engine.stream(
    fakes.make_params([cases.script_of('ab')]),
    requests,
    0,
    'test',
    on_progress=seen.append,
    num_in_all=num_in_all,
  )
  assert sorted(i for i, _ in stream) == list(range(num_cots))
  assert {progress.num_slots for progress in seen} == {num_slots}


def test_no_room_is_held_for_slots_that_are_not_used(monkeypatch):
  engine = cases.make_engine(slots=100)
  made = []

  def empty_state(params, num_slots, cache_length):
    made.append(num_slots)
    return fns.empty_state(params, num_slots, cache_length)

  fns = engine.fns
  monkeypatch.setattr(
    engine, 'fns', dataclasses.replace(fns, empty_state=empty_state)
  )
  requests = [cases.make_request(name=str(i)) for i in range(17)]
  engine.sample(fakes.make_params([cases.script_of('ab')]), requests, 0, 'test')
  assert made == [32]
