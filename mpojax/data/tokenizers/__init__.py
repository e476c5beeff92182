"""Tokenizers as model folders hold them, and the training of new ones."""
