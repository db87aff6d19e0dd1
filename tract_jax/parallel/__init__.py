"""Meshes, partition rules, and the mapping of pure functions onto devices."""
