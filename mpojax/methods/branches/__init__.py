"""Matrices trained as sums of several, and one in the end: majority kernels, re-parameterisation.

    W = sum_b a_b (M_b * W_b)

Majority kernels (Mazzawi et al. 2024, arXiv:2402.05033) draw the weights a anew in every step.
Branches with constant weights and masks are structural re-parameterisation; a single matrix whose
gradient is multiplied by sum_b a_b^2 M_b learns the same: RepOptimizer (Ding et al. 2023,
arXiv:2205.15242). As OPF, without a chain: what is trained is larger, what is left is not.
"""

from mpojax.methods.branches.expanded import (
    FORMS,
    BranchSettings,
    Expanded,
    combined,
    expand,
    expanded_loss,
    multiplied,
    multiplier,
)

__all__ = [
    "FORMS",
    "BranchSettings",
    "Expanded",
    "combined",
    "expand",
    "expanded_loss",
    "multiplied",
    "multiplier",
]
