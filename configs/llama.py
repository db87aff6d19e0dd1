"""The paper's recipe on its other model: Llama-3.1-8B-Instruct.

  python -m tract_jax.main --config=configs/llama.py \
    --config.model.path=/models/Llama-3.1-8B-Instruct \
    --config.data.train_path=/data/feedback_collection.json \
    --config.data.benchmarks=fb_bench=...,flask=...,vicuna=...,mt_bench=...

Data, benchmarks and numbers are those of configs/mistral.py. Pearson's r in the
paper (arXiv:2503.04381), the mean over FB Bench, FLASK, Vicuna Bench and MT
Bench: .674 for tract, .639 for raft, .561 for ce_cot, with one seed and no
interval. `--config.methods='("ce_cot","raft","tract")'` trains all three.

8 rows split over at most 8 chips; on 16 add --config.mesh.fsdp=8
--config.mesh.tensor=2, or take

  --config=configs/llama.py:fast

128 packed rows an update with a learning rate of 6e-5, as configs/mistral.py
explains, as it does ":full"; as untried as those.

Expected cost: 166 v5e chip-hours for 100,000 rows and both stages on those 16
chips, 64 with "fast", 77 with "full", as --task=plan estimates (docs/pods.md,
"What it costs").
"""

import ml_collections


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """What differs from the defaults, the paper's; or "fast", or "full"."""
  if variant not in ('', 'fast', 'full'):
    raise ValueError(f'variant {variant!r}: there are "fast" and "full"')
  config = ml_collections.ConfigDict()
  config.methods = ('tract',)
  config.model = {
    'path': 'Llama-3.1-8B-Instruct',
    'dtype': 'bfloat16',
    'remat': 'full',
  }
  config.data = {}
  config.train = {'checkpoint_every': 500}
  config.sampling = {
    'chunk_size': 1024,
    # The chips of a host share the weights, which no step then gathers.
    'mesh': {'fsdp': 1, 'tensor': -1},
  }
  if variant:
    config.name = f'llama_{variant}'
    config.data.packing = True
    config.train.log_every = 5
  if variant == 'fast':
    config.train.batch_size = 128
    # A quarter of the rows at a time leaves room for what attention takes and
    # gives, which need not be computed again then.
    config.train.micro_batch_size = 32
    config.model.remat = 'heads'
    config.train.lr = 6e-5
    config.train.checkpoint_every = 50
  if variant == 'full':
    config.model.lora_rank = 0
    config.train.batch_size = 64
    config.train.checkpoint_every = 200
  return config
