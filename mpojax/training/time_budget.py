"""The clock of a run whose schedule follows seconds."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpojax.training import hooks

if TYPE_CHECKING:
    from mpojax.training.loop import Loop


class TimeBudget(hooks.Hook):
    """The clock of a schedule over seconds; ends the run when the budget is spent.

    All time between `begin` and the last step counts, that of compilation, evaluation and saving
    too, and that of earlier starts up to their last checkpoint. The step at which the budget is
    found spent, one late at most, is the run's last one: it is evaluated and saved as such.
    In a run of several processes the clock of the mesh's first device's process decides.

    Args:
      seconds: the budget.
      clock: () -> seconds, growing.
    """

    name, order = "time_budget", -100

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        if not seconds > 0:
            raise ValueError(f"seconds={seconds} must be above 0")
        self.seconds, self.clock = seconds, clock
        self._earlier, self._start = 0.0, None
        self._spent = False

    @property
    def elapsed(self) -> float:
        """Seconds so far, those of earlier starts included."""
        return self._earlier + (0.0 if self._start is None else self.clock() - self._start)

    def begin(self, loop: "Loop") -> None:
        self._start = self.clock()
        loop.share = self.elapsed / self.seconds
        if self._spent:
            loop.steps = loop.step

    def after_step(self, loop: "Loop") -> None:
        loop.share = self.elapsed / self.seconds
        # As the step before saw it, thus the same in all processes.
        if loop.last_metrics.get("budget_share", 0.0) >= 1.0:
            self._spent = True
            loop.steps = loop.step

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed, "spent": self._spent}

    def load_state_dict(self, loop: "Loop", saved: dict[str, Any]) -> None:
        self._earlier, self._spent = saved["elapsed"], saved["spent"]
