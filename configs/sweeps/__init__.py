"""Sweeps: one config, its axes, one run for each combination; see `experiments/sweep.py`."""
