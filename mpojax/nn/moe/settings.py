"""Settings of a feed-forward block that is a mixture of experts, checked once."""

import dataclasses

from mpojax import checks

ROUTERS = (
    *("switch", "switch_scale", "top2", "topk", "topk_normalized", "noisy_topk"),
    *("unweighted", "oracle"),
)
DISPATCHES = ("auto", "dense", "capacity", "block", "ragged")
STRUCTURES = ("auto", "rebuild", "shared_core")
MAPS = ("up", "gate", "down")
_SOME_MAPS = checks.sequence(checks.one_of(*MAPS))
_CAPACITY = checks.number(above=0).noted("such as 1.25; 0 would drop every token")


@checks.settings(prefix="experts: ")
class ExpertSettings:
    """Settings of a block of experts: how many there are, and how tokens reach them.

    What an expert's matrices are is said by their shapes: dense, or chains whose central core all
    experts of the block share (MPOE) or each has of its own.

    Attributes:
      number: of experts.
      router: "switch" (the best expert, gate of value 1 with a straight-through gradient),
        "switch_scale" (the best expert, gate = its probability), "top2" (two experts, gates sum to
        1), "topk" (the best `k`, gates = their probabilities), "topk_normalized" (the same, scaled
        to sum to 1), "noisy_topk" (the best `k` of logits with learned noise; without a key no
        noise), "unweighted" (the best `k` by x / ||x||, gates of 1), "oracle" (those `k` whose
        inner activations are largest, for which all are computed; gates of 1).
      k: experts of a token; "switch" and "switch_scale" take one, "top2" two, whatever it is.
      intermediate_size: width inside an expert; None: that of the model's feed-forward blocks.
      shared_size: width of a dense feed-forward block parallel to the experts, which every token
        goes through, times sigmoid(w x); None for none (Qwen2-MoE).
      share_central: chains of all experts have one central core; or the maps of which they do.
      shared_base: maps whose matrix is the sum of what each expert owns and of one dense matrix of
        all experts.
      share_bias: all experts have one bias for each map.
      router_bias: the router's linear map has a bias.
      router_size: width inside the router, tanh(x U) V; None for a linear map.
      capacity_factor: an expert takes at most ceil(factor * assignments / number) tokens of a call,
        the others are dropped; None: no token is ever dropped.
      dispatch: of tokens to experts: "dense" (every expert sees every token), "capacity",
        "block" (sorted, each expert's tokens padded to whole blocks), "ragged"
        (`jax.lax.ragged_dot`), or "auto": "capacity" with a capacity factor, else "block" on CPU
        and "ragged" elsewhere.
      structure: "rebuild" (matrices of all experts are rebuilt), "shared_core" (tokens go through
        the chain: the shared central core is one matrix product for all experts), or "auto": the
        cheaper one by `mpo.plan_experts`.
      remat: rebuilt matrices are built again in the backward pass instead of being kept.
    """

    number: int = checks.field(checks.integer(1))
    router: str = checks.field(checks.one_of(*ROUTERS), "switch")
    k: int = checks.field(checks.integer(1), 2)
    intermediate_size: int | None = checks.field(checks.integer(1), None)
    shared_size: int | None = checks.field(checks.integer(1), None)
    share_central: bool | tuple[str, ...] = checks.field(checks.flag() | _SOME_MAPS, True)
    shared_base: tuple[str, ...] = checks.field(_SOME_MAPS, ())
    share_bias: bool = False
    router_bias: bool = True
    router_size: int | None = checks.field(checks.integer(1), None)
    capacity_factor: float | None = checks.field(_CAPACITY, None)
    dispatch: str = checks.field(checks.one_of(*DISPATCHES), "auto")
    structure: str = checks.field(checks.one_of(*STRUCTURES), "auto")
    remat: bool = True

    def __post_init__(self):
        checks.check_clashes(
            {
                f"experts: router={self.router!r} sends a token to {self.experts_per_token} "
                f"experts, but number={self.number}; raise number, or lower k": (
                    self.experts_per_token > self.number
                ),
                f"experts: dispatch={self.dispatch!r} never drops a token; leave capacity_factor "
                "out, or choose dispatch='capacity'": (
                    self.capacity_factor is not None
                    and self.dispatch in ("block", "ragged", "dense")
                ),
            }
        )

    @property
    def experts_per_token(self) -> int:
        """Experts that a token is sent to."""
        return {"switch": 1, "switch_scale": 1, "top2": 2}.get(self.router, self.k)

    def shares_core(self, name: str) -> bool:
        """True if the chains of a map have one central core."""
        own = self.share_central
        return own if isinstance(own, bool) else name in own

    def with_map(self, name: str, shares_core: bool, has_base: bool) -> "ExpertSettings":
        """The settings with another form of one map."""
        shared = [m for m in MAPS if (shares_core if m == name else self.shares_core(m))]
        bases = [m for m in MAPS if (has_base if m == name else m in self.shared_base)]
        one = {0: False, len(MAPS): True}.get(len(shared), tuple(shared))
        return dataclasses.replace(self, share_central=one, shared_base=tuple(bases))

    def merged(self) -> "ExpertSettings":
        """The settings of experts with a dense matrix each."""
        return dataclasses.replace(self, share_central=True, shared_base=())
