"""Start of an MPOBERT: from an encoder with shared layers, from any other, or from scratch.

Paper: section 3.3 and Algorithm 2. The released code copies the teacher's auxiliary cores into all
layers (here `scaling="none"`); the paper scales them in layers beyond the teacher's, and says in
three places three different things about what is scaled. Everything runs on the host in float64.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from mpojax import checks, models, mpo
from mpojax.methods.mpobert import teacher as teacher_lib

# (depth, auxiliary cores of a chain) -> factor of each auxiliary core in layers without a teacher.
_FACTORS: dict[str, Callable[[int, int], float]] = {
    "none": lambda depth, cores: 1.0,
    # Section 3.3: random Xavier cores, scaled.
    "paper_text": lambda depth, cores: (2 * depth) ** -0.25,
    # Algorithm 2: the teacher's cores, scaled.
    "paper_algorithm": lambda depth, cores: (2 * depth) ** -0.25,
    # Corollary A.2 for the two sides of the chain: all cores together scale W by (2L)^(-1/2).
    "theory": lambda depth, cores: (2 * depth) ** (-0.5 / cores),
    # The corollary redone for every auxiliary core by itself: m a^(3m - 2) = 1 / L.
    "theory_each_core": lambda depth, cores: (cores * depth) ** (-1 / (3 * cores - 2)),
}
SCALINGS = tuple(_FACTORS)
INITS = ("normal", "xavier", "identity")
# Standard stddev of fresh tables and matrices, as in BERT and ALBERT.
STDDEV = 0.02

Shapes = Mapping[str, mpo.MPOShape]


def factor(scaling: str, num_layers: int, num_cores: int = 5) -> float:
    """Factor of each auxiliary core of a layer without a teacher.

    Raises:
      ValueError: an unknown scaling.
    """
    checks.check_value("scaling", scaling, checks.one_of(*SCALINGS))
    return _FACTORS[scaling](num_layers, num_cores - 1)


def from_scratch(
    config: models.EncoderConfig,
    shapes: Shapes,
    *,
    init: str = "normal",
    scaling: str = "none",
    gauge: str = "central",
    stddev: float = STDDEV,
    adapter_stddev: float = STDDEV,
    seed: int = 0,
) -> models.Model:
    """A random model: normal tables and matrices, biases 0, norms 1, adapters without effect.

    Args:
      config, shapes: of `mpobert.settings`, or of any other encoder (also without chains).
      init: of chains. "normal": one random matrix for each role, decomposed once; all
        layers begin with it (section 4.3 of the paper, figure 3a). "identity": the same without a
        decomposition: identity auxiliary cores, the matrix itself in the central one. "xavier":
        every core random by itself, by Xavier's rule on its two sides.
      scaling: of the auxiliary cores of all layers; see `SCALINGS`.
      gauge: of the decomposition; see `mpo.decompose`.
      stddev: of the entries of matrices; those of tables have 0.02. BERT has 0.02 at a width of
        768; narrow models learn faster with more, such as 0.02 * (768 / hidden size)^(1/2).
      adapter_stddev: of the entries of adapters' down maps.
      seed: of all that is random.

    Raises:
      ValueError: an unknown init, scaling or gauge.
    """
    checks.check_value("init", init, checks.one_of(*INITS))
    rng = np.random.default_rng(seed)
    factor_ = factor(scaling, config.num_layers, _num_cores(shapes))
    chains = {}
    for role, shape in teacher_lib.roles(shapes).items():
        w = rng.normal(0.0, stddev, (shape.in_features, shape.out_features))
        chains[role] = mpo.decompose(w, shape, "identity" if init == "identity" else gauge)
    arrays = _fresh(config, shapes, rng, {"kernel": stddev, "down": adapter_stddev})
    for path, shape in shapes.items():
        role = teacher_lib.role_of(path)
        # Section 3.3: random auxiliary cores around the central one of the decomposition.
        cores = _xavier(rng, shape) if init == "xavier" or scaling == "paper_text" else chains[role]
        if init != "xavier":
            cores = _around(chains[role][shape.central], cores, shape)
        _put(arrays, path, _scaled(cores, shape, factor_))
    return models.from_arrays(config, shapes, arrays)


def from_teacher(
    teacher: models.Model,
    config: models.EncoderConfig,
    shapes: Shapes,
    *,
    scaling: str = "none",
    num_teacher_layers: int | None = None,
    central: str | int = "mean",
    gauge: str = "central",
    adapter_stddev: float = STDDEV,
    seed: int = 0,
) -> models.Model:
    """A model that continues a trained one, with another sharing of parameters, or deeper.

    A teacher whose layers are one shared layer (ALBERT) is decomposed once; the cores go into every
    layer. With `scaling="none"` and full bonds the model then computes what the teacher would with
    as many repeats. Of any other teacher, layer l takes the matrices of the teacher's layer
    l * depth / L: central cores come from their mean over a block, or from one chosen layer, and
    each layer's auxiliary cores are fitted to its own matrix by least squares (our extension). What
    else a block shares comes from there too: its auxiliary cores, or, of biases and norms, from the
    first layer of the block. Dense matrices, for comparisons, are copied.

    Args:
      teacher: an encoder with dense matrices, or a model with heads: those for pre-training are
        taken over where both have them; others start fresh.
      config, shapes: of `mpobert.settings`, or of a dense encoder of the same sizes.
      scaling: of the auxiliary cores in layers from `num_teacher_layers` on; see `SCALINGS`.
      num_teacher_layers: how many layers start with the teacher's cores as they are; None for all
        as deep as the teacher (the paper: 24).
      central: "mean", or the number of the teacher's layer whose central cores are used.
      gauge: of the decomposition; see `mpo.decompose`.
      adapter_stddev: of the entries of adapters' down maps.
      seed: of what the teacher does not have.

    Raises:
      ValueError: a teacher whose sizes do not fit (all are named), or that has chains or adapters
        itself; a dense model of layers that share what differs between layers of the teacher; an
        unknown scaling; auxiliary cores that are shared, or absent, so that no layer can be scaled;
        a `central` that is no layer of the teacher.
    """
    source = teacher_lib.Teacher(teacher, config)
    chains = source.chains(shapes, central, gauge)
    taught = source.config.num_layers if num_teacher_layers is None else num_teacher_layers
    factor_ = factor(scaling, config.num_layers, _num_cores(shapes))
    has_own = bool(shapes) and not teacher_lib.shares_auxiliary(config)
    if scaling != "none" and not has_own and taught < config.num_layers:
        raise ValueError(
            f"scaling={scaling!r} treats layers from {taught} on by themselves, but the layers "
            "have no auxiliary cores of their own; use scaling='none'."
        )
    if not shapes and config.shares_everything and not source.copies_one_layer:
        raise ValueError(
            "the model's layers share dense matrices that differ between layers of the teacher; "
            "take an MPOBERT, more layer_groups, or a teacher with shared layers."
        )
    if scaling == "none" and has_own and taught < config.num_layers:
        logging.warning(
            "layers %d..%d repeat the teacher's as they are (scaling='none'); deep repeats undo "
            "what it has learned, scaling='theory' keeps it",
            *(taught, config.num_layers - 1),
        )
    rng = np.random.default_rng(seed)
    arrays = _fresh(config, shapes, rng, {"down": adapter_stddev})
    source.take_over(arrays)
    for path, cores in chains:
        shape = shapes[path]
        if teacher_lib.layer_of(path) >= taught:
            if scaling == "paper_text":
                cores = _around(cores[shape.central], _xavier(rng, shape), shape)
            cores = _scaled(cores, shape, factor_)
        _put(arrays, path, cores)
    return models.from_arrays(config, shapes, arrays)


def _fresh(config, shapes, rng, stddevs: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Fresh arrays of everything; those of chains as zeros, to be filled.

    `stddevs` gives those that differ from the usual one, by the last part of the path.
    """
    arrays = {}
    for name, size in models.array_shapes(config, shapes).items():
        leaf = name.rpartition("/")[2]
        if leaf in ("kernel", "table", "down"):
            arrays[name] = rng.normal(0.0, stddevs.get(leaf, STDDEV), size).astype(np.float32)
        else:
            arrays[name] = np.full(size, 1.0 if leaf == "scale" else 0.0, np.float32)
    return arrays


def _put(arrays, path: str, cores):
    """Cores under their names, where this layer holds them (a block's first the shared ones)."""
    for k, core in enumerate(cores):
        name = f"{path}/cores/{k}"
        if name in arrays:
            arrays[name] = np.asarray(core, np.float32)


def _around(central, cores, shape: mpo.MPOShape):
    """The cores with another central one."""
    return (*cores[: shape.central], central, *cores[shape.central + 1 :])


def _scaled(cores, shape: mpo.MPOShape, factor_: float):
    return tuple(c if k == shape.central else factor_ * c for k, c in enumerate(cores))


def _xavier(rng, shape: mpo.MPOShape):
    """Cores of variance 2 / (rows + columns), seen as matrices (d i, j d')."""
    cores = []
    for before, i, j, after in shape.core_shapes:
        stddev = math.sqrt(2.0 / (before * i + j * after))
        cores.append(rng.normal(0.0, stddev, (before, i, j, after)))
    return tuple(cores)


def _num_cores(shapes: Shapes) -> int:
    counts = {shape.num_cores for shape in shapes.values()} or {5}
    if len(counts) > 1:
        raise ValueError(f"all chains must have equally many cores; got {sorted(counts)}.")
    return counts.pop()
