"""Settings of an adapter: its kind, size and scale."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mpojax import checks, mpo
from mpojax.nn.feed_forward import ACTIVATIONS

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
