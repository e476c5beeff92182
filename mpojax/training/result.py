"""Result of a training run."""

import dataclasses
from typing import Any

from mpojax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Final state of a run.

    Attributes:
      state: the final state, on the mesh.
      stopped: why it ended before its last step (e.g. "SIGTERM"), or None.
      stop_requested: the same, also where the request came with the last step: what would follow
        the run should not start.
      metrics: latest value of every metric.
      steps_run: steps of this process; less than all after a resume.
      steps_per_second: without compilation, evaluation and saving; None when no step could be
        timed.
      compile_seconds: tracing, compilation and first execution.
      train_seconds: of the timed steps.
      traces: how often the step was traced.
    """

    state: state_lib.TrainState
    stopped: str | None
    stop_requested: str | None
    metrics: dict[str, float]
    steps_run: int
    steps_per_second: float | None
    compile_seconds: float
    train_seconds: float
    traces: int

    @property
    def interrupted(self) -> bool:
        return self.stopped is not None

    def __repr__(self) -> str:
        """A page, without the state's arrays."""
        facts = [f"{name}={value!r}" for name, value in self.summary().items() if name != "metrics"]
        metrics = [f"  {name}: {value:.6g}" for name, value in self.metrics.items()]
        return "\n".join([f"FitResult({', '.join(facts)})", *metrics, f"  {self.state!r}"])

    def summary(self) -> dict[str, Any]:
        """Everything but the state, JSON-able."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "state"]
        return {name: getattr(self, name) for name in names} | {"step": int(self.state.step)}
