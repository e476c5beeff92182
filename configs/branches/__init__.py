"""Configs of matrices trained as sums: majority kernels, re-parameterised optimizers."""
