"""Our side alone: rows read, encoded, encoded again, packed and put in order.

What stands before the first update of a stage, step by step as a run does it.
Rows are those of the synthetic world, a thousand of them again and again under
new names. For packing, lengths are drawn, since those rows are all alike.
"""

import os
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks import job as job_lib
from tract_jax.data import cache, loader, packing, records, synthetic
from tract_jax.pipeline import build, encode_rows
from tract_jax.pipeline import config as config_lib

_NUM_DRAWN = 1000
_BATCH_SIZE = 8
# Tokens of the rows that are packed, and of the row that holds several.
_LENGTHS, _ROW_LENGTH = (256, 1536), 3072


def data(job: job_lib.DataJob) -> job_lib.Measurement:
  """The seconds of each step; those of reading the cache where it is kept."""
  settings = {'name': 'benchmark', 'model.path': job.model, **job.settings}
  setup = build.build(config_lib.merge(settings), as_judge=True)
  drawn = synthetic.make_rows(
    _NUM_DRAWN, seed=job.seed, split='train', grid=setup.grid
  )
  rows = [
    {**drawn[i % _NUM_DRAWN], 'example_id': str(i)} for i in range(job.num_rows)
  ]
  clock = _Clock()
  examples, _ = records.examples_from_rows(
    rows, setup.grid, role='train', name='rows'
  )
  clock.stop('read_secs')
  with tempfile.TemporaryDirectory() as folder:
    os.environ[cache.CACHE_VARIABLE] = folder
    clock.start()
    encoded, _ = encode_rows.encode_rows(
      setup, examples, setup.cot_scores, None, 'rows'
    )
    clock.stop('encode_secs')
    if os.listdir(folder):  # Few rows are not kept.
      encode_rows.encode_rows(setup, examples, setup.cot_scores, None, 'rows')
      clock.stop('cached_secs')
  lengths = np.random.default_rng(job.seed).integers(*_LENGTHS, job.num_rows)
  clock.start()
  packing.best_fit(lengths, _ROW_LENGTH)
  clock.stop('pack_secs')
  batches = loader.Loader(
    encoded,
    packing.one_each(job.num_rows),
    batch_size=_BATCH_SIZE,
    length=int(encoded.lengths.max()),
    seed=job.seed,
    num_epochs=1,
  )
  for step in range(batches.num_steps):
    batches.rows(step)
  clock.stop('order_secs')
  # Its memory is the process's, wherever arrays lie.
  return job_lib.measured(
    sum(clock.secs.values()),
    int(encoded.lengths.sum()),
    0.0,
    {'jax': jax.__version__},
    details=clock.secs,
  )


class _Clock:
  """Seconds between its calls, by name."""

  def __init__(self):
    self.secs: dict[str, float] = {}
    self.start()

  def start(self) -> None:
    """Counts from now."""
    self._begin = time.perf_counter()

  def stop(self, name: str) -> None:
    """Notes the time since then, and counts anew."""
    self.secs[name] = time.perf_counter() - self._begin
    self.start()


KINDS = {'data': data}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.DataJob)
