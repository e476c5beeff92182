"""Over-parameterised students: made of their teacher's layers, then of exact chains."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from mpojax import checks, compression, models, mpo

MATRICES = r"layers/\d+/.*/(query|key|value|out|up|down)"

Targets = dict[str, tuple[np.ndarray, ...]]  # {matrix path of the student: the teacher's cores}

_FACTORS = checks.sequence(checks.integer(1))


def _is_override(entry) -> bool:
    fits = isinstance(entry, (list, tuple)) and len(entry) == 3
    return fits and checks.integer(1).accepts(entry[0]) and all(map(_FACTORS.accepts, entry[1:]))


@checks.settings()
class OPDFSettings:
    """Settings of an over-parameterised student.

    Attributes:
      num_inner_cores: L, cores between the outer two (0: the singular value decomposition at full
        bond).
      matrices: regular expression over matrix paths of the student.
      layer_map: for each layer of the student the teacher's that it is aligned with; empty: evenly
        spread, the last by the last. Start the student as these layers (`starting_layers`): then
        the alignment loss starts at zero, and holds the student near its teacher.
      alignment: what the alignment loss compares: "procrustes_core" (student's bonds rotated onto
        the teacher's at the start), "core" (signs fixed alone), "raw" (as two decompositions happen
        to come out, a control: what the paper describes), "projector" (invariant under rotations),
        "weight" (the plain difference of the matrices, a control), "none".
      alignment_weight: weight of the alignment loss.
      relative: whether differences of cores are divided by the teacher's mean square; False as in
        the paper. Not of "projector", which is relative.
      factor_overrides: (size, factors before, factors behind those of one) of sizes that are not to
        be split into two factors as equal as can be:
        `((768, (16, 2), (2, 12)), (3072, (32, 2), (2, 24)))`.
    """

    num_inner_cores: int = checks.field(checks.integer(0), 3)
    matrices: str = checks.field(checks.expression(), MATRICES)
    layer_map: tuple[int, ...] = checks.field(checks.sequence(checks.integer(0)), ())
    alignment: str = checks.field(
        checks.one_of("procrustes_core", "core", "raw", "projector", "weight", "none"),
        "procrustes_core",
    )
    alignment_weight: float = checks.field(checks.number(0), 1.0)
    relative: bool = checks.field(checks.flag(), True)
    factor_overrides: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = checks.field(
        checks.sequence(checks.Allowed("(size, factors before, factors behind)", _is_override)), ()
    )

    def __post_init__(self):
        if self.alignment == "projector" and not self.relative:
            raise ValueError("alignment='projector' is relative: leave relative=True.")


def planned_shapes(config: models.Config, settings: OPDFSettings) -> dict[str, mpo.MPOShape]:
    """{matrix path: chain} of a student of these settings.

    Raises:
      ValueError: `settings.matrices` matches nothing, or a matrix whose sizes have no factors.
    """
    overrides = {size: (before, behind) for size, before, behind in settings.factor_overrides}
    found = {
        path: mpo.over_parameterised_shape(*size, settings.num_inner_cores, overrides)
        for path, size in config.matrix_sizes().items()
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


def over_parameterise(
    student: models.Model, settings: OPDFSettings, teacher: models.Model | None = None
) -> tuple[models.Model, Targets]:
    """The student with its matrices as exact chains, in the teacher's gauge; and the targets.

    Computes what the student does. On the host, in float64.

    Args:
      student: dense in the matrices that become chains.
      settings: see `OPDFSettings`.
      teacher: of equal matrix sizes in the mapped layers; None: nothing to align with (OPF).

    Raises:
      ValueError: matrices that are chains already, or that the teacher has in another size; see
        `layer_map`.
    """
    shapes = planned_shapes(student.config, settings)
    if both := sorted(set(shapes) & set(student.shapes)):
        raise ValueError(f"{both[0]} is in MPO form already; merge the student first.")
    sources = {}
    if teacher is not None and settings.alignment != "none":
        sources = _sources(student.config, teacher, settings, shapes)
    arrays, targets = models.to_arrays(student), {}

    def decomposed(matrix, shape):
        # Singular values split evenly over both sides; signs fixed, as an SVD leaves them open.
        cores = mpo.decompose(matrix, shape, "symmetric")
        return cores if settings.alignment == "raw" else mpo.sign_fix(cores)

    for path, shape in shapes.items():
        kernel = np.asarray(arrays.pop(models.dense_name(path)), np.float64)
        cores = decomposed(kernel, shape)
        if path in sources:
            goal = decomposed(sources[path], shape)
            if settings.alignment == "procrustes_core":
                # Rotations of the bonds: the matrix stays, the cores come near to the goal.
                cores = mpo.align(cores, goal)
            targets[path] = tuple(core.astype(np.float32) for core in goal)
        arrays |= {f"{path}/cores/{k}": np.float32(core) for k, core in enumerate(cores)}
    return models.from_arrays(student.config, {**student.shapes, **shapes}, arrays), targets


def _sources(
    config, teacher: models.Model, settings: OPDFSettings, shapes
) -> dict[str, np.ndarray]:
    """{matrix path of the student: the teacher's matrix}."""
    arrays = models.to_arrays(compression.merge(teacher))
    sizes = teacher.config.matrix_sizes()
    layers = layer_map(settings.layer_map, config.num_layers, teacher.config.num_layers)
    found = {}
    for path, shape in shapes.items():
        match = re.fullmatch(r"((?:.*/)?layers/)(\d+)(/.*)", path)
        source = path if match is None else match[1] + str(layers[int(match[2])]) + match[3]
        size = sizes.get(source)
        if size != (shape.in_features, shape.out_features):
            there = "none" if size is None else f"{size[0]} x {size[1]}"
            raise ValueError(
                f"{path} is {shape.in_features} x {shape.out_features}, the teacher's {source} is "
                f"{there}: such matrices cannot be aligned. Choose a teacher of the student's "
                "width, other matrices, or alignment='none'."
            )
        found[path] = np.asarray(arrays[models.dense_name(source)], np.float64)
    return found


def layer_map(chosen: Sequence[int], student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer of each layer of the student.

    Args:
      chosen: the map; empty: evenly spread, ending with the teacher's last (12 to 6 layers: 1, 3,
        ..., 11, as in the authors' code).
      student_layers, teacher_layers: how many.

    Raises:
      ValueError: a map of another length, or with layers that the teacher lacks.
    """
    if not chosen:
        if student_layers > teacher_layers:
            raise ValueError(
                f"a student of {student_layers} layers and a teacher of {teacher_layers}: give a "
                "layer_map."
            )
        # Layer i of S learns from layer round((i + 1) T / S) - 1 of T.
        step = teacher_layers / student_layers
        return tuple(round((layer + 1) * step) - 1 for layer in range(student_layers))
    if len(chosen) != student_layers:
        raise ValueError(
            f"layer_map={tuple(chosen)} must name a layer of the teacher for each of the "
            f"{student_layers} layers of the student."
        )
    if wrong := [layer for layer in chosen if not 0 <= layer < teacher_layers]:
        raise ValueError(
            f"layer_map has {wrong[0]}; the teacher's layers are 0..{teacher_layers - 1}."
        )
    return tuple(chosen)


def starting_layers(
    chosen: Sequence[int], mapped: Sequence[int], teacher_layers: int
) -> tuple[int, ...]:
    """The teacher's layers with which a student starts.

    Args:
      chosen: these layers; empty: those that the student's layers are mapped to, so that it starts
        where it is pulled to.
      mapped: the map; empty: that of `layer_map` for half as many layers.
      teacher_layers: how many.
    """
    depth = len(mapped) or max(1, teacher_layers // 2)
    return tuple(chosen) or layer_map(mapped, depth, teacher_layers)


def with_layers(teacher: models.Model, layers: Sequence[int]) -> models.Model:
    """A dense model of some of the teacher's layers, with its embeddings, pooler and head.

    Raises:
      ValueError: a layer that the teacher lacks, or layers that share parameters.
    """
    depth = teacher.config.num_layers
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise ValueError(
            f"layers={tuple(layers)} must name layers of the teacher, which has 0..{depth - 1}."
        )
    if teacher.config.layer_groups is not None:
        raise ValueError("the teacher's layers share parameters; use models.unshared(teacher).")
    arrays = models.to_arrays(compression.merge(teacher))
    found = {name: array for name, array in arrays.items() if not name.startswith("layers/")}
    for index, layer in enumerate(layers):
        start = f"layers/{layer}/"
        found |= {
            f"layers/{index}/{name.removeprefix(start)}": array
            for name, array in arrays.items()
            if name.startswith(start)
        }
    config = dataclasses.replace(
        teacher.config, num_layers=len(layers), adapters=(), scan_boundaries=()
    )
    return models.from_arrays(config, {}, found)
