"""Real English text from package registries, for the studies of this repository."""
