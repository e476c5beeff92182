"""The one training loop."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mpojax import checks, files
from mpojax.training import hooks as hooks_lib
from mpojax.training import metrics as metrics_lib
from mpojax.training import sharding as sharding_lib
from mpojax.training import state as state_lib
from mpojax.training import step as step_lib


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
        fields = [
            f"{name}={value!r}" for name, value in self.summary().items() if name != "metrics"
        ]
        metrics = [f"  {name}: {value:.6g}" for name, value in self.metrics.items()]
        return "\n".join([f"FitResult({', '.join(fields)})", *metrics, f"  {self.state!r}"])

    def summary(self) -> dict[str, Any]:
        """Everything but the state, JSON-able."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "state"]
        return {name: getattr(self, name) for name in names} | {"step": int(self.state.step)}


class Data(Protocol):
    """Batches as a pure function of the step; see `mpojax.data.TrainData`."""

    batch_size: int  # rows of the global batch

    def rows(self, step: int, rows: slice) -> Mapping[str, np.ndarray]:
        """The named rows of batch `step`, counted from 0."""


class Loop:
    """A run in progress, as hooks see it.

    Attributes:
      state: after `step` steps; its buffers are donated to the next step, so keep no reference.
      step, steps: finished steps and their planned number.
      step_function: the compiled step.
      mesh, rules: where arrays live.
      folder: the run's folder, or None.
      hooks: all hooks of the run.
      last_metrics: latest fetched value of every metric (those of a step are fetched one step
        late).
    """

    def __init__(
        self,
        state: state_lib.TrainState,
        step_function: step_lib.TrainStep,
        data: Data | None,
        *,
        steps: int,
        mesh: Mesh,
        rules: sharding_lib.Rules,
        hooks: Sequence[hooks_lib.Hook],
        folder: pathlib.Path | None,
        log_every: int,
    ):
        self.data, self.steps, self.mesh, self.rules = data, steps, mesh, rules
        self.step_function, self.folder, self.log_every = step_function, folder, log_every
        _check(data, steps, log_every, hooks)
        self.hooks = sorted(hooks, key=lambda hook: hook.order)
        self.last_metrics: dict[str, float] = {}
        self.stopped: str | None = None
        self._pending: tuple[int, dict] | None = None
        self._writer: metrics_lib.MetricsWriter | None = None
        self._untimed_seconds = 0.0
        self._untimed_depth = 0
        self._rows = sharding_lib.local_rows(data.batch_size, mesh) if steps else slice(0)
        self.replace(state=state)

    def replace(
        self,
        state: state_lib.TrainState | None = None,
        step_function: step_lib.TrainStep | None = None,
    ) -> None:
        """Puts another state, shapes included, or step function in place.

        A new state is put on the mesh by the rules; the step is compiled again only if something
        changed.
        """
        if step_function is not None:
            self.step_function = step_function
        if state is not None:
            shardings = sharding_lib.state_shardings(state, self.mesh, self.rules)
            state, before = sharding_lib.device_put(state, shardings), getattr(self, "state", None)
            if before is None or _kinds(state) != _kinds(before):
                self.step_function.reset()
            self.state = state
        self.step = int(self.state.step)

    def log(self, values: Mapping[str, float], *, keep: bool = True) -> None:
        """Writes metrics of the current step; with `keep=False` not into `last_metrics`, which
        checkpoints and results hold.
        """
        self.flush()
        if keep:
            self.last_metrics |= {name: float(value) for name, value in values.items()}
        if self._writer is not None:
            self._writer.write(self.step, values)

    def flush(self) -> None:
        """Fetches the metrics of the last step now instead of one step late.

        Raises:
          NonFiniteLossError: the loss or the gradient norm of that step is NaN or infinite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        known = jax.device_get({name: metrics[name] for name in _ALWAYS_FETCHED})
        for name in _ALWAYS_FETCHED:
            value = float(known[name])
            if not math.isfinite(value):
                raise step_lib.NonFiniteLossError(
                    f"the {name.replace('_', ' ')} of step {step} is {value}; nothing was saved "
                    "since. Lower the learning rate, raise warmup_steps, or look at the data of "
                    "that step"
                )
        if step % self.log_every == 0 or step == self.steps:
            values = {name: float(value) for name, value in metrics.items()}
            self.last_metrics |= values
            if self._writer is not None:
                self._writer.write(step, values)
        else:
            self.last_metrics["loss"] = float(known["loss"])

    def sync(self) -> None:
        """Sees to it that all that was written so far would outlive this process."""
        self.flush()
        if self._writer is not None:
            self._writer.flush()
        for hook in self.hooks:
            hook.sync()

    def request_stop(self, reason: str) -> None:
        """Ends the run after the current step's hooks."""
        self.stopped = self.stopped or reason

    def need_folder(self, who: str) -> pathlib.Path:
        if self.folder is None:
            raise ValueError(f"{who} needs a folder to save in; pass fit(..., folder=...)")
        return self.folder

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Keeps what runs inside out of the measured speed."""
        # Steps in flight belong to the measured time: wait for them before the clock stands still.
        jax.block_until_ready(self.state)
        start = time.perf_counter()
        self._untimed_depth += 1
        try:
            yield
        finally:
            self._untimed_depth -= 1
            # Nested uses are a part of the outermost one.
            if self._untimed_depth == 0:
                self._untimed_seconds += time.perf_counter() - start

    def run(self) -> FitResult:
        """Runs to the last step or a requested stop."""
        # All are closed, in reverse order, even if closing one of them fails.
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._close_writer)
            for hook in self.hooks:
                cleanup.callback(hook.close)
            cleanup.enter_context(jax.set_mesh(self.mesh))
            self._begin()
            first, watch, batch = self.step, _Stopwatch(), self._next_batch()
            while self.step < self.steps and self.stopped is None:
                with watch.step(self.step_function):
                    self.state, metrics = self.step_function(self.state, batch)
                self.step += 1
                batch = self._next_batch()  # while the device works
                self.flush()  # the step before: fetched late, so that the device never waits
                self._pending = (self.step, metrics)
                for hook in self.hooks:
                    hook.after_step(self)
            return self._end(first, watch)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begin(self) -> None:
        for hook in self.hooks:
            hook.restore(self)
        if self.step > self.steps:
            raise ValueError(f"the restored run is at step {self.step}, beyond steps={self.steps}")
        if self.folder is not None:
            self._writer = metrics_lib.MetricsWriter(self.folder, self.step)
        for hook in self.hooks:
            hook.begin(self)
        # The stopwatch of the steps starts after this.
        self._untimed_seconds = 0.0

    def _end(self, first: int, watch: "_Stopwatch") -> FitResult:
        jax.block_until_ready(self.state)
        # Python runs ahead of the device: only now is the last step done.
        seconds = watch.seconds - self._untimed_seconds
        self.flush()
        for hook in self.hooks:
            hook.end(self)
        return FitResult(
            state=self.state,
            stopped=self.stopped if self.step < self.steps else None,
            stop_requested=self.stopped,
            metrics=dict(self.last_metrics),
            steps_run=self.step - first,
            steps_per_second=watch.timed_steps / seconds if watch.timed_steps else None,
            compile_seconds=watch.compile_seconds,
            train_seconds=seconds,
            traces=watch.traces,
        )

    def batch(self, step: int) -> dict:
        """The batch of a step, counted from 0, on the mesh."""
        rows = self.data.rows(step, self._rows)
        return sharding_lib.shard_batch(rows, self.data.batch_size, self.mesh)

    def _next_batch(self) -> dict:
        return self.batch(self.step) if self.step < self.steps else {}


class _Stopwatch:
    """Time of the steps since it was made, and how often they were traced.

    Attributes:
      timed_steps: those that were not compiled.
      compile_seconds: of those that were.
      traces: how often a step was traced.
    """

    def __init__(self):
        self.start = time.perf_counter()
        self.timed_steps, self.compile_seconds, self.traces = 0, 0.0, 0

    @property
    def seconds(self) -> float:
        """Without compilation."""
        return time.perf_counter() - self.start - self.compile_seconds

    @contextlib.contextmanager
    def step(self, function: step_lib.TrainStep) -> Iterator[None]:
        traces, seconds = function.traces, function.compile_seconds
        yield
        self.timed_steps += function.traces == traces
        self.traces += function.traces - traces
        self.compile_seconds += function.compile_seconds - seconds


def _kinds(state: state_lib.TrainState) -> tuple:
    """Everything that a compiled step depends on; also of a state whose buffers were donated."""
    leaves, structure = jax.tree.flatten(state)
    return structure, [(x.shape, x.dtype, x.sharding) for x in leaves]


# Of every step, by all processes: what decides whether the run goes on.
_ALWAYS_FETCHED = ("loss", "gradient_norm")


def _check(data: Data | None, steps: int, log_every: int, hooks: Sequence[hooks_lib.Hook]) -> None:
    counts = {"steps": steps, "log_every": log_every}
    checks.check(counts, {"steps": checks.integer(0), "log_every": checks.integer(1)})
    if steps and data is None:
        raise ValueError(f"steps={steps} need data to train on; data=None is for steps=0")
    names = [hook.name for hook in hooks if hook.name]
    if len(set(names)) != len(names):
        raise ValueError(f"hooks of one run need different names; got {sorted(names)}")


def fit(
    state: state_lib.TrainState,
    loss_fn: step_lib.LossFunction,
    data: Data | None,
    *,
    optimizer: Any,
    steps: int,
    mesh: Mesh | None = None,
    rules: sharding_lib.Rules = sharding_lib.REPLICATED,
    hooks: Sequence[hooks_lib.Hook] = (),
    folder: str | pathlib.Path | None = None,
    log_every: int = 10,
    grad_accum_steps: int = 1,
    precompute: Callable[[nnx.Module], Any] | None = None,
) -> FitResult:
    """Trains to `steps` steps, resuming from the folder's checkpoint where there is one.

    A run that was interrupted and resumed on the same mesh gives the same bits as one that was not.

    Args:
      state: initial state; see `TrainState.create`. Its buffers are donated.
      loss_fn: (model, batch, key) -> (mean loss, {metric: scalar}).
      data: batches by step; may be None without steps.
      optimizer: the one that made the state's optimizer state.
      steps: total number, earlier processes of the run included. 0 only evaluates: hooks begin and
        end.
      mesh: default: all devices on `data`.
      rules: how parameters are split over the mesh.
      hooks: see `mpojax.training.hooks`; without a `Checkpoint` nothing is saved or resumed.
      folder: of metrics and checkpoints; None writes nothing.
      log_every: steps between two lines of training metrics.
      grad_accum_steps: micro-batches per step; see `TrainStep`.
      precompute: work on the model done once per step; see `TrainStep`.

    Raises:
      NonFiniteLossError: loss or gradient of a step is NaN or infinite; names the step.
      ValueError: batch and mesh, checkpoint and model, or rules and model do not fit.
    """
    loop = Loop(
        state,
        step_lib.TrainStep(
            loss_fn, optimizer, grad_accum_steps=grad_accum_steps, precompute=precompute
        ),
        data,
        steps=steps,
        mesh=mesh or sharding_lib.make_mesh(),
        rules=rules,
        hooks=hooks,
        folder=None if folder is None else files.at(folder).absolute(),
        log_every=log_every,
    )
    return loop.run()
