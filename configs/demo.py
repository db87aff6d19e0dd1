"""The whole method on a made-up judging world, on a laptop, without download.

  python -m tract_jax.main --config=configs/demo.py        (or: make demo)

A small model learns from scratch to judge texts by a reference, for ce, ce_cot,
raft, cot_raft and tract, with three seeds; it takes some minutes on two CPU
cores. Expected: tract's Pearson is above cot_raft's and ce_cot's, since their
one sampled CoT hides the rater's noise behind certain words.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """What differs from the defaults."""
  config = ml_collections.ConfigDict()
  config.methods = ('ce', 'ce_cot', 'raft', 'cot_raft', 'tract')
  config.seeds = (0, 1, 2)
  config.model = {
    'lora_rank': 0,
    'hidden_size': 64,
    'intermediate_size': 128,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 4,
  }
  config.data = {
    'source': 'synthetic',
    'synthetic_train': 4000,
    'synthetic_test': 400,
    'max_length': 128,
  }
  config.train = {
    'lr': 3e-3,
    'num_epochs': 5,
    'batch_size': 64,
    'log_every': 50,
    'checkpoint_every': 100,
  }
  config.sampling = {
    'top_p': 1.0,
    'repetition_penalty': 1.0,
    'max_new_tokens': 40,
    'rows': 256,
    'chunk_size': 1024,
    'steps_per_call': 32,
  }
  return config
