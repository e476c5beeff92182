"""MPOP: lightweight fine-tuning of auxiliary cores (ACL 2021, "Enabling Lightweight Fine-tuning for
Pre-trained Language Model Compression based on Matrix Product Operators", pp. 5388-5398).

Trained in the paper's lightweight fine-tuning: the auxiliary cores and everything that is dense in
every variant (biases, layer norms, position and type embeddings, mapping, classifier). Frozen: the
central cores.

The word embedding. In the paper it is always an MPO, thus its central core is frozen and its
auxiliary cores are trained, which the roles give without a rule of its own. Where a user keeps it
dense, the paper says nothing; we freeze it, because it stands for the frozen central core and, at
a fifth or more of all parameters, training it would not be lightweight. Other matrices that a user
keeps dense are trained, as in the authors' released code.
"""

from mpojax.methods.mpop.lightweight import (
    FILTERS,
    abstract,
    check_trainable,
    counts,
    head_parameters,
    lightweight_filter,
    parameter_counts,
    trainable_filter,
    with_trainable,
)

__all__ = [
    "FILTERS",
    "abstract",
    "check_trainable",
    "counts",
    "head_parameters",
    "lightweight_filter",
    "parameter_counts",
    "trainable_filter",
    "with_trainable",
]
