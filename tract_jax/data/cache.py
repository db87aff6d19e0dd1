"""The folder of what can be had again: seed models, encoded rows."""

import os
import pathlib

CACHE_VARIABLE = 'TRACT_JAX_CACHE'


def cache_folder() -> pathlib.Path:
  """$TRACT_JAX_CACHE, or ~/.cache/tract_jax."""
  configured = os.environ.get(CACHE_VARIABLE)
  if configured:
    return pathlib.Path(configured).expanduser()
  return pathlib.Path.home() / '.cache' / 'tract_jax'
