"""Adapters of linear maps: the modules, and the settings that choose them."""
