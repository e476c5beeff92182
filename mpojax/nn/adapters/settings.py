"""Which adapter a matrix has: settings, fresh adapters, and matrices that take one in."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from flax import nnx

from mpojax import checks, mpo
from mpojax.nn.adapters import modules
from mpojax.nn.feed_forward import ACTIVATIONS

# Modules added to a matrix.
ADDED = ("low_rank", "mpo", "routed", "bottleneck", "rescale")
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
    "routed": ("rank", "experts", "top_k", "gate_rank", "scale"),
    "bottleneck": ("width", "activation"),
    "rescale": ("side",),
}


@checks.settings(prefix="adapters: ")
class AdapterSettings:
    """Adapter of one matrix, or parameters that are tuned in place.

    | kind       | the map y = x W + b becomes                                                |
    | low_rank   | y + s x D U, D (in, rank), U (rank, out) (LoRA, arXiv:2106.09685)          |
    | mpo        | y + s x T, T a chain of cores                                              |
    | routed     | y + s sum_e p_e(x) (x D_e U_e + b_e) (SMILE, arXiv:2408.10174)             |
    | bottleneck | y + f(y D + d) U + u, D (out, width), U (width, out) (Houlsby et al. 2019) |
    | rescale    | y * l, or (x * l) W + b (IA3, arXiv:2205.05638)                            |
    | bias, norm_scale, cores | the same with other biases, scales of norms, auxiliary cores  |

    Attributes:
      kind: one of `KINDS`.
      rank: of low rank, and of each routed expert.
      experts, top_k, gate_rank: routed experts, how many of them each token takes, and how many
        directions of the input the router looks at for each; see `mpojax.nn.RoutedAdapter`.
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
    experts: int | None = checks.field(_SIZE, None)
    top_k: int = checks.field(_SIZE, 1)
    gate_rank: int = checks.field(_SIZE, 1)
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
        needed = {"low_rank": ("rank",), "routed": ("rank", "experts"), "bottleneck": ("width",)}
        for name in needed.get(self.kind, ()):
            checks.check_value(name, getattr(self, name), checks.integer(1))
        if self.kind == "routed":
            checks.check_value("top_k", self.top_k, checks.integer(1, self.experts))
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
        if self.kind == "routed":
            # D_e (in, r) and the gate (in, g), U_e (r, out) and b_e (out,)
            each = in_features * (self.rank + self.gate_rank) + (self.rank + 1) * out_features
            return self.experts * each
        if self.kind == "bottleneck":
            # D (out, w) and U (w, out), d (w,) and u (out,)
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
) -> modules.Adapter:
    """A fresh adapter for a matrix of this size; `scale` where the settings have none."""
    scale = scale if settings.scale is None else settings.scale
    if settings.kind == "low_rank":
        size = (in_features, out_features, settings.rank, scale)
        return modules.LowRankAdapter(*size, dtype=dtype, rngs=rngs)
    if settings.kind == "mpo":
        shape = settings.shape(in_features, out_features)
        return modules.MPOAdapter(shape, scale, dtype=dtype, rngs=rngs)
    if settings.kind == "routed":
        size = (in_features, out_features, settings.rank, settings.experts)
        routing = {"top_k": settings.top_k, "gate_rank": settings.gate_rank}
        return modules.RoutedAdapter(*size, scale=scale, dtype=dtype, rngs=rngs, **routing)
    if settings.kind == "bottleneck":
        size = (out_features, settings.width, settings.activation)
        return modules.BottleneckAdapter(*size, dtype=dtype, rngs=rngs)
    features = out_features if settings.side == "output" else in_features
    return modules.Rescaling(features, settings.side, dtype=dtype)


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


def merge_adapter(settings: AdapterSettings, arrays: Mapping, kernel, bias, scale: float):
    """(kernel, bias) of the plain map of the same function; exact but for rounding.

    Args:
      settings: of the adapter.
      arrays: its parameters by name: "down", "up", "scale", or the indices of the cores.
      kernel: (in_features, out_features); numpy or jax, as the arrays.
      bias: (out_features,), or None.
      scale: where the settings have none.

    Raises:
      ValueError: a bottleneck or routed experts, which no matrix can stand for.
    """
    scale = scale if settings.scale is None else settings.scale
    if settings.kind == "low_rank":
        return kernel + scale * (arrays["down"] @ arrays["up"]), bias
    if settings.kind == "mpo":
        # By value: as text "10" sorts before "2".
        cores = tuple(arrays[k] for k in sorted(arrays, key=int))
        return kernel + scale * mpo.to_matrix(cores, settings.shape(*kernel.shape)), bias
    if settings.kind == "rescale":
        if settings.side == "input":
            # (x * l) W = x (diag(l) W); below (x W + b) * l = x (W diag(l)) + b * l
            return kernel * arrays["scale"][:, None], bias
        factors = arrays["scale"]
        return kernel * factors[None], None if bias is None else bias * factors
    raise ValueError(
        f"an adapter of kind {settings.kind!r} is not linear: no matrix can take it in; keep it, "
        "or take it away."
    )
