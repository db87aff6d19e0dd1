"""The Llama family in Flax NNX, and its weights."""
