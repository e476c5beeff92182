"""OPF: fine-tuning with some matrices over-parameterised as exact chains, merged at the end.

"Small Pre-trained Language Models Can be Fine-tuned as Large Models via Over-Parameterization" (ACL
2023). What OPDF does to a student, without a teacher and for selected matrices.
"""

from mpojax.methods.opf.fine_tuning import (
    STRATEGIES,
    Dynamic,
    OPFSettings,
    candidates,
    convert,
    losses,
    only,
    report,
    role,
    select,
    static_scores,
)

__all__ = [
    "STRATEGIES",
    "Dynamic",
    "OPFSettings",
    "candidates",
    "convert",
    "losses",
    "only",
    "report",
    "role",
    "select",
    "static_scores",
]
