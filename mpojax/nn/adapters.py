"""Adapters of a matrix, dense or MPO: low rank, chains, bottlenecks, rescaling.

Each is a module that a linear map calls three times: `pre(x)` on its input, `parallel(y, x)` on its
product without the bias, `post(y)` at the end. All start without effect, but for the offset start,
see `mpojax.compression.add_adapters`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mpojax import checks, mpo
from mpojax.nn.feed_forward import ACTIVATIONS
from mpojax.nn.functional import along_last, matmul
from mpojax.nn.parameters import AdapterParam, normal, random_cores

# Standard deviation of a fresh down map. The up map starts at zero: nothing changes at first.
STDDEV = 0.02


class Adapter(nnx.Module):
    """Adapter that changes nothing: the base class of all kinds."""

    def pre(self, x: jax.Array) -> jax.Array:
        """Input of the map, in place of `x`."""
        return x

    def parallel(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """Product of the map before the bias, in place of y = x W."""
        del x
        return y

    def post(self, y: jax.Array) -> jax.Array:
        """Output of the map, in place of y = x W + b."""
        return y


class LowRankAdapter(Adapter):
    """scale * x @ down @ up, with down (in_features, rank) and up (rank, out_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        scale: float = 1.0,
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws a float32 down map of standard deviation 0.02 and a zero up map.

        `dtype` is the compute dtype.

        Raises:
          ValueError: a rank below 1.
        """
        checks.check_value("rank", rank, checks.integer(1))
        self.scale = scale
        self.dtype = dtype
        self.down = AdapterParam(normal(rngs.params(), (in_features, rank), STDDEV**2))
        self.up = AdapterParam(jnp.zeros((rank, out_features), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        narrow = matmul(x.astype(self.dtype), self.down[...].astype(self.dtype))
        return self.scale * matmul(narrow, self.up[...].astype(self.dtype))

    def parallel(self, y, x):
        return y + self(x)


class MPOAdapter(Adapter):
    """scale * x @ T, with T a chain of cores of which the last starts at zero."""

    def __init__(
        self, shape: mpo.MPOShape, scale: float = 1.0, *, dtype: str = "float32", rngs: nnx.Rngs
    ):
        """Draws float32 cores of a chain of variance 1 / in_features; the last is zero."""
        self.shape = shape
        self.scale = scale
        self.dtype = dtype
        *cores, last = random_cores(rngs.params(), shape, 1.0 / shape.in_features)
        self.cores = nnx.List([AdapterParam(core) for core in (*cores, jnp.zeros_like(last))])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., in_features) to (..., out_features) in the compute dtype."""
        cores = tuple(core[...] for core in self.cores)
        return self.scale * mpo.apply(cores, x.astype(self.dtype), self.shape)

    def parallel(self, y, x):
        return y + self(x)


class BottleneckAdapter(Adapter):
    """y + f(y @ down + down_bias) @ up + up_bias, after the map."""

    def __init__(
        self,
        features: int,
        width: int,
        activation: str = "gelu",
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws a float32 down map of variance 1 / features; the up map is zero."""
        self.activation = activation
        self.dtype = dtype
        self.down = AdapterParam(normal(rngs.params(), (features, width), 1.0 / features))
        self.down_bias = AdapterParam(jnp.zeros(width, jnp.float32))
        self.up = AdapterParam(jnp.zeros((width, features), jnp.float32))
        self.up_bias = AdapterParam(jnp.zeros(features, jnp.float32))

    def post(self, y):
        down, down_bias, up, up_bias = (
            value[...].astype(self.dtype)
            for value in (self.down, self.down_bias, self.up, self.up_bias)
        )
        inner = ACTIVATIONS[self.activation](matmul(y, down) + along_last(down_bias, y))
        return y + matmul(inner, up) + along_last(up_bias, y)


class Rescaling(Adapter):
    """y * scale after the map, or x * scale before it."""

    def __init__(self, features: int, side: str = "output", *, dtype: str = "float32"):
        """Ones, float32."""
        self.side = side
        self.dtype = dtype
        self.scale = AdapterParam(jnp.ones(features, jnp.float32))

    def pre(self, x):
        return x if self.side == "output" else self._scaled(x)

    def post(self, y):
        return y if self.side == "input" else self._scaled(y)

    def _scaled(self, x):
        x = x.astype(self.dtype)
        return x * along_last(self.scale[...].astype(self.dtype), x)


# Modules added to a matrix.
ADDED = ("low_rank", "mpo", "bottleneck", "rescale")
# Parameters that the model has: nothing is added, they are merely tuned. "cores": auxiliary ones.
IN_PLACE = ("bias", "norm_scale", "cores")
KINDS = (*ADDED, *IN_PLACE)
SIDES = ("output", "input")
# More is no adapter: settings also come out of files.
_SIZE = checks.Allowed(
    "an integer of at least 1, at most 16777216", checks.integer(1, 2**24).accepts
)
_SIZES = checks.sequence(_SIZE)
# Fields that a kind reads; of all others the default stands.
_FIELDS = {
    "low_rank": ("rank", "scale", "offset_seed"),
    "mpo": ("num_cores", "bond", "bonds", "in_factors", "out_factors", "scale"),
    "bottleneck": ("width", "activation"),
    "rescale": ("side",),
}


@checks.settings(prefix="adapters: ")
class AdapterSettings:
    """Adapter of one matrix, or parameters that are tuned in place.

    | kind       | the map y = x W + b becomes                                                |
    | low_rank   | y + s x D U, D (in, rank), U (rank, out) (LoRA, arXiv:2106.09685)          |
    | mpo        | y + s x T, T a chain of cores                                              |
    | bottleneck | y + f(y D + d) U + u, D (out, width), U (width, out) (Houlsby et al. 2019) |
    | rescale    | y * l, or (x * l) W + b (IA3, arXiv:2205.05638)                            |
    | bias, norm_scale, cores | the same with other biases, scales of norms, auxiliary cores  |

    Attributes:
      kind: one of `KINDS`.
      rank: of low rank.
      num_cores, bond, bonds: of a chain; a cap for every bond, or one number for each.
      in_factors, out_factors: of a chain; None: automatic ones.
      width, activation: of a bottleneck.
      side: what is rescaled.
      scale: s; None: that of the model, `config.adapter_scale`. Fixed: it does not follow the rank.
      offset_seed: of a low rank whose start was subtracted from the base;
        None: it started without effect.
    """

    kind: str = checks.field(checks.one_of(*KINDS), "low_rank")
    rank: int | None = checks.field(_SIZE, None)
    num_cores: int = checks.field(checks.integer(2, 64), 3)
    bond: int | None = checks.field(_SIZE, None)
    bonds: tuple[int, ...] | None = checks.field(_SIZES, None)
    in_factors: tuple[int, ...] | None = checks.field(_SIZES, None)
    out_factors: tuple[int, ...] | None = checks.field(_SIZES, None)
    width: int | None = checks.field(_SIZE, None)
    activation: str = checks.field(checks.one_of(*sorted(ACTIVATIONS)), "gelu")
    side: str = checks.field(checks.one_of(*SIDES), "output")
    scale: float | None = checks.field(checks.number(), None)
    offset_seed: int | None = checks.field(checks.integer(-(2**31), 2**32 - 1), None)

    def __post_init__(self):
        read = ("kind", *_FIELDS.get(self.kind, ()))
        own = [field.name for field in dataclasses.fields(AdapterSettings)]
        why = f"kind={self.kind!r}, which reads {', '.join(read[1:]) or 'no other field'}"
        checks.check_unread(self, {name: why for name in own if name not in read})
        needed = {"low_rank": "rank", "bottleneck": "width"}.get(self.kind)
        if needed is not None:
            checks.check_value(needed, getattr(self, needed), checks.integer(1))
        checks.check_clashes(
            {
                "adapters: kind='mpo' needs bond or bonds, one of them": (
                    self.kind == "mpo" and (self.bond is None) == (self.bonds is None)
                ),
                "adapters: in_factors and out_factors go together": (
                    (self.in_factors is None) != (self.out_factors is None)
                ),
            }
        )

    @classmethod
    def of(cls, value: "int | Mapping[str, Any] | AdapterSettings") -> "AdapterSettings":
        """Settings as such, as a dict of their fields, or as the rank of a low-rank update."""
        if isinstance(value, cls):
            return value
        return cls(**value) if isinstance(value, Mapping) else cls(rank=value)

    def __str__(self) -> str:
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(AdapterSettings)
            if field.name != "kind" and getattr(self, field.name) != field.default
        ]
        return f"{self.kind}({', '.join(changed)})"

    @property
    def in_place(self) -> bool:
        """True if parameters of the model are tuned and nothing is added."""
        return self.kind in IN_PLACE

    def shape(self, in_features: int, out_features: int) -> mpo.MPOShape:
        """Shape of the chain of kind "mpo" for a matrix of this size."""
        if self.in_factors is not None:
            size = {"in_features": in_features, "out_features": out_features}
            full = mpo.MPOShape(self.in_factors, self.out_factors, **size)
        else:
            full = mpo.MPOShape.balanced(in_features, out_features, self.num_cores)
        return full.with_bonds(self.bond if self.bonds is None else self.bonds)

    def num_params(self, in_features: int, out_features: int) -> int:
        """Parameters added to a matrix of this size."""
        if self.kind == "low_rank":
            return self.rank * (in_features + out_features)
        if self.kind == "mpo":
            return self.shape(in_features, out_features).num_params
        if self.kind == "bottleneck":
            return 2 * out_features * self.width + self.width + out_features
        if self.kind == "rescale":
            return out_features if self.side == "output" else in_features
        return 0


def make_adapter(
    settings: AdapterSettings,
    in_features: int,
    out_features: int,
    scale: float = 1.0,
    *,
    dtype: str = "float32",
    rngs: nnx.Rngs,
) -> Adapter:
    """A fresh adapter for a matrix of this size; `scale` where the settings have none."""
    scale = scale if settings.scale is None else settings.scale
    if settings.kind == "low_rank":
        size = (in_features, out_features, settings.rank, scale)
        return LowRankAdapter(*size, dtype=dtype, rngs=rngs)
    if settings.kind == "mpo":
        shape = settings.shape(in_features, out_features)
        return MPOAdapter(shape, scale, dtype=dtype, rngs=rngs)
    if settings.kind == "bottleneck":
        size = (out_features, settings.width, settings.activation)
        return BottleneckAdapter(*size, dtype=dtype, rngs=rngs)
    features = out_features if settings.side == "output" else in_features
    return Rescaling(features, settings.side, dtype=dtype)


def submodule(module: nnx.Module, path: Iterable[str | int]) -> nnx.Module:
    """The part of a module at a path, such as ("stacks", 0, "attention") or ("layers", "0")."""
    for part in path:
        is_index = isinstance(part, int) or part.isdigit()
        module = module[int(part)] if is_index else getattr(module, part)
    return module


def attach_adapters(
    module: nnx.Module,
    settings: Mapping[str, AdapterSettings | int],
    scale: float,
    *,
    rngs: nnx.Rngs,
) -> None:
    """Adds a fresh adapter to the linear maps named by path, such as "attention/query"; a number
    is a low rank.
    """
    for path, chosen in settings.items():
        inner = submodule(module, path.split("/"))
        size = (inner.in_features, inner.out_features)
        chosen = AdapterSettings.of(chosen)
        adapter = make_adapter(chosen, *size, scale, dtype=inner.dtype, rngs=rngs)
        inner.adapter = nnx.data(adapter)


def fold_adapter(settings: AdapterSettings, arrays: Mapping, kernel, bias, scale: float):
    """(kernel, bias) of the plain map of the same function; exact but for rounding.

    Args:
      settings: of the adapter.
      arrays: its parameters by name: "down", "up", "scale", or the indices of the cores.
      kernel: (in_features, out_features); numpy or jax, as the arrays.
      bias: (out_features,), or None.
      scale: where the settings have none.

    Raises:
      ValueError: a bottleneck, which no matrix can stand for.
    """
    scale = scale if settings.scale is None else settings.scale
    if settings.kind == "low_rank":
        return kernel + scale * (arrays["down"] @ arrays["up"]), bias
    if settings.kind == "mpo":
        cores = tuple(arrays[k] for k in sorted(arrays, key=int))
        return kernel + scale * mpo.to_matrix(cores, settings.shape(*kernel.shape)), bias
    if settings.kind == "rescale":
        if settings.side == "input":
            return kernel * arrays["scale"][:, None], bias
        factors = arrays["scale"]
        return kernel * factors[None], None if bias is None else bias * factors
    raise ValueError(
        f"an adapter of kind {settings.kind!r} is not linear: no matrix can take it in; keep it, "
        "or take it away."
    )
