"""MPO model -> dense model: chains and adapters go into their matrices."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import checks, models, mpo, nn
from mpojax.compression import layers

MERGE_DTYPES = ("float32", "bfloat16", "float16")


def merge(model: nnx.Module, dtype: str = "float32") -> nnx.Module:
    """The dense model: every MPO matrix rebuilt (float64 on the host, stored as float32).

    Experts in MPO form become experts with a dense matrix each. Adapters go into their matrices,
    what was tuned in place stays as it is; a bottleneck adapter raises ValueError. Layers that
    share a part of their parameters get matrices of their own; where they share everything, they
    still do. For a rebuild inside jit, with gradients, there is `mpojax.models.merged`.

    Args:
      model: any model, or any Flax NNX module: what `compress` and `add_adapters` changed in it
        becomes again the kind of layer that it was, in the dtype that it had. In 16 bits that
        rounding may lose a small update; merge a float32 copy to keep it.
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
        (12, 0)

    With adapters: W + s D U as in LoRA (Hu et al. 2022, arXiv:2106.09685).
    """
    checks.check_value("dtype", dtype, checks.one_of(*MERGE_DTYPES))
    if not isinstance(model, models.Model):
        dense = layers.merged_module(model)
        flat = nnx.to_flat_state(nnx.state(dense, nnx.Param))
        _check_dtype({"/".join(map(str, path)): np.asarray(v[...]) for path, v in flat}, dtype)
        return dense
    if model.config.shares_parts:
        model = models.unshared(model)
    arrays = models.to_arrays(model)
    for path, shape in model.shapes.items():
        cores = [arrays.pop(f"{path}/cores/{k}") for k in range(shape.num_arrays)]
        w = _to_matrices([layers.in_float64(core) for core in cores], shape)
        # A dense matrix parallel to a chain is common to all experts.
        base = arrays.get(models.dense_name(path))
        arrays[models.dense_name(path)] = w if base is None else w + base
    for path, settings in models.adapter_settings(model.config).items():
        start = f"{path}/adapter/"
        held = {name: arrays.pop(name) for name in list(arrays) if name.startswith(start)}
        held = {n.rpartition("/")[2]: np.asarray(a, np.float64) for n, a in held.items()}
        kernel, bias = models.dense_name(path), f"{path}/bias"
        arrays[kernel], folded = nn.merge_adapter(
            settings, held, arrays[kernel], arrays.get(bias), model.config.adapter_scale
        )
        arrays |= {} if folded is None else {bias: folded}
    arrays = {name: np.float32(array) for name, array in arrays.items()}
    _check_dtype(arrays, dtype)
    return models.from_arrays(model.config.merged(), {}, arrays)


def _check_dtype(arrays: Mapping[str, np.ndarray], dtype: str) -> None:
    """Raises ValueError where rounding to a type would change a weight."""
    if dtype == "float32":
        return
    kind = np.dtype(jnp.dtype(dtype))
    # Beyond the range of float16 a weight becomes infinite, and counts as changed.
    with np.errstate(over="ignore"):
        changed = {n: np.count_nonzero(np.float32(a.astype(kind)) != a) for n, a in arrays.items()}
    if any(changed.values()):
        worst = max(changed, key=changed.get)
        raise ValueError(
            f"merging in dtype={dtype!r} would change {sum(changed.values()):,} weights, "
            f"{changed[worst]:,} of them of {worst}. Merge in float32, and round the model that "
            "comes out where its rounding is wanted."
        )


def _to_matrices(cores: Sequence[np.ndarray], shape: mpo.MPOShape) -> np.ndarray:
    """The matrix of a chain, or (experts, in, out) where cores have a leading axis of experts."""
    number = {core.shape[0] for core in cores if core.ndim == 5}
    if not number:
        return mpo.to_matrix(cores, shape)
    experts = ([c[e] if c.ndim == 5 else c for c in cores] for e in range(number.pop()))
    return np.stack([mpo.to_matrix(tuple(each), shape) for each in experts]).astype(np.float32)
