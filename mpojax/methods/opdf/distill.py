"""OPDF: a student made temporarily large by exact chains, distilled, and merged back.

After "Over-parameterized Student Model via Tensor Decomposition Boosted Knowledge Distillation"
(NeurIPS 2024). Every attention and feed-forward matrix of the student becomes an un-truncated chain
with more parameters than the matrix; a loss pulls its auxiliary cores to those of the teacher's
matrix, decomposed alike; at the end the chains are contracted to the dense student. Cores are only
comparable in a common gauge, which the paper's code does not have: here signs are fixed, and the
student's bonds are rotated onto the teacher's, before training.

Without a teacher this is OPF (ACL 2023): `prepare(student, ...)` on selected matrices.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import checks, compression, models, mpo
from mpojax.methods.opdf import distillation, students
from mpojax.training import state as state_lib

# What the alignment loss compares.
ALIGNMENTS = ("procrustes_core", "core", "raw", "projector", "weight", "none")
MATRICES = r"layers/\d+/.*/(query|key|value|out|up|down)"

Targets = dict[str, tuple[np.ndarray, ...]]  # {matrix path of the student: the teacher's cores}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an over-parameterised student.

    Attributes:
      num_inner_cores: L, cores between the outer two (0: the singular value decomposition at full
        bond).
      matrices: regular expression over matrix paths of the student.
      layer_map: for each layer of the student the teacher's that it is aligned with; empty: see
        `students.layer_map`. Start the student as these layers (`students.starting_layers`): then
        the alignment loss starts at zero, and holds the student near its teacher.
      alignment: "procrustes_core" (student's bonds rotated onto the teacher's at the start),
        "core" (signs fixed alone), "raw" (as two decompositions happen to come out, a control: what
        the paper describes), "projector" (invariant under rotations), "weight" (the plain
        difference of the matrices, a control), "none".
      alignment_weight: weight of the alignment loss.
      relative: whether differences of cores are divided by the teacher's mean square; False as in
        the paper. Not of "projector", which is relative.
      factor_overrides: (size, factors before, factors behind those of one) of sizes that are not to
        be split into two factors as equal as can be:
        `((768, (16, 2), (2, 12)), (3072, (32, 2), (2, 24)))`.
    """

    num_inner_cores: int = 3
    matrices: str = MATRICES
    layer_map: tuple[int, ...] = ()
    alignment: str = "procrustes_core"
    alignment_weight: float = 1.0
    relative: bool = True
    factor_overrides: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "layer_map", tuple(self.layer_map))
        object.__setattr__(self, "factor_overrides", _read_factor_overrides(self.factor_overrides))
        if self.alignment not in ALIGNMENTS:
            raise ValueError(
                f"alignment={self.alignment!r} must be one of {', '.join(ALIGNMENTS)}."
            )
        checks.check(
            {"num_inner_cores": self.num_inner_cores}, {"num_inner_cores": checks.integer(0)}
        )
        if not self.alignment_weight >= 0:
            raise ValueError(f"alignment_weight={self.alignment_weight!r} must not be negative.")
        if self.alignment == "projector" and not self.relative:
            raise ValueError("alignment='projector' is relative: leave relative=True.")
        try:
            re.compile(self.matrices)
        except re.error as error:
            raise ValueError(
                f"matrices={self.matrices!r} is no regular expression: {error}."
            ) from None


def _read_factor_overrides(
    factor_overrides,
) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
    try:
        return tuple(
            (int(n), tuple(before), tuple(behind)) for n, before, behind in factor_overrides
        )
    except (TypeError, ValueError):
        raise ValueError(
            f"factor_overrides={factor_overrides!r} must be of entries (size, factors before, "
            "factors behind), such as (768, (16, 2), (2, 12))."
        ) from None


def planned_shapes(config: models.Config, settings: Settings) -> dict[str, mpo.MPOShape]:
    """{matrix path: chain} of a student of these settings.

    Raises:
      ValueError: `settings.matrices` matches nothing, or a matrix whose sizes have no factors.
    """
    factor_overrides = {
        size: (before, behind) for size, before, behind in settings.factor_overrides
    }
    found = {
        path: mpo.over_parameterised_shape(*size, settings.num_inner_cores, factor_overrides)
        for path, size in models.matrix_sizes(config).items()
        if re.fullmatch(settings.matrices, path)
    }
    if not found:
        raise ValueError(
            f"matrices={settings.matrices!r} matches no matrix; it must match a whole path such as "
            "layers/0/attention/query."
        )
    for path, shape in found.items():
        if set(shape.bond_dims) == {1}:
            raise ValueError(
                f"{path} is {shape.in_features} x {shape.out_features}, whose sizes have no "
                "factors to split: a chain of it would have bonds of 1. Leave it out in matrices."
            )
    return found


def prepare(
    student: models.Model, settings: Settings, teacher: models.Model | None = None
) -> tuple[models.Model, Targets]:
    """The student with its matrices as exact chains, in the teacher's gauge; and the targets.

    Computes what the student does. On the host, in float64.

    Args:
      student: dense in the matrices that become chains.
      settings: see `Settings`.
      teacher: of equal matrix sizes in the mapped layers; None: nothing to align with (OPF).

    Raises:
      ValueError: matrices that are chains already, or that the teacher has in another size; see
        `students.layer_map`.
    """
    shapes = planned_shapes(student.config, settings)
    if both := sorted(set(shapes) & set(student.shapes)):
        raise ValueError(f"{both[0]} is in MPO form already; merge the student first.")
    sources = {}
    if teacher is not None and settings.alignment != "none":
        sources = _sources(student.config, teacher, settings, shapes)
    arrays, targets = models.to_arrays(student), {}

    def decomposed(matrix, shape):
        cores = mpo.decompose(matrix, shape, "symmetric")
        return cores if settings.alignment == "raw" else mpo.sign_fix(cores)

    for path, shape in shapes.items():
        kernel = np.asarray(arrays.pop(models.dense_name(path)), np.float64)
        cores = decomposed(kernel, shape)
        if path in sources:
            goal = decomposed(sources[path], shape)
            if settings.alignment == "procrustes_core":
                cores = mpo.align(cores, goal)
            targets[path] = tuple(core.astype(np.float32) for core in goal)
        arrays |= {f"{path}/cores/{k}": np.float32(core) for k, core in enumerate(cores)}
    return models.from_arrays(student.config, {**student.shapes, **shapes}, arrays), targets


def _sources(config, teacher: models.Model, settings: Settings, shapes) -> dict[str, np.ndarray]:
    """{matrix path of the student: the teacher's matrix}."""
    arrays, sizes = (
        models.to_arrays(compression.merge(teacher)),
        models.matrix_sizes(teacher.config),
    )
    layers = students.layer_map(settings.layer_map, config.num_layers, teacher.config.num_layers)
    found = {}
    for path, shape in shapes.items():
        match = re.fullmatch(r"((?:.*/)?layers/)(\d+)(/.*)", path)
        theirs = path if match is None else match[1] + str(layers[int(match[2])]) + match[3]
        size = sizes.get(theirs)
        if size != (shape.in_features, shape.out_features):
            there = "none" if size is None else f"{size[0]} x {size[1]}"
            raise ValueError(
                f"{path} is {shape.in_features} x {shape.out_features}, the teacher's {theirs} is "
                f"{there}: such matrices cannot be aligned. Choose a teacher of the student's "
                "width, other matrices, or alignment='none'."
            )
        found[path] = np.asarray(arrays[models.dense_name(theirs)], np.float64)
    return found


def alignment_loss(
    student: models.Model, targets: Mapping[str, Sequence], alignment: str, relative: bool = True
) -> jax.Array:
    """Mean over matrices of the relative distance between student and teacher; a scalar.

    The teacher's cores are constants. Works under jit, with gradients to the student's cores; the
    central core has none but with "weight".

    Args:
      student: from `prepare`.
      targets: from `prepare`.
      alignment, relative: see `Settings`.
    """
    if alignment == "none" or not targets:
        return jnp.zeros((), jnp.float32)
    flat = state_lib.flatten_variables(student)
    arrays = models.logical_arrays(student, flat)
    parts = []
    for path, goal in targets.items():
        cores = [arrays[f"{path}/cores/{k}"] for k in range(len(goal))]
        goal = [jax.lax.stop_gradient(jnp.asarray(core)) for core in goal]
        parts.append(_distance(cores, goal, alignment, relative))
    return sum(parts) / len(parts)


def _distance(cores, goal, alignment: str, relative: bool) -> jax.Array:
    if alignment == "projector":
        return mpo.projector_distance(cores, goal)
    if alignment != "weight":
        return mpo.core_distance(cores, goal, relative)
    one, other = (mpo.to_matrix(tuple(c)) for c in (cores, goal))
    scale = jnp.mean(jnp.square(other)) if relative else 1.0
    return jnp.mean(jnp.square(one - other)) / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)


def prepared(pair: distillation.Pair) -> distillation.Pair:
    """The pair with the student's matrices rebuilt from their cores: once for all micro-batches."""
    ready = distillation.Pair(models.merged(pair.student), pair.teacher)
    ready.target_names, ready.constants = pair.target_names, pair.constants
    ready.chains = pair.student
    return ready


def select(scores: Mapping[str, float], number: int, done: Sequence[str] = ()) -> list[str]:
    """Matrices that matter most, `number` of each role: what OPF over-parameterises.

    A role is the end of a path, such as attention/query.

    Args:
      scores: {matrix path: how much the loss depends on it}, such as `opf.static_scores` and
        `opf.dynamic_scores` give them.
      number: of each role.
      done: paths that are chosen already.

    Returns:
      Paths, most important first within each role, roles in order of appearance.
    """
    roles: dict[str, list[tuple[float, str]]] = {}
    for path, score in scores.items():
        if path not in done:
            roles.setdefault(role(path), []).append((-float(score), path))
    return [path for entries in roles.values() for _, path in sorted(entries)[:number]]


def role(path: str) -> str:
    """A matrix path without its tower and layer."""
    return re.sub(r"^(.*/)?layers/\d+/", "", path)


def added_numbers(shape: mpo.MPOShape) -> int:
    """N_add: how many more parameters a chain has than its matrix (equation 4)."""
    return shape.num_params - shape.num_dense_params


def rate_factor(num_cores: int, exponent: float = 0.5) -> float:
    """n^-a for chains of n cores: their step on the matrix grows with n, the best rate falls."""
    return num_cores**-exponent
