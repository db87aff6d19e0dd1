"""Our side: weights and train states, read and written.

States are saved as a run saves them: looked at for numbers that are not finite,
with a checksum of every leaf, which is compared when it is restored.
"""

import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks import job as job_lib
from benchmarks import side_jax
from tract_jax.data import orbax_store
from tract_jax.models import hf_export
from tract_jax.pipeline import base_weights, build
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import objective as objective_lib
from tract_jax.training import checkpoint

_FINGERPRINT = {'fingerprint': {'name': 'benchmark'}}


def files(job: job_lib.Job) -> job_lib.Measurement:
  """Loads a model, exports it, saves and restores a state of full training."""
  config = config_lib.merge(
    {
      'name': 'benchmark',
      'model.path': job.model,
      'model.lora_rank': 0,
      **job.settings,
    }
  )
  setup = build.build(config, devices=jax.devices()[:1])
  secs = {}
  begin = time.perf_counter()
  params, _ = base_weights.init_params(setup.model, seed=0)
  jax.block_until_ready(params)
  secs['load_secs'] = time.perf_counter() - begin
  size = sum(x.size for x in jax.tree.leaves(params))
  with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    hf_export.write_weights(folder, params, dtype='float32')
    secs['export_secs'] = time.perf_counter() - begin

  trainer = build.make_trainer(
    setup,
    objective_lib.make_objective(config, 'cot_raft'),
    with_cot=True,
    num_steps=1,
    num_targets=8,
  )
  state = trainer.init_state(params)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  jax.block_until_ready(state)
  with (
    tempfile.TemporaryDirectory() as folder,
    orbax_store.Store(pathlib.Path(folder, 'states')) as store,
  ):
    begin = time.perf_counter()
    checkpoint.save(store, state, _FINGERPRINT)
    store.wait()
    secs['save_state_secs'] = time.perf_counter() - begin
    begin = time.perf_counter()
    restored = checkpoint.restore_latest(
      store, abstract, _FINGERPRINT['fingerprint']
    )
    jax.block_until_ready(restored)
    secs['restore_state_secs'] = time.perf_counter() - begin
  assert restored and np.asarray(restored[0].step) == np.asarray(state.step)
  return side_jax.measured(sum(secs.values()), size, 0.0, details=secs)


KINDS = {'files': files}

if __name__ == '__main__':
  job_lib.answer(sys.argv[1:], KINDS, job_lib.Job)
