"""Settings of a search over a super-set of adapters, see `pet_search`."""

import dataclasses
import math

from mpojax.methods.pet import allocation, superset
from mpojax.methods.pet import gauge as pet_gauge
from mpojax.methods.pet import groups as pet_groups


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a search over a super-set.

    Attributes:
      budget: parameters that remain at most; heads do not count.
      mode: "structured" or "unstructured".
      rounds: in which groups are dropped.
      warm_steps: before the first; below 1: a fraction of all steps. Updates start at zero, where
        every score is zero.
      last_round: step of the last; below 1: a fraction of all steps.
      schedule: how the budgets of the rounds fall, "geometric" or "cubic".
      criterion: of `pet_groups.CRITERIA`.
      score_batches: batches of training data that a round's scores are summed over. Each costs
        about a step.
      by_cost: whether a score is divided by the parameters that its group frees; draws never are.
      balance: "unit_mean", "factor_mean" or "none", see `pet_groups.normalise`.
      gauge: in which bonds are scored: "svd", "raw" or, for first-order scores, "score".
      seed: of the criterion "random".
    """

    budget: int
    mode: str = "structured"
    rounds: int = 10
    warm_steps: float = 0.05
    last_round: float = 0.3
    schedule: str = "geometric"
    criterion: str = "taylor"
    score_batches: int = 8
    by_cost: bool = True
    balance: str = "unit_mean"
    gauge: str = "svd"
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (
            ("mode", superset.MODES),
            ("schedule", allocation.SCHEDULES),
            ("criterion", pet_groups.CRITERIA),
            ("balance", pet_groups.BALANCES),
            ("gauge", pet_gauge.GAUGES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"search.{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}."
                )
        for name in ("budget", "rounds", "score_batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"search.{name}={value!r} must be an integer of at least 1.")
        if self.gauge == "score" and self.criterion not in ("taylor", "taylor_signed"):
            raise ValueError(
                f"search.gauge='score' diagonalises first-order scores: with search.criterion="
                f"{self.criterion!r} take 'svd' or 'raw', or criterion='taylor'."
            )
        if self.warm_steps <= 0 or self.last_round <= 0:
            raise ValueError(
                f"search.warm_steps={self.warm_steps} and search.last_round={self.last_round} must "
                "be above 0: fresh updates are zero, and so are their scores."
            )

    def round_steps(self, steps: int) -> list[int]:
        """After which of so many steps the rounds take place.

        Raises:
          ValueError: rounds that do not fit into the steps.
        """
        first, last = (
            round(value * steps) if value < 1 else int(value)
            for value in (self.warm_steps, self.last_round)
        )
        first = max(1, first)
        places = [first + math.ceil((last - first) * t / self.rounds) for t in self._rounds()]
        if last > steps or len(set(places)) < self.rounds:
            raise ValueError(
                f"{self.rounds} rounds do not fit between step {first} and step {last} of {steps}: "
                "each takes at least one step. Lower search.rounds or warm_steps, or raise "
                "search.last_round or the steps."
            )
        return places

    def _rounds(self) -> range:
        return range(1, self.rounds + 1)
