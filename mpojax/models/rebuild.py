"""Dense kernels rebuilt from cores inside a jax program, with gradients."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo
from mpojax.layers import ROLES
from mpojax.models import arrays as arrays_lib
from mpojax.models import heads, matrices
from mpojax.models.config import EncoderConfig


def merged(model: arrays_lib.Model, keep: str | None = None) -> arrays_lib.Model:
    """The dense model of the same function: every matrix `mpo.to_matrix` of its cores, float32.

    Works under jit and differentiates down to the cores. Where a step runs several micro-batches,
    each matrix is then rebuilt once for all of them; the layers of a stack are rebuilt together.
    Adapters go into their matrices; layers that shared parts have parameters of their own.

    Args:
      model: may be dense in part, or wholly.
      keep: regular expression over matrix paths that stay chains, such as "embeddings/word", whose
        few looked-up rows cost less than the table. For a rule of its own,
        `functools.partial(merged, keep=...)`.

    Raises:
      ValueError: `keep` matches no matrix of the model, or one with an adapter.
    """
    config = _unshared_config(model.config)
    kept = _kept(model, keep)
    abstract = nnx.eval_shape(lambda: heads.build(config, kept, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(abstract)
    parts = _rebuilt_parts(model, kept)
    filled = []
    for path, variable, layers in arrays_lib.variables(abstract):
        name = arrays_lib.name_in_layer(path, layers)
        if layers is None:
            value = parts[name, None]
        else:
            # A stack of the result is a run of whole stacks of `model`.
            runs = [parts[name, first] for first in layers if (name, first) in parts]
            value = runs[0] if len(runs) == 1 else jnp.concatenate(runs)
        filled.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _unshared_config(config: EncoderConfig) -> EncoderConfig:
    """Settings of the dense model: rebuilt matrices are each layer's own, adapters are in them."""
    groups = config.layer_groups if config.shares_everything else None
    everything = {"layer_groups": groups, "shared_roles": ROLES}
    return dataclasses.replace(config, **everything, adapters=())


def _kept(model, keep: str | None) -> dict[str, mpo.MPOShape]:
    if keep is None:
        return {}
    sizes = matrices.matrix_sizes(model.config)
    if not any(re.fullmatch(keep, path) for path in sizes):
        raise ValueError(
            f"keep={keep!r} matches no matrix; it must match a whole path such as embeddings/word "
            "or layers/0/attention/query."
        )
    adapted = [p for p in matrices.adapter_ranks(model.config) if re.fullmatch(keep, p)]
    if adapted:
        raise ValueError(f"keep={keep!r} matches {adapted[0]}, whose adapter would be lost.")
    return {p: s for p, s in model.shapes.items() if re.fullmatch(keep, p)}


@dataclasses.dataclass
class _Matrix:
    """Cores and adapter of one matrix, or of one matrix in all layers of a stack.

    `cores` holds (array, whether blocks share it), `adapter` arrays by name, one for each layer.
    """

    cores: list = dataclasses.field(default_factory=list)
    adapter: dict = dataclasses.field(default_factory=dict)


def _rebuilt_parts(model, kept) -> dict[tuple[str, int | None], jax.Array]:
    """{(name, first layer of the stack or None): value}; stacked values keep their layer axis."""
    config = model.config
    repeats = config.block_size if config.shares_parts else 1
    parts, held = {}, {}
    for path, variable, layers in arrays_lib.variables(model):
        name = arrays_lib.name_in_layer(path, layers)
        first = None if layers is None else layers.start
        is_shared = repeats > 1 and layers is not None and layers.step > 1
        value = variable[...]
        matrix, _, leaf = name.rpartition("/")
        matrix = matrix.removesuffix("/cores").removesuffix("/adapter")
        whole_path = matrix if first is None else f"layers/{first}/{matrix}"
        entry = held.setdefault((matrix, first), _Matrix())
        if "/cores/" in name and whole_path not in kept:
            entry.cores.append((value, is_shared))
        elif "/adapter/" in name:
            entry.adapter[leaf] = jnp.repeat(value, repeats, 0) if is_shared else value
        else:
            parts[name, first] = jnp.repeat(value, repeats, 0) if is_shared else value
    for (matrix, first), entry in held.items():
        key = matrices.dense_name(matrix), first
        if entry.cores:
            whole_path = matrix if first is None else f"layers/{first}/{matrix}"
            shape = model.shapes[whole_path]
            parts[key] = _to_matrix(entry.cores, shape, first is not None, repeats)
        if entry.adapter:
            update = jnp.matmul(entry.adapter["down"], entry.adapter["up"])
            parts[key] = parts[key] + config.adapter_scale * update
    return parts


def _to_matrix(cores, shape: mpo.MPOShape, is_stacked: bool, block_size: int) -> jax.Array:
    """The matrix, or (layers, in, out) of stacked cores, of which blocks may share some."""

    def rebuild(*cores):
        return mpo.to_matrix(cores, shape)

    arrays = [core for core, _ in cores]
    if not is_stacked:
        return rebuild(*arrays)
    if not any(is_shared for _, is_shared in cores):
        return jax.vmap(rebuild)(*arrays)
    in_axes = [None if is_shared else 0 for _, is_shared in cores]
    if all(is_shared for _, is_shared in cores):
        return jnp.repeat(jax.vmap(rebuild)(*arrays), block_size, axis=0)
    arrays = [
        core if is_shared else core.reshape(-1, block_size, *core.shape[1:])
        for core, is_shared in cores
    ]
    blocks = jax.vmap(jax.vmap(rebuild, in_axes))(*arrays)
    return blocks.reshape(-1, *blocks.shape[2:])
