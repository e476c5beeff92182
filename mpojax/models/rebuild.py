"""Dense kernels rebuilt from cores inside a jax program, with gradients."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo, nn
from mpojax.models import arrays as arrays_lib
from mpojax.models import matrices
from mpojax.models.model import Model


def merged(model: Model, keep: str | None = None) -> Model:
    """The dense model of the same function: every matrix `mpo.to_matrix` of its cores, float32.

    Works under jit and differentiates down to the cores. Where a step runs several micro-batches,
    each matrix is then rebuilt once for all of them; the layers of a stack are rebuilt together.
    Experts become experts with a dense matrix each, which generation wants, too. Adapters go into
    their matrices; layers that shared parts have parameters of their own.

    Args:
      model: may be dense in part, or wholly.
      keep: regular expression over matrix paths that stay chains, such as "embeddings/word", whose
        few looked-up rows cost less than the table. For a rule of its own,
        `functools.partial(merged, keep=...)`.

    Raises:
      ValueError: `keep` matches no matrix of the model, or one with an adapter; a bottleneck
        adapter, which no matrix can take in.
    """
    config = model.config.merged()
    kept = _kept(model, keep)
    abstract = arrays_lib.abstract(config, kept)
    graphdef, _ = nnx.split(abstract)
    # Done once: worth the full precision that accelerators do not give by default.
    with jax.default_matmul_precision("highest"):
        parts = _rebuilt_parts(model, kept)
    filled = []
    for path, variable, layers in arrays_lib.variables(abstract):
        names = [name for name, _ in arrays_lib.logical_names(path, layers)]
        # A stack of the result is a run of whole stacks of `model`.
        runs = [parts[name] for name in names if name in parts]
        value = runs[0] if len(runs) == 1 else jnp.concatenate(runs)
        filled.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _kept(model, keep: str | None) -> dict[str, mpo.MPOShape]:
    if keep is None:
        return {}
    sizes = model.config.matrix_sizes()
    if not any(re.fullmatch(keep, path) for path in sizes):
        raise ValueError(
            f"keep={keep!r} matches no matrix; it must match a whole path such as embeddings/word "
            "or layers/0/attention/query."
        )
    kept = {p: s for p, s in model.shapes.items() if re.fullmatch(keep, p)}
    blocks = {path: model.config.experts_of(path.rpartition("/")[0]) for path in kept}
    if mixed := [
        path for path, experts in blocks.items() if experts and experts != experts.merged()
    ]:
        raise ValueError(f"keep={keep!r} matches {mixed[0]}, where maps of experts differ in form.")
    adapted = [p for p in matrices.adapter_settings(model.config) if re.fullmatch(keep, p)]
    if adapted:
        raise ValueError(f"keep={keep!r} matches {adapted[0]}, whose adapter would be lost.")
    return kept


@dataclasses.dataclass
class _Matrix:
    """Cores and adapter of one matrix, or of one matrix in all layers of a stack.

    `cores` holds {number: (array, leading axes)}, the axes among "blocks" (of layers that share),
    "layers" and "experts"; `adapter` arrays by name, one for each layer; `block_size` layers share.
    """

    cores: dict = dataclasses.field(default_factory=dict)
    adapter: dict = dataclasses.field(default_factory=dict)
    block_size: int = 1


def _rebuilt_parts(model, kept) -> dict[str, jax.Array]:
    """{logical name, of stacked values that of their first layer: value with its layer axis}."""
    config = model.config
    parts, held, settings = {}, {}, matrices.adapter_settings(config)
    for path, variable, layers in arrays_lib.variables(model):
        name = arrays_lib.logical_names(path, layers)[0][0]
        # Where all is shared a layer of each block stands for it.
        repeats = 1 if layers is None or not config.shares_parts else layers.step
        is_shared = repeats > 1
        value = variable[...]
        matrix, _, leaf = name.rpartition("/")
        matrix = matrix.removesuffix("/cores").removesuffix("/adapter")
        entry = held.setdefault(matrix, _Matrix())
        entry.block_size = max(entry.block_size, repeats)
        if "/adapter/" in name:
            entry.adapter[leaf] = jnp.repeat(value, repeats, 0) if is_shared else value
        elif "/cores/" in name and matrix not in kept:
            axes = () if layers is None else ("blocks" if is_shared else "layers",)
            axes += ("experts",) if "experts" in path else ()
            entry.cores[int(leaf)] = value, axes
        else:
            parts[name] = jnp.repeat(value, repeats, 0) if is_shared else value
    for matrix, entry in held.items():
        key = matrices.dense_name(matrix)
        if entry.cores:
            cores = [entry.cores[k] for k in sorted(entry.cores)]
            rebuilt = _to_matrix(cores, model.shapes[matrix], entry.block_size)
            # A matrix next to a chain is common to all experts, whose axis is the one before it.
            base = parts.get(key)
            parts[key] = rebuilt if base is None else rebuilt + jnp.expand_dims(base, -3)
        if entry.adapter:
            fold = functools.partial(nn.merge_adapter, settings[matrix])
            fold = functools.partial(fold, scale=config.adapter_scale)
            # A stack of layers: each its own update.
            fold = jax.vmap(fold) if parts[key].ndim == 3 else fold
            bias = f"{matrix}/bias"
            parts[key], folded = fold(entry.adapter, parts[key], parts.get(bias))
            parts |= {} if folded is None else {bias: folded}
    return parts


def _to_matrix(cores, shape: mpo.MPOShape, block_size: int) -> jax.Array:
    """The matrix, with the leading axes of its cores before it: layers, then experts."""

    def rebuild(*cores):
        return mpo.to_matrix(cores, shape)

    arrays = [core for core, _ in cores]
    has = {name: [name in axes for _, axes in cores] for name in ("blocks", "layers", "experts")}
    if any(has["experts"]):
        rebuild = functools.partial(_expert_matrices, shape=shape)
    if all(has["blocks"]):
        return jnp.repeat(jax.vmap(rebuild)(*arrays), block_size, axis=0)
    if not any(has["blocks"]):
        return jax.vmap(rebuild)(*arrays) if any(has["layers"]) else rebuild(*arrays)
    # Cores of the block are the same for its layers, the others have an axis of their own.
    in_axes = [None if is_shared else 0 for is_shared in has["blocks"]]
    arrays = [
        core if is_shared else core.reshape(-1, block_size, *core.shape[1:])
        for core, is_shared in zip(arrays, has["blocks"], strict=True)
    ]
    blocks = jax.vmap(jax.vmap(rebuild, in_axes))(*arrays)
    # (blocks, layers of a block, in, out) -> (layers, in, out)
    return blocks.reshape(-1, *blocks.shape[2:])


def _expert_matrices(*cores, shape: mpo.MPOShape) -> jax.Array:
    return mpo.expert_matrices(cores, shape)
