"""Experiment configs: one file, one experiment or one family of rows."""
