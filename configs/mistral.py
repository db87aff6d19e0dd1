"""The paper's recipe: Mistral-7B-Instruct-v0.2 on Feedback Collection.

  python -m tract_jax.main --config=configs/mistral.py \
    --config.model.path=/models/Mistral-7B-Instruct-v0.2 \
    --config.data.train_path=/data/feedback_collection.json \
    --config.data.benchmarks=fb_bench=...,flask=...,vicuna=...,mt_bench=...

Numbers: TRACT (arXiv:2503.04381), appendix B: LoRA of rank 8 on all linear
layers, lr 1e-5, two epochs per stage, global batch 8, lambda 1. Pearson's r in
the paper: .931 on FB Bench, .518 on FLASK, .593 on Vicuna Bench, .555 on MT
Bench; mean .650, with one seed and no interval.

8 rows split over at most 8 chips; on 16 add --config.mesh.fsdp=8
--config.mesh.tensor=2, or take

  --config=configs/mistral.py:fast

which keeps 16 chips busy: 128 rows an update, each filled with examples (about
2.2, docs/packing.md), so an epoch has a 35th of the updates. The learning rate
grows with the square root of that, to 6e-5. Nobody has tried this batch and
rate: the paper's figures are its goal, not what is known of it.

  --config=configs/mistral.py:full

trains all weights in place of adapters, which the paper did not try: 64 packed
rows an update, as many as fit on 16 v5e chips, at its learning rate.

Expected cost: 162 v5e chip-hours for 100,000 rows and both stages on those 16
chips, 62 with "fast", 72 with "full", as --task=plan estimates (docs/pods.md,
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
    'path': 'Mistral-7B-Instruct-v0.2',
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
    config.name = f'mistral_{variant}'
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
    # All rows at once: a second pass would gather all weights again.
    config.train.batch_size = 64
    # Weights and moments are 87 GB.
    config.train.checkpoint_every = 200
  return config
