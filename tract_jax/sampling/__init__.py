"""Sampling chains of thought and reading the score distribution."""
