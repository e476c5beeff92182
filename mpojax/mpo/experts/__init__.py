"""Chains of several experts around one shared central core: kernels, planning, start."""
