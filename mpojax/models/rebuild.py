"""Dense kernels rebuilt from cores inside a jax program, with gradients."""

import re

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import mpo
from mpojax.models import arrays as arrays_lib
from mpojax.models import config as config_lib
from mpojax.models import heads


def merged(model: arrays_lib.Model, keep: str | None = None) -> arrays_lib.Model:
    """The dense model of the same function: every matrix `mpo.to_matrix` of its cores, float32.

    Works under jit and differentiates down to the cores. Where a step runs several micro-batches,
    each matrix is then rebuilt once for all of them; the layers of a stack are rebuilt together.

    Args:
      model: may be dense in part, or wholly.
      keep: regular expression over matrix paths that stay chains, such as "embeddings/word", whose
        few looked-up rows cost less than the table. For a rule of its own,
        `functools.partial(merged, keep=...)`.

    Raises:
      ValueError: `keep` matches no matrix of the model.
    """
    sizes = config_lib.matrix_sizes(model.config)
    if keep is not None and not any(re.fullmatch(keep, path) for path in sizes):
        raise ValueError(
            f"keep={keep!r} matches no matrix; it must match a whole path such as embeddings/word "
            "or layers/0/attention/query."
        )
    kept = {p: s for p, s in model.shapes.items() if keep is not None and re.fullmatch(keep, p)}
    parts = _rebuilt_parts(model, kept)
    abstract = nnx.eval_shape(lambda: heads.build(model.config, kept, rngs=nnx.Rngs(0)))
    graphdef, _ = nnx.split(abstract)
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


def _rebuilt_parts(model, kept) -> dict[tuple[str, int | None], jax.Array]:
    """{(name, first layer of the stack or None): value}; stacked values keep their layer axis."""
    parts, chains = {}, {}
    for path, variable, layers in arrays_lib.variables(model):
        name = arrays_lib.name_in_layer(path, layers)
        first = None if layers is None else layers.start
        matrix, is_core, _ = name.partition("/cores/")
        whole_path = matrix if first is None else f"layers/{first}/{matrix}"
        if is_core and whole_path not in kept:
            shape = model.shapes[whole_path]
            chains.setdefault((matrix, first, shape), []).append(variable[...])
        else:
            parts[name, first] = variable[...]
    for (matrix, first, shape), cores in chains.items():
        parts[config_lib.dense_name(matrix), first] = _to_matrix(
            tuple(cores), shape, first is not None
        )
    return parts


def _to_matrix(cores, shape: mpo.MPOShape, is_stacked: bool) -> jax.Array:
    def rebuild(cores):
        return mpo.to_matrix(cores, shape)

    return jax.vmap(rebuild)(cores) if is_stacked else rebuild(cores)
