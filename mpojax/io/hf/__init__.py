"""Checkpoints of Hugging Face: one description for each architecture, read and written strictly."""
