"""OPDF: a student made temporarily large by exact chains, distilled, and merged back.

After "Over-parameterized Student Model via Tensor Decomposition Boosted Knowledge Distillation"
(NeurIPS 2024). Every attention and feed-forward matrix of the student becomes an un-truncated chain
with more parameters than the matrix; a loss pulls its auxiliary cores to those of the teacher's
matrix, decomposed alike; at the end the chains are contracted to the dense student. Cores are only
comparable in a common gauge, which the paper's code does not have: here signs are fixed, and the
student's bonds are rotated onto the teacher's, before training.

Without a teacher this is OPF (ACL 2023, `mpojax.methods.opf`): `over_parameterise(student, ...)`
on selected matrices.
"""

from mpojax.methods.opdf.distillation import (
    alignment_loss,
    optimizer_fields,
    rebuilt_once,
)
from mpojax.methods.opdf.student import (
    MATRICES,
    OPDFSettings,
    Targets,
    over_parameterise,
    planned_shapes,
)

__all__ = [
    "MATRICES",
    "OPDFSettings",
    "Targets",
    "alignment_loss",
    "optimizer_fields",
    "over_parameterise",
    "planned_shapes",
    "rebuilt_once",
]
