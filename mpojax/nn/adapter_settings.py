"""Settings of an adapter: its kind, size and scale."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mpojax import mpo
from mpojax.nn.feed_forward import ACTIVATIONS

# Modules added to a matrix.
ADDED = ("low_rank", "mpo", "bottleneck", "rescale")
# Parameters that the model has: nothing is added, they are merely tuned. "cores": auxiliary ones.
IN_PLACE = ("bias", "norm_scale", "cores")
KINDS = (*ADDED, *IN_PLACE)
SIDES = ("output", "input")
# Fields that a kind reads; of all others the default stands.
_FIELDS = {
    "low_rank": ("rank", "scale", "offset_seed"),
    "mpo": ("num_cores", "bond", "bonds", "in_factors", "out_factors", "scale"),
    "bottleneck": ("width", "activation"),
    "rescale": ("side",),
}


@dataclasses.dataclass(frozen=True)
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

    kind: str = "low_rank"
    rank: int | None = None
    num_cores: int = 3
    bond: int | None = None
    bonds: tuple[int, ...] | None = None
    in_factors: tuple[int, ...] | None = None
    out_factors: tuple[int, ...] | None = None
    width: int | None = None
    activation: str = "gelu"
    side: str = "output"
    scale: float | None = None
    offset_seed: int | None = None

    def __post_init__(self):
        for name in ("bonds", "in_factors", "out_factors"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        for name, allowed in (
            ("kind", KINDS),
            ("side", SIDES),
            ("activation", sorted(ACTIVATIONS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"adapters: {name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        allowed = ("kind", *_FIELDS.get(self.kind, ()))
        for field in dataclasses.fields(self):
            if field.name not in allowed and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"adapters: {field.name}={getattr(self, field.name)!r} has no meaning with "
                    f"kind={self.kind!r}; it reads {', '.join(allowed[1:]) or 'no other field'}."
                )
        self._check_sizes()

    def _check_sizes(self):
        needed = {"low_rank": "rank", "bottleneck": "width"}.get(self.kind)
        for name in ("rank", "width", "bond", "num_cores"):
            value = getattr(self, name)
            if value is None and name != needed:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"adapters: {name}={value!r} must be an integer of at least 1.")
        if self.kind == "mpo" and (self.bond is None) == (self.bonds is None):
            raise ValueError("adapters: kind='mpo' needs bond or bonds, one of them.")
        if (self.in_factors is None) != (self.out_factors is None):
            raise ValueError("adapters: in_factors and out_factors go together.")
        if self.kind == "mpo" and self.num_cores < 2:
            raise ValueError(f"adapters: num_cores={self.num_cores} must be at least 2.")

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
