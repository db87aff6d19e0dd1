"""Text to tokens: tokenizer, prompts, score tokens."""
