"""Kernels on matrix product operators (MPO, tensor-train matrices): pure functions on cores.

A matrix W (in_features, out_features) is a chain of cores T_k of shape (d_{k-1}, i_k, j_k, d_k).
The central core, index (n - 1) // 2, holds most numbers; the others are auxiliary. Low rank
(truncated SVD) is the chain of two cores with factor lists (in, 1) and (1, out), through the same
functions.
"""

from mpojax.mpo.allocation import allocate
from mpojax.mpo.application import Prepared, apply, apply_prepared, prepare
from mpojax.mpo.canonical import (
    canonicalize,
    canonicalize_with_spectra,
    slice_bonds,
    truncate,
)
from mpojax.mpo.contract import to_matrix
from mpojax.mpo.decomposition import (
    GAUGES,
    decompose,
    decompose_with_spectra,
    identity_cores,
)
from mpojax.mpo.embedding import embed
from mpojax.mpo.planning import STRATEGIES, Machine, Plan, plan
from mpojax.mpo.shape import MPOShape, shape_from_cores
from mpojax.mpo.spectra import (
    bond_spectra,
    bonds_for_tolerance,
    entanglement_entropy,
    local_errors,
    pool_spectra,
    relative_error,
    truncation_error_bound,
)

__all__ = [
    "GAUGES",
    "STRATEGIES",
    "MPOShape",
    "Machine",
    "Plan",
    "Prepared",
    "allocate",
    "apply",
    "apply_prepared",
    "bond_spectra",
    "bonds_for_tolerance",
    "canonicalize",
    "canonicalize_with_spectra",
    "decompose",
    "decompose_with_spectra",
    "embed",
    "entanglement_entropy",
    "identity_cores",
    "local_errors",
    "plan",
    "pool_spectra",
    "prepare",
    "relative_error",
    "shape_from_cores",
    "slice_bonds",
    "to_matrix",
    "truncate",
    "truncation_error_bound",
]
