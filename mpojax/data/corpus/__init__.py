"""Tokenised text on disk, and batches for pre-training from it."""
