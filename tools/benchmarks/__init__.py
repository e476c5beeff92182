"""Benchmarks: ratios to a baseline within one run. `python -m tools.benchmarks.<name>`."""
