"""Optimizer, state, step, loop and checkpoints."""
