"""How many slots work."""

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
  assert all(p.slot_steps % num_slots == 0 for p in seen)
