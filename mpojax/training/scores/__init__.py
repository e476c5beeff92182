"""Exact metrics of predictions, on the host."""
