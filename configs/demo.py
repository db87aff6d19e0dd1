"""The whole method on a made-up judging world, on a laptop, without download.

  python -m tract_jax.main --config=configs/demo.py        (or: make demo)

A small model learns from scratch to judge texts by a reference, for ce, ce_cot,
raft, cot_raft and tract, with three seeds; it takes about four minutes on two
CPU cores. Expected: Pearson's r of tract is about .88, that of cot_raft and
ce_cot about .80, since their one sampled CoT carries a rater's noise that is
not the row's own. docs/demo.md explains the world.

  python -m tract_jax.main --config=configs/demo.py:raft \
    --config.score.grid='(0,1,2,3,4,5,6,7,8,9,10)'

sets RAFT against CE, both without CoT, as the papers do: from a seed model that
knows what a score is (`config.pretrain`). It takes about three minutes for each
score grid. Expected: raft, read with RAIL, beats ce, read by decoding, by .02
to .1 in Pearson's r.
"""

import ml_collections


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """What differs from the defaults; "raft" compares RAFT with CE."""
  if variant not in ('', 'raft'):
    raise ValueError(f'variant {variant!r}: there is only "raft"')
  config = ml_collections.ConfigDict()
  config.methods = ('ce', 'ce_cot', 'raft', 'cot_raft', 'tract')
  config.seeds = (0, 1, 2)
  config.model = {
    'lora_rank': 0,
    'remat': 'none',
    'hidden_size': 96,
    'intermediate_size': 192,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 4,
    # Rows are short: slow rotations would hardly turn within one.
    'rope_theta': 100.0,
    'initializer_range': 0.1,
  }
  config.data = {
    'source': 'synthetic',
    'synthetic_train': 4000,
    'synthetic_test': 400,
    'max_length': 64,
    'length_multiple': 16,
  }
  config.train = {
    'lr': 3e-3,
    'b2': 0.98,
    'num_epochs': 3,
    'batch_size': 16,
    # A model from scratch learns the score sooner with the paper's formula.
    'ce_includes_score': True,
    'log_every': 100,
    'checkpoint_every': 250,
  }
  config.sampling = {
    'repetition_penalty': 1.0,
    'max_new_tokens': 32,
    'slots': 256,
    'chunk_size': 1024,
    'steps_per_call': 32,
  }
  if variant == 'raft':
    config.name = 'demo_raft'
    config.methods = ('ce', 'raft')
    config.seeds = (0, 1, 2, 3, 4)
    config.pretrain = {'num_rows': 4000}
    config.data.synthetic_test = 1600
    # A seed model asks for less than a new one.
    config.train.lr = 1e-3
  return config
