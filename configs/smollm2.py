"""A real judge on a CPU: SmolLM2-135M-Instruct on real judgements, with LoRA.

  python -m tract_jax.pipeline.seed_model smollm2      (once: fetches the model)
  python -m tract_jax.main --config=configs/smollm2.py \
    --config.data.train_path=mt_bench_eval.json

The rows are a JSON list in the form of prometheus-eval's benchmarks (prompt,
scores, feedbacks) or of Feedback Collection; a fifth of them is held out and
predicted. A model of this size is no good judge: this shows the method with
real weights and real prompts of up to 3,000 tokens, and what it costs. For a
quick look add

    --config.data.max_train_examples=8 --config.data.max_eval_examples=8 \
    --workdir=runs/look

which takes minutes on two cores.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """What differs from the defaults."""
  config = ml_collections.ConfigDict()
  config.methods = ('tract',)
  config.model = {
    'path': 'smollm2-135m-instruct',
    'lora_rank': 8,
    'lora_alpha': 16.0,
  }
  config.data = {'max_length': 4096}
  # A model of this size needs a higher rate than the paper's 1e-5 for 7B.
  config.train = {
    'lr': 2e-4,
    'batch_size': 8,
    'micro_batch_size': 1,
    'log_every': 1,
    'checkpoint_every': 5,
  }
  config.sampling = {'max_new_tokens': 256, 'chunk_size': 16}
  config.evaluation = {'gap_examples': 8}
  return config
