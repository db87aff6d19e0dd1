"""What the fuzzed readers have in common: any input gives a result, or an
InputError in words; never another error, and never a hang.

`fuzzed` makes a property of a function that reads one input and checks what it
is given. In the ordinary suite a property gets a few inputs, the same ones each
time; `make fuzz` (tests/fuzz/__main__.py) draws as many as it is asked for.
"""

from collections.abc import Callable
import dataclasses
import datetime
import functools
import pathlib
import tempfile
from typing import Any

import hypothesis

from tract_jax import types

# Of an input; a reader that takes longer hangs.
_DEADLINE = datetime.timedelta(seconds=20)
_FEW = 30


@dataclasses.dataclass
class Property:
  """A property, and what became of its inputs.

  Attributes:
    name: of its function.
    share: its part of all inputs; the shares of all properties make the whole.
    run: (number of inputs) -> None; draws them anew.
    num_inputs, num_accepted: tried, and not refused with an InputError.
  """

  name: str
  share: int
  run: Callable[[int], None]
  num_inputs: int = 0
  num_accepted: int = 0


registered: list[Property] = []


def fuzzed(share: int, few: int = _FEW, **strategies: Any) -> Callable:
  """Makes a test of a function whose arguments are drawn.

  Args:
    share: see `Property`.
    few: inputs in the ordinary suite.
    **strategies: of the arguments.

  Returns:
    The decorator. An InputError that leaves the function is a fair answer if
    it says something.
  """

  def decorate(check: Callable[..., None]) -> Callable[[], None]:
    @functools.wraps(check)
    def counted(**inputs: Any) -> None:
      prop.num_inputs += 1
      try:
        check(**inputs)
        prop.num_accepted += 1
      except types.InputError as error:
        assert str(error).strip()

    def test(num_inputs: int, derandomize: bool) -> Callable[[], None]:
      settings = hypothesis.settings(
        max_examples=num_inputs,
        derandomize=derandomize,
        deadline=_DEADLINE,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
      )
      return settings(hypothesis.given(**strategies)(counted))

    prop = Property(check.__name__, share, lambda n: test(n, False)())
    registered.append(prop)
    return test(few, True)

  return decorate


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix='tract_jax-fuzz-')


def file_of(content: bytes, name: str = 'rows') -> pathlib.Path:
  """A file with this content, in the place of the last of that name."""
  path = pathlib.Path(_scratch().name, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return path
