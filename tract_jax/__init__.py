"""TRACT: regression-aware fine-tuning with chain-of-thought, in JAX."""
