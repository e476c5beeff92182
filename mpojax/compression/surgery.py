"""Dense model -> MPO model by rules, and back; transforms of the flat dict of arrays."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from mpojax import models, mpo, nn
from mpojax.compression import allocation as allocation_lib
from mpojax.compression import rules as rules_lib
from mpojax.compression.calibration import Calibration
from mpojax.compression.decomposition import Decomposer
from mpojax.compression.report import CompressionReport
from mpojax.compression.rules import Target
from mpojax.models.arrays import check_finite

Model = models.Model

MERGE_DTYPES = ("float32", "bfloat16", "float16")


def compress(
    model: Model,
    rules: rules_lib.Rules | None = None,
    *,
    budget: float | int | None = None,
    bond: int | None = None,
    share_bonds: bool = True,
    calibration: Calibration | None = None,
    allocation: str = "error",
    keep_dense: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Model, CompressionReport]:
    """Writes the matrices that the rules match in MPO form.

    Matrices are decomposed one after the other on the host in float64. Without `budget`, `bond` or
    bonds in the rules the chains have full bonds and the model computes the same as before.

    Args:
      model: its matrices must be dense where a rule matches.
      rules: (regular expression over matrix paths, settings) or `Rule`; settings are the fields of
        `mpojax.compression.Settings`, for example
        `[Rule(".*/(query|key|value|out|up|down)", bond=64), Rule("embeddings/word", rank=64)]`.
        The pattern "default" stands for all that are worth it, see `compression.default_matrices`.
        None: those, `data_aware` where there is a calibration; then `budget` or `bond` is needed.
      budget: parameters of the whole compressed model, at most: a float in (0, 1] is a fraction of
        its dense count, an integer above 1 the count itself. Bonds that the rules leave open are
        chosen for least error; a matrix whose chain would save nothing stays dense.
      bond: cap for the rules that say nothing about bonds; not together with `budget`.
      share_bonds: matrices of one role have the same bonds in all layers, so that the layers stay
        in one stack; False chooses for each matrix alone.
      calibration: of `compression.calibrate` with this model, for rules with `data_aware=True`; the
        report then has the errors of outputs as well.
      allocation: what a budget weighs errors by. "error": each matrix' relative squared error times
        the root of its number of entries. "first_order": by how much it changes the loss to first
        order, from a calibration with a loss.
      keep_dense: whether a budget may leave matrices dense whose chains would save nothing; False
        makes a chain of every matrix that a rule matches, whatever it costs the others.
      progress: called as progress(done, total, path) after each step.

    Returns:
      (compressed model, report).

    Raises:
      ValueError: rules that are malformed, match nothing, overlap, or do not fit; a budget that
        cannot be met (the smallest one is named); non-finite weights; a calibration that is
        missing, of another model, or not usable; neither rules nor a size.

    Example:

        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
        >>> config = models.EncoderConfig(vocab_size=99, max_positions=16, **sizes)
        >>> model = models.build(config, rngs=nnx.Rngs(0))
        >>> small, report = mj.compress(model, budget=0.6)
        >>> report.parameters <= 0.6 * report.dense_parameters
        True
        >>> small, report = mj.compress(model, [mj.Rule(".*/(query|key)", bond=3)])
        >>> [row.path for row in report.rows][:2], max(report.rows[0].bonds)
        (['layers/0/attention/query', 'layers/0/attention/key'], 3)

    Gao et al., "Compressing deep neural networks by matrix product operators" (2020,
    arXiv:1904.06194); Liu et al., MPOP (ACL 2021, arXiv:2106.02205).
    """
    _check_not_shared(model)
    arrays = models.to_arrays(model)
    dense_total = _dense_total(arrays, model.shapes)
    targets, room = _checked(model, arrays, rules, budget, bond, calibration, allocation)
    kernels = {key: arrays[key] for key in (dense_key(arrays, t.path) for t in targets)}
    check_finite(kernels, "the model")
    groups = allocation_lib.grouped(targets, share_bonds)
    decomposer = Decomposer(arrays, groups, calibration, progress)
    decomposer.run(room, allocation, keep_dense)
    compressed = models.from_arrays(model.config, {**model.shapes, **decomposer.shapes}, arrays)
    total = sum(models.count_parameters(compressed).values())
    order = [target.path for target in targets]
    rows = tuple(decomposer.rows[path] for path in order if path in decomposer.rows)
    kept = tuple(path for path in order if path in decomposer.kept)
    sizes = _compressible(model.config)
    unmatched = tuple(path for path in sizes if path not in {*order, *model.shapes})
    report = CompressionReport(rows, decomposer.spectra, dense_total, total, kept, unmatched)
    if budget is not None:
        allocation_lib.warn_if_uneven(report, sizes)
    return compressed, report


def check_rules(
    model: Model,
    rules: rules_lib.Rules | None = None,
    *,
    budget: float | int | None = None,
    bond: int | None = None,
    calibration: Calibration | None = None,
    allocation: str = "error",
) -> None:
    """Raises what `compress` would raise about these arguments, without any decomposition."""
    arrays = models.to_arrays(model)
    _checked(model, arrays, rules, budget, bond, calibration, allocation)


def _checked(
    model, arrays, rules, budget, bond, calibration, allocation
) -> tuple[list[Target], int | None]:
    """What the rules match, and what a budget leaves for the matrices with open bonds."""
    if rules is None:
        rules = _default_rules(budget, bond, calibration)
    targets = rules_lib.resolve(rules, _compressible(model.config), model.shapes, bond)
    room = None
    if budget is not None:
        now = sum(math.prod(array.shape) for array in arrays.values())
        dense_total = _dense_total(arrays, model.shapes)
        room = allocation_lib.room_for_open(targets, now, budget, bond, dense_total)
    for target in targets:
        if target.settings.search and target.settings.leaves_bonds_open and room is None:
            raise ValueError(
                f"{target.path}: search=True needs a size: give compress a budget, or the rule a "
                "rank: the search finds the best chain with as many parameters."
            )
    _check_calibration(targets, arrays, calibration, allocation, room)
    return targets, room


def _default_rules(budget, bond, calibration) -> rules_lib.Rules:
    """All that is worth compressing, by the outputs where they are known."""
    if budget is None and bond is None:
        raise ValueError(
            "compress without rules needs a size: budget=0.6 (a fraction of the parameters) or "
            "bond=64 (a cap for every bond). Chains at full bonds, which compute the same, are "
            'rules=[Rule("default")].'
        )
    aware = {} if calibration is None else {"data_aware": True}
    return [rules_lib.Rule(rules_lib.DEFAULT, **aware)]


def _compressible(config) -> dict[str, tuple[int, int]]:
    """Sizes of all matrices but those of experts."""
    sizes = models.matrix_sizes(config)
    if not getattr(config, "experts", ()):
        return sizes
    # Those of experts are many matrices under one path: compress before `add_experts`.
    return {p: size for p, size in sizes.items() if not config.experts_of(p.rpartition("/")[0])}


def _check_calibration(targets, arrays, calibration, allocation, room):
    if allocation not in allocation_lib.ALLOCATIONS:
        raise ValueError(
            f"allocation={allocation!r} must be one of {', '.join(allocation_lib.ALLOCATIONS)}."
        )
    aware = [target for target in targets if target.settings.data_aware]
    if calibration is None and (aware or allocation == "first_order"):
        what = f"data_aware=True of {aware[0].path}" if aware else f"allocation={allocation!r}"
        raise ValueError(
            f"{what} needs calibration=: collect it with compression.calibrate(model, batches)."
        )
    if allocation == "first_order" and room is None:
        raise ValueError("allocation='first_order' divides a budget; give one, or leave it out.")
    if calibration is None:
        return
    calibration.check({target.path: arrays[dense_key(arrays, target.path)] for target in targets})
    for target in aware:
        calibration.metric(target.path, target.settings.ridge)
    if allocation == "first_order":
        calibration.check_gradients([target.path for target in targets])


def merge(model: Model, dtype: str = "float32") -> Model:
    """The dense model: every MPO matrix rebuilt (float64 on the host, stored as float32).

    Experts in MPO form become experts with a dense matrix each. Adapters go into their matrices,
    what was tuned in place stays as it is; a bottleneck adapter raises ValueError. Layers that
    share a part of their parameters get matrices of their own; where they share everything, they
    still do. For a rebuild inside jit, with gradients, there is `mpojax.models.merged`.

    Args:
      model: any model.
      dtype: in which the weights are to be kept afterwards: "float32", "bfloat16" or "float16".
        The model has float32 weights all the same; a narrower type is checked.

    Raises:
      ValueError: a bottleneck adapter; weights that `dtype` would change: updates of a matrix are
        lost in the rounding to 16 bits.

    Example:

        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
        >>> config = models.EncoderConfig(vocab_size=99, max_positions=16, **sizes)
        >>> model = models.build(config, rngs=nnx.Rngs(0))
        >>> small, report = mj.compress(model, bond=3)
        >>> len(small.shapes), len(mj.merge(small).shapes)
        (13, 0)

    With adapters: W + s D U as in LoRA (Hu et al. 2022, arXiv:2106.09685).
    """
    if dtype not in MERGE_DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(MERGE_DTYPES)}.")
    if model.config.shares_parts:
        model = models.unshared(model)
    arrays = models.to_arrays(model)
    for path, shape in model.shapes.items():
        cores = [arrays.pop(f"{path}/cores/{k}") for k in range(shape.num_cores)]
        cores = tuple(np.asarray(core, np.float64) for core in cores)
        arrays[models.dense_name(path)] = _dense(cores, shape)
    for path, settings in models.adapter_settings(model.config).items():
        start = f"{path}/adapter/"
        held = {name: arrays.pop(name) for name in list(arrays) if name.startswith(start)}
        held = {n.rpartition("/")[2]: np.asarray(a, np.float64) for n, a in held.items()}
        kernel, bias = models.dense_name(path), f"{path}/bias"
        arrays[kernel], folded = nn.fold_adapter(
            settings, held, arrays[kernel], arrays.get(bias), model.config.adapter_scale
        )
        arrays |= {} if folded is None else {bias: folded}
    config = dataclasses.replace(model.config, adapters=())
    arrays = {name: np.float32(array) for name, array in arrays.items()}
    _check_dtype(arrays, dtype)
    return models.from_arrays(config, {}, arrays)


def _check_dtype(arrays: Mapping[str, np.ndarray], dtype: str) -> None:
    """Raises ValueError where rounding to a type would change a weight."""
    if dtype == "float32":
        return
    kind = np.dtype(jnp.dtype(dtype))
    with np.errstate(over="ignore"):
        changed = {n: np.count_nonzero(np.float32(a.astype(kind)) != a) for n, a in arrays.items()}
    if any(changed.values()):
        worst = max(changed, key=changed.get)
        raise ValueError(
            f"merging in dtype={dtype!r} would change {sum(changed.values()):,} weights, "
            f"{changed[worst]:,} of them of {worst}. Merge in float32, and round the model that "
            "comes out where its rounding is wanted."
        )


def _dense(cores: Sequence[np.ndarray], shape: mpo.MPOShape) -> np.ndarray:
    """The matrix of a chain, or (experts, in, out) where cores have a leading axis of experts."""
    number = {core.shape[0] for core in cores if core.ndim == 5}
    if not number:
        return mpo.to_matrix(cores, shape)
    experts = ([c[e] if c.ndim == 5 else c for c in cores] for e in range(number.pop()))
    return np.stack([mpo.to_matrix(tuple(each), shape) for each in experts]).astype(np.float32)


def _check_not_shared(model: Model):
    if model.config.shares_parts:
        raise ValueError(
            "the layers share a part of their parameters, which no chain of a single matrix can "
            "keep; compress models.unshared(model), or merge(model) for a dense one."
        )


def dense_key(arrays: Mapping, path: str) -> str:
    """Name of the array that holds a dense matrix of the model.

    Raises:
      KeyError: `arrays` holds no such matrix; it may be in MPO form.
    """
    name = models.dense_name(path)
    if name not in arrays:
        raise KeyError(f"there is no dense matrix {path}: no array {name}.")
    return name


def _dense_total(arrays: Mapping, shapes: Mapping[str, mpo.MPOShape]) -> int:
    """Parameters in the model with every matrix dense."""
    total = sum(math.prod(array.shape) for name, array in arrays.items() if "/cores/" not in name)
    for path, shape in shapes.items():
        cores = [arrays[f"{path}/cores/{k}"] for k in range(shape.num_cores)]
        experts = max(core.shape[0] if core.ndim == 5 else 1 for core in cores)
        total += experts * shape.num_dense_params
    return total
