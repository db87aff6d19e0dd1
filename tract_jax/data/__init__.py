"""Rows to batches: records, encoding, loader, the self-CoT dataset."""
