"""The settings of the smallest model of its own that a run can train."""

SETTINGS = {
  'lora_rank': 0,
  'hidden_size': 16,
  'intermediate_size': 16,
  'num_layers': 1,
  'num_heads': 2,
  'num_kv_heads': 1,
}
