"""Rows to batches: reading, examples, order, packing."""
