"""Losses and predictors: pure functions of arrays."""
