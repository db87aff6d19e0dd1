"""The paper's recipe: Mistral-7B-Instruct-v0.2 on Feedback Collection.

  python -m tract_jax.main --config=configs/mistral.py \
    --config.model.path=/models/Mistral-7B-Instruct-v0.2 \
    --config.data.train_path=/data/feedback_collection.json \
    --config.data.benchmarks=fb_bench=...,flask=...,vicuna=...,mt_bench=...

Numbers: TRACT (arXiv:2503.04381), appendix B: LoRA of rank 8 on all linear
layers, lr 1e-5, two epochs per stage, global batch 8, lambda 1. Pearson's r in
the paper: .931 on FB Bench, .518 on FLASK, .593 on Vicuna Bench, .555 on MT
Bench; mean .650, with one seed and no interval.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """What differs from the defaults, which are the paper's."""
  config = ml_collections.ConfigDict()
  config.methods = ('tract',)
  config.model = {
    'path': 'Mistral-7B-Instruct-v0.2',
    'dtype': 'bfloat16',
    'remat': 'full',
  }
  config.train = {'checkpoint_every': 500}
  config.sampling = {'slots': 64, 'chunk_size': 1024}
  return config
