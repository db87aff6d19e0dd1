"""Fuzzes every reader: `make fuzz`, or python -m tests.fuzz --inputs=100000.

Prints, for each property, how many inputs were tried and accepted, and the
time; ends with 1 if one failed, after hypothesis has shown the smallest input
that makes it fail.
"""

import argparse
import math
import sys
import time
import traceback

import tests.conftest  # noqa: F401  The environment of every test.
from tests.fuzz import (  # noqa: F401
  artefacts_test,
  configs_test,
  properties,
  rows_test,
  text_test,
  weights_test,
)


def main() -> int:
  """Runs the properties; gives the exit code."""
  parser = argparse.ArgumentParser(prog='python -m tests.fuzz')
  parser.add_argument('--inputs', type=int, default=100_000, help='in total')
  parser.add_argument('--only', default='', help='properties with this in them')
  args = parser.parse_args()
  chosen = [p for p in properties.registered if args.only in p.name]
  if not chosen:
    parser.error(f'--only={args.only}: no such property')
  whole = sum(p.share for p in chosen)
  failed = []
  begin = time.perf_counter()
  for prop in chosen:
    start = time.perf_counter()
    try:
      prop.run(math.ceil(args.inputs * prop.share / whole))
    except Exception:
      traceback.print_exc()
      failed.append(prop.name)
    _say(prop.name, prop.num_inputs, prop.num_accepted, start)
  total = sum(p.num_inputs for p in chosen)
  _say('in total', total, sum(p.num_accepted for p in chosen), begin)
  if failed:
    print(f'failed: {", ".join(failed)}', file=sys.stderr)
  return 1 if failed else 0


def _say(name: str, num_inputs: int, num_accepted: int, begin: float) -> None:
  secs = time.perf_counter() - begin
  counts = f'{num_inputs:8,} inputs {num_accepted:8,} accepted'
  print(f'{name:45} {counts} {secs:7.1f} s', flush=True)


if __name__ == '__main__':
  sys.exit(main())
