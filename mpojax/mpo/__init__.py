"""Kernels on matrix product operators (MPO, tensor-train matrices): pure functions on cores.

A matrix W (in_features, out_features) is a chain of cores T_k of shape (d_{k-1}, i_k, j_k, d_k).
The central core, index (n - 1) // 2, holds most parameters; the others are auxiliary. Low rank
(truncated SVD) is the chain of two cores with factor lists (in, 1) and (1, out), through the same
functions. Arrays of numpy are treated on the host in float64, arrays of jax under jit.

| what                              | functions                                               |
| shapes                            | MPOShape, shape_from_cores, separable_shape             |
| a matrix as a chain, and back     | decompose, to_matrix; fit, search_factors, low_rank     |
| bonds: spectra, cuts, gauges      | bond_spectra, truncate, canonicalize, slice_bonds; pivot|
| which bonds, under a budget       | bonds_for_tolerance, allocate, allocate_or_keep         |
| products with activations         | plan, apply; prepare, apply_prepared; embed             |
| experts that share a central core | plan_experts, expert_matrices, ExpertMatrices           |
| training on the cores             | align, core_distance, gauge_maps, transform_gradients   |
"""

from mpojax.mpo.alignment import (
    align,
    core_distance,
    over_parameterised_shape,
    projector_distance,
    sign_fix,
)
from mpojax.mpo.allocation import (
    allocate,
    allocate_or_keep,
    allocate_ranks,
    log_shares,
    price_of_parameters,
    priced,
)
from mpojax.mpo.alternating import fit
from mpojax.mpo.application import apply, apply_prepared, prepare
from mpojax.mpo.canonical import canonicalize, canonicalize_with_spectra, slice_bonds, truncate
from mpojax.mpo.contract import to_matrix
from mpojax.mpo.decomposition import (
    GAUGES,
    central_to_matrix,
    decompose,
    decompose_with_spectra,
    is_matrix_between_identities,
    matrix_to_central,
)
from mpojax.mpo.embedding import embed
from mpojax.mpo.experts.fitting import BASELINES as EXPERT_BASELINES
from mpojax.mpo.experts.fitting import FORMS as EXPERT_FORMS
from mpojax.mpo.experts.fitting import ExpertFit, ExpertMatrices
from mpojax.mpo.experts.kernels import apply_shared_core, expert_matrices
from mpojax.mpo.experts.planning import ExpertPlan, plan_experts
from mpojax.mpo.pivoted import pivot
from mpojax.mpo.planning import STRATEGIES, Machine, Plan, plan
from mpojax.mpo.search import Searched, search_factors
from mpojax.mpo.separable import separable_shape
from mpojax.mpo.shape import MPOShape, shape_from_cores
from mpojax.mpo.sharing import SharedLowRank
from mpojax.mpo.spectra import (
    bond_spectra,
    bonds_for_tolerance,
    entanglement_entropy,
    pool_spectra,
    relative_error,
    truncation_error_bound,
)
from mpojax.mpo.squeezing import (
    MEASURES,
    BondGrid,
    Cut,
    cheapest_cut,
    gauge_maps,
    transform_gradients,
)
from mpojax.mpo.weighted import (
    DEFAULT_RIDGE,
    LowRank,
    Metric,
    corrected,
    low_rank,
    low_rank_errors,
    regularized,
    ridged,
    weighted_relative_error,
    weighted_square,
    whitened,
)

__all__ = [
    "DEFAULT_RIDGE",
    "EXPERT_BASELINES",
    "EXPERT_FORMS",
    "GAUGES",
    "MEASURES",
    "STRATEGIES",
    "BondGrid",
    "Cut",
    "ExpertFit",
    "ExpertMatrices",
    "ExpertPlan",
    "LowRank",
    "MPOShape",
    "Machine",
    "Metric",
    "Plan",
    "Searched",
    "SharedLowRank",
    "align",
    "allocate",
    "allocate_or_keep",
    "allocate_ranks",
    "apply",
    "apply_prepared",
    "apply_shared_core",
    "bond_spectra",
    "bonds_for_tolerance",
    "canonicalize",
    "canonicalize_with_spectra",
    "central_to_matrix",
    "cheapest_cut",
    "core_distance",
    "corrected",
    "decompose",
    "decompose_with_spectra",
    "embed",
    "entanglement_entropy",
    "expert_matrices",
    "fit",
    "gauge_maps",
    "is_matrix_between_identities",
    "log_shares",
    "low_rank",
    "low_rank_errors",
    "matrix_to_central",
    "over_parameterised_shape",
    "pivot",
    "plan",
    "plan_experts",
    "pool_spectra",
    "prepare",
    "price_of_parameters",
    "priced",
    "projector_distance",
    "regularized",
    "relative_error",
    "ridged",
    "search_factors",
    "separable_shape",
    "shape_from_cores",
    "sign_fix",
    "slice_bonds",
    "to_matrix",
    "transform_gradients",
    "truncate",
    "truncation_error_bound",
    "weighted_relative_error",
    "weighted_square",
    "whitened",
]
