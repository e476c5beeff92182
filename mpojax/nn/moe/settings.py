"""Settings of a feed-forward block that is a mixture of experts, checked once."""

import dataclasses

ROUTERS = ("switch", "switch_scale", "top2", "noisy_topk")
DISPATCHES = ("auto", "dense", "capacity", "block", "ragged")
STRUCTURES = ("auto", "rebuild", "shared_core")


@dataclasses.dataclass(frozen=True)
class ExpertSettings:
    """Settings of a block of experts: how many there are, and how tokens reach them.

    What an expert's matrices are is said by their shapes: dense, or chains whose central core all
    experts of the block share (MPOE) or each has of its own.

    Attributes:
      number: of experts.
      router: "switch" (the best expert, gate of value 1 with a straight-through gradient),
        "switch_scale" (the best expert, gate = its probability), "top2" (two experts, gates sum to
        1), "noisy_topk" (the best `k` of logits with learned noise; without a key no noise).
      k: experts of a token with "noisy_topk"; the other routers fix it.
      share_central: chains of all experts have one central core.
      share_bias: all experts have one bias for each map.
      router_bias: the router's linear map has a bias.
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

    number: int
    router: str = "switch"
    k: int = 2
    share_central: bool = True
    share_bias: bool = False
    router_bias: bool = True
    capacity_factor: float | None = None
    dispatch: str = "auto"
    structure: str = "auto"
    remat: bool = True

    def __post_init__(self):
        for name in ("number", "k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"experts: {name}={value!r} must be an integer of at least 1.")
        for name, allowed in (
            ("router", ROUTERS),
            ("dispatch", DISPATCHES),
            ("structure", STRUCTURES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"experts: {name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        if self.router in ("top2", "noisy_topk") and self.experts_per_token > self.number:
            raise ValueError(
                f"experts: router={self.router!r} sends a token to {self.experts_per_token} "
                f"experts, but number={self.number}; raise number, or lower k."
            )
        factor = self.capacity_factor
        if factor is not None and not 0.0 < factor < float("inf"):
            raise ValueError(
                f"experts: capacity_factor={factor!r} must be a positive, finite number such as "
                "1.25 (0 would drop every token), or None to drop none."
            )
        if factor is not None and self.dispatch in ("block", "ragged", "dense"):
            raise ValueError(
                f"experts: dispatch={self.dispatch!r} never drops a token; leave capacity_factor "
                "out, or choose dispatch='capacity'."
            )

    @property
    def experts_per_token(self) -> int:
        """Experts that a token is sent to."""
        return {"switch": 1, "switch_scale": 1, "top2": 2}.get(self.router, self.k)
