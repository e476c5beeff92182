"""Linear maps: dense and MPO, with one call signature `(x, central=None)`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mpojax import mpo
from mpojax.nn.functional import along_last, matmul
from mpojax.nn.parameters import AuxiliaryCore, CentralCore, ColumnOrder, normal, random_cores


class Dense(nnx.Module):
    """y = x @ kernel + bias, with kernel (in_features, out_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = True,
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs | None = None,
        kernel: jax.Array | None = None,
    ):
        """Takes `kernel`, or draws a float32 one of variance 1 / in_features.

        `dtype` is the compute dtype.
        """
        self.in_features = in_features
        self.out_features = out_features
        self.dtype = dtype
        shape = (in_features, out_features)
        if kernel is None:
            kernel = normal(rngs.params(), shape, 1.0 / in_features)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None
        self.adapter = nnx.data(None)  # see `attach_adapters`

    def __call__(self, x: jax.Array, central: jax.Array | None = None) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype.

        Raises:
          ValueError: `x` has another last axis, or a central core is given.
        """
        if central is not None:
            raise ValueError(
                "central= was given to a dense layer, which has no cores to join it with."
            )
        _check_last_axis(x, self.in_features)
        x = x if self.adapter is None else self.adapter.pre(x)
        y = matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return _finished(y, x, self.adapter, self.bias)


class MPOLinear(nnx.Module):
    """y = x @ W + bias, with W held as a chain of cores (the plan of the product is `mpo.apply`'s).

    With `shared_central=True` the layer holds the auxiliary cores alone and the central core comes
    with every call: stored once by the owner, shared by all layers that receive it.
    """

    def __init__(
        self,
        shape: mpo.MPOShape,
        use_bias: bool = True,
        *,
        shared_central: bool = False,
        dtype: str = "float32",
        rngs: nnx.Rngs | None = None,
        cores: Sequence[jax.Array] | None = None,
    ):
        """Takes `cores`, or draws float32 ones whose rebuilt matrix has variance 1 / in_features.

        `dtype` is the compute dtype.
        """
        self.shape = shape
        self.shared_central = shared_central
        self.dtype = dtype
        if cores is None:
            cores = random_cores(rngs.params(), shape, 1.0 / shape.in_features)
        self.cores = as_core_list(cores, shape, shared_central)
        self.bias = nnx.Param(jnp.zeros((shape.out_features,), jnp.float32)) if use_bias else None
        self.adapter = nnx.data(None)  # see `attach_adapters`

    @classmethod
    def from_matrix(
        cls,
        w: np.ndarray | jax.Array,
        *,
        bond: int | None = None,
        shape: mpo.MPOShape | None = None,
        bias: np.ndarray | jax.Array | None = None,
        dtype: str = "float32",
    ) -> "MPOLinear":
        """The layer of a given matrix, decomposed on the host in float64; parameters are float32.

        W ~ sum over bonds of core_1 core_2 ... core_n, exact at full bonds, with more parameters
        than the matrix; a cap below them compresses (TT-SVD).

        Examples:
          >>> import numpy as np
          >>> from mpojax import mpo, nn
          >>> w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
          >>> exact = nn.MPOLinear.from_matrix(w)
          >>> bool(np.allclose(exact(w), w @ w, atol=1e-4))
          True
          >>> small = nn.MPOLinear.from_matrix(w, bond=8)
          >>> small.shape.bonds, small.shape.num_params < w.size
          ((4, 8, 8, 4), True)
          >>> low_rank = nn.MPOLinear.from_matrix(w, shape=mpo.MPOShape.low_rank(64, 64, 8))
          >>> [core.shape for core in low_rank.all_cores()]
          [(1, 64, 1, 8), (8, 1, 64, 1)]

        Args:
          w: matrix (in_features, out_features).
          bond: cap of every bond dimension (tensor-train rank); None: those of `shape`.
          shape: factor lists and bonds; None: five cores of the papers' factors for this size where
            they gave any, else of balanced ones, at full bonds.
          bias: vector (out_features,), or None for a layer without.
          dtype: compute dtype.

        Raises:
          ValueError: no finite floating-point matrix, a bias or a shape of another size, or a
            cap below 1.
        """
        cores, shape = decomposed(w, shape, bond)
        layer = cls(shape, bias is not None, dtype=dtype, cores=cores)
        if bias is not None:
            if bias.shape != (shape.out_features,):
                raise ValueError(
                    f"bias has shape {bias.shape}; this matrix needs ({shape.out_features},)."
                )
            layer.bias = nnx.Param(jnp.asarray(bias, jnp.float32))
        return layer

    @classmethod
    def from_linear(
        cls,
        layer: Dense | nnx.Linear,
        *,
        bond: int | None = None,
        shape: mpo.MPOShape | None = None,
    ) -> "MPOLinear":
        """The layer of a dense one's matrix and bias; see `from_matrix`.

        Of an `nnx.Linear` its own `precision`, `dot_general` and the like are not kept.

        Examples:
          >>> import jax.numpy as jnp
          >>> from flax import nnx
          >>> from mpojax import nn
          >>> dense = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
          >>> layer = nn.MPOLinear.from_linear(dense, bond=8)
          >>> layer(jnp.ones((2, 64))).shape
          (2, 32)

        Raises:
          TypeError: another kind of layer.
          ValueError: see `from_matrix`.
        """
        if type(layer) not in (Dense, nnx.Linear):
            raise TypeError(
                f"from_linear takes an nnx.Linear or a nn.Dense, not {type(layer).__name__}; "
                "give the matrix itself to from_matrix."
            )
        bias = None if layer.bias is None else layer.bias[...]
        dtype = jnp.dtype(layer.kernel[...].dtype if layer.dtype is None else layer.dtype).name
        made = cls.from_matrix(layer.kernel[...], bond=bond, shape=shape, bias=bias, dtype=dtype)
        made.adapter = getattr(layer, "adapter", None)
        return made

    @property
    def in_features(self) -> int:
        return self.shape.in_features

    @property
    def out_features(self) -> int:
        return self.shape.out_features

    def all_cores(self, central: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """The n cores in order, with the given central core where the layer holds none.

        Raises:
          ValueError: a shared central core is missing, unexpected, or of another shape.
        """
        cores = [core[...] for core in self.cores]
        if central is None and self.shared_central:
            raise ValueError("this layer shares its central core: call it with central=<the core>.")
        if central is None:
            return tuple(cores)
        if not self.shared_central:
            raise ValueError(
                "central= was given, but this layer holds a central core of its own; build it with "
                "shared_central=True to pass one in."
            )
        expected = self.shape.core_shapes[self.shape.central]
        if central.shape != expected:
            raise ValueError(
                f"central core has shape {central.shape}; this layer needs {expected}."
            )
        cores.insert(self.shape.central, central)
        return tuple(cores)

    def __call__(self, x: jax.Array, central: jax.Array | None = None) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype.

        Raises:
          ValueError: `x` has another last axis, or see `all_cores`.
        """
        _check_last_axis(x, self.shape.in_features)
        x = x if self.adapter is None else self.adapter.pre(x)
        # Cores stay float32; merging runs in their dtype, the product in that of x.
        y = mpo.apply(self.all_cores(central), x.astype(self.dtype), self.shape)
        return _finished(y, x, self.adapter, self.bias)

    def merged(self) -> Dense:
        """The dense layer of the same function; differentiates down to the cores."""
        shape = self.shape
        kernel = mpo.to_matrix(self.all_cores(), shape)
        dense = Dense(
            shape.in_features,
            shape.out_features,
            self.bias is not None,
            dtype=self.dtype,
            kernel=kernel,
        )
        if self.bias is not None:
            dense.bias = self.bias
        dense.adapter = self.adapter
        return dense


def decomposed(
    w: np.ndarray | jax.Array, shape: mpo.MPOShape | None, bond: int | None
) -> tuple[list[jax.Array], mpo.MPOShape]:
    """Float32 cores of a matrix, and their shape; see `MPOLinear.from_matrix`."""
    w = np.asarray(w)
    if w.ndim != 2 or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(
            f"w has shape {w.shape} and dtype {w.dtype}; a chain is of a matrix "
            "(in_features, out_features) of floats."
        )
    if shape is None:
        # The papers' factors make counts and results comparable; balanced ones are as good.
        shape = mpo.MPOShape.published(*w.shape) or mpo.MPOShape.balanced(*w.shape)
    shape = shape if bond is None else shape.with_bonds(bond)
    cores = mpo.decompose(w.astype(np.float32), shape)
    return [jnp.asarray(core) for core in cores], shape


def rebuilt_once(module: nnx.Module, tokens: int) -> nnx.Module:
    """`module` ready for many calls: chains that are worth rebuilding become dense layers.

    For a module that is called several times in one program, such as a layer shared by all depths:
    each matrix is then rebuilt once in the forward and differentiated once in the backward pass.
    Where `mpo.plan` would not rebuild for all calls together the chain stays as it is.

    Args:
      module: any module; may be dense in part, or wholly.
      tokens: rows of all calls together.
    """

    def is_chain(part) -> bool:
        return isinstance(part, MPOLinear) and not part.shared_central

    def rebuild(part):
        if not is_chain(part):
            return part
        plan = mpo.plan(part.shape, tokens=tokens, dtype=part.dtype)
        return part.merged() if plan.strategy == "rebuild" else part

    return jax.tree.map(rebuild, module, is_leaf=is_chain)


def as_core_list(cores, shape: mpo.MPOShape, shared_central: bool = False) -> nnx.List:
    """Wraps cores into variables of their roles; a shared central core is left out."""
    kept = []
    for index, core in enumerate(cores):
        if index == shape.num_cores:  # behind the cores of a pivoted chain
            kept.append(ColumnOrder(core))
        elif index != shape.central:
            kept.append(AuxiliaryCore(core))
        elif not shared_central:
            kept.append(CentralCore(core))
    return nnx.List(kept)


def linear(
    in_features: int,
    out_features: int,
    shape: mpo.MPOShape | None,
    use_bias: bool = True,
    *,
    dtype: str = "float32",
    rngs: nnx.Rngs,
) -> Dense | MPOLinear:
    """A linear map: dense where `shape` is None, else in MPO form."""
    if shape is None:
        return Dense(in_features, out_features, use_bias, dtype=dtype, rngs=rngs)
    return MPOLinear(shape, use_bias, dtype=dtype, rngs=rngs)


def _check_last_axis(x: jax.Array, in_features: int):
    if x.shape[-1] != in_features:
        raise ValueError(f"x has shape {x.shape}; its last axis must be in_features={in_features}.")


def _finished(y: jax.Array, x: jax.Array, adapter, bias: nnx.Param | None) -> jax.Array:
    """A product with its bias, and the adapter parallel to it or after it."""
    if adapter is None:
        return _add_bias(y, bias)
    # post(parallel(y, x) + b): low rank is added before the bias, a bottleneck comes after it.
    return adapter.post(_add_bias(adapter.parallel(y, x), bias))


def _add_bias(y: jax.Array, bias: nnx.Param | None) -> jax.Array:
    if bias is None:
        return y
    return y + along_last(bias[...].astype(y.dtype), y)
