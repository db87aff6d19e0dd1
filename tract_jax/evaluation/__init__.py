"""Metrics of predictions and the report."""
