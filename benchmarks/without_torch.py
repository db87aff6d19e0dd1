"""Runs a module as if PyTorch were not installed, which we do not need.

  python -m benchmarks.without_torch benchmarks.sampling_jax ...

Where it is installed, transformers loads it together with any tokenizer.
"""

import runpy
import sys

if __name__ == '__main__':
  # Python's way to say that there is no such module.
  sys.modules['torch'] = None  # type: ignore[assignment]
  del sys.argv[0]
  runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
