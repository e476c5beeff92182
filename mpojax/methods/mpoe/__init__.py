"""MPOE: mixtures of experts that share a central core (COLING 2022, "Parameter-Efficient
Mixture-of-Experts Architecture for Pre-trained Language Models").

Every feed-forward block of a pre-trained decoder or encoder-decoder becomes a mixture of experts.
Each matrix of an expert is a chain of five cores at full bonds, of which the central one is stored
once for all experts of the block. While training, a random mask leaves the update of the central
cores out, since the tokens of all experts move them. Here are the paper's models as data; what does
the work: `mpojax.compression.add_experts`, `mpojax.nn.ExpertFeedForward`, and the optimizers of
`gradient_mask`.

A variant is named KIND, number of experts, options: mpoe8, switch16, unshared8, mpoe8_m3_nomask.

    dense       no experts
    mpoe<n>     chains with one central core for all experts of a matrix, one expert for a token
    unshared<n> chains with a central core for each ("w/o PS")
    switch<n>   dense matrices, one expert for a token ("+Switch")
    moe<n>      dense matrices, two experts for a token ("+MoE")

    _m3 .. _m9  number of cores, where it is not 5
    _separable  another family of factor lists, see `mpojax.mpo.separable_shape`
    _sharedbias one bias for all experts of a map, instead of one each
    _nomask     central cores are updated in every step ("w/o GM")
"""

from mpojax.methods.mpoe.experts import (
    KINDS,
    VARIANTS,
    counts,
    fields,
    mask_rate,
    planned,
    rules,
)

__all__ = [
    "KINDS",
    "VARIANTS",
    "counts",
    "fields",
    "mask_rate",
    "planned",
    "rules",
]
