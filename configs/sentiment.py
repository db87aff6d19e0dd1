import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """What differs from the defaults."""
  config = ml_collections.ConfigDict()
  config.methods = ('ce_cot', 'tract')
  config.model = {
    'path': 'smollm2-135m-instruct',
    'lora_rank': 8,
    'lora_alpha': 16.0,
  }
  config.score = {'grid': tuple(float(score) for score in range(-4, 5))}
  config.data = {
    'train_path': 'sentiment/train.jsonl',
    'benchmarks': 'sentiment=sentiment/test.jsonl',
    'max_train_examples': 320,
    'max_eval_examples': 200,
    'max_length': 384,
    'too_long': 'drop',
    'length_multiple': 32,
  }
  config.train = {
    'lr': 2e-4,
    'num_epochs': 1,
    'batch_size': 8,
    'micro_batch_size': 8,
    'score_target': 'mean',
    'log_every': 5,
    'checkpoint_every': 20,
  }
  config.sampling = {'max_new_tokens': 64, 'rows': 32, 'chunk_size': 64}
  config.evaluation = {'gap_examples': 64}
  return config
