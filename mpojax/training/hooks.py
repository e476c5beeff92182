"""Hooks that run between steps: a small protocol, and those that every run needs."""

import contextlib
import signal
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from mpojax import checks
from mpojax.data import pipeline
from mpojax.training import checkpoints as checkpoints_lib
from mpojax.training import evaluation
from mpojax.training import progress as progress_lib
from mpojax.training import state as state_lib

if TYPE_CHECKING:
    from mpojax.training.loop import Loop


class Hook:
    """Base class; every method may be left out.

    A hook may read everything of the loop, write metrics (`loop.log`), replace the state or the
    step function, shapes included (`loop.replace`), and stop the run (`loop.request_stop`). What
    must survive a restart goes through `state_dict`; a hook that changed shapes rebuilds them in
    `load_state_dict`, which runs before the arrays are restored.

    Attributes:
      name: key of its metadata in the checkpoint; unique among the hooks of a run.
      order: hooks run by ascending order; equal ones as given.
    """

    name = ""
    order = 0

    def restore(self, loop: "Loop") -> None:
        """Before anything else: may set `loop.state` to a saved one."""

    def begin(self, loop: "Loop") -> None:
        """Before the first step of this process; `loop.step` is already the restored one."""

    def after_step(self, loop: "Loop") -> None:
        """After each step; `loop.step` steps are finished."""

    def sync(self) -> None:
        """Before each checkpoint: what a hook has written of its own is to outlive this process."""

    def end(self, loop: "Loop") -> None:
        """After the last step, or a requested stop; not after an error."""

    def close(self) -> None:
        """Always, also after an error: frees files and handlers."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able metadata for the checkpoint."""
        return {}

    def load_state_dict(self, loop: "Loop", saved: dict[str, Any]) -> None:
        """Takes the metadata of the checkpoint that is about to be restored."""


class Evaluate(Hook):
    """Evaluates every `every` steps and after the last; logs `<name>/<metric>`.

    Args:
      name: of the split, e.g. "dev".
      data: what to evaluate on.
      evaluator: predictions and metrics.
      every: steps between evaluations; 0 = only after the last step.
      best: metric by which the best state is kept in the run's folder `best-<name>`; None keeps
        none.
      higher_is_better: direction of `best`. The first of equals wins.
      at_start: also before the first step.

    Attributes:
      last, last_step: metrics of the latest evaluation, and after how many steps it was.
      best_value, best_step: of the best one so far.
    """

    def __init__(
        self,
        name: str,
        data: pipeline.EvalBatches,
        evaluator: evaluation.Evaluator,
        every: int = 0,
        *,
        best: str | None = None,
        higher_is_better: bool = True,
        at_start: bool = False,
    ):
        checks.check({"every": every}, {"every": checks.integer(0)}, f"Evaluate({name!r})")
        self.name, self.data, self.evaluator, self.every = name, data, evaluator, every
        self.best, self.higher_is_better, self.at_start = best, higher_is_better, at_start
        self.last: dict[str, float] = {}
        self.last_step: int | None = None
        self.best_value: float | None = None
        self.best_step: int | None = None
        self._checkpoints: checkpoints_lib.Checkpoints | None = None

    def begin(self, loop: "Loop") -> None:
        if self.best is not None:
            self._open(loop)
        # A run may be restored at its last step, e.g. with fewer steps planned than before.
        has_best = self.best is None or self.best_step is not None
        unfinished = loop.step == loop.steps and not (self.last_step == loop.step and has_best)
        if unfinished or (self.at_start and loop.step == 0):
            self._evaluate(loop)

    def after_step(self, loop: "Loop") -> None:
        if (self.every and loop.step % self.every == 0) or loop.step == loop.steps:
            self._evaluate(loop)

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()

    def state_dict(self) -> dict[str, Any]:
        if self._checkpoints is not None:
            self._checkpoints.wait()  # what is said to be the best must be there after a kill, too
        names = ("last", "last_step", "best_value", "best_step")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, loop: "Loop", saved: dict[str, Any]) -> None:
        self.last, self.last_step = dict(saved["last"]), saved["last_step"]
        self.best_value, self.best_step = saved["best_value"], saved["best_step"]
        if self.best is not None:
            self._check_best(loop)

    def _open(self, loop: "Loop") -> checkpoints_lib.Checkpoints:
        if self._checkpoints is None:
            folder = loop.need_folder(f"Evaluate(best={self.best!r})") / f"best-{self.name}"
            self._checkpoints = checkpoints_lib.Checkpoints(folder)
        return self._checkpoints

    def _check_best(self, loop: "Loop") -> None:
        """Forgets a best state that is no longer there, with what stands in its place."""
        kept = self._open(loop)
        found = kept.recover(needed=False)
        if found == self.best_step:
            return
        for step in kept.all_steps():
            kept.remove(step)
        # One of later steps comes again with these: it was saved after the checkpoint.
        if self.best_step is not None and (found is None or found < self.best_step):
            logging.warning(
                "%s: the best state, of step %d with %s=%s, cannot be read: the best of those to "
                "come is kept",
                *(kept.folder, self.best_step, self.best, self.best_value),
            )
        self.best_value = self.best_step = None

    def _evaluate(self, loop: "Loop") -> None:
        with loop.untimed():
            loop.flush()  # a loss that is not finite says more than what follows from it
            try:
                self.last = self.evaluator(loop.state, self.data, loop.mesh)
            except evaluation.NonFiniteOutputError as error:
                where = f"step {loop.step}, {self.name}/"
                raise evaluation.NonFiniteOutputError(f"{where}{error}") from error
            self.last_step = loop.step
            loop.log({f"{self.name}/{key}": value for key, value in self.last.items()})
            if self.best is not None:
                self._keep_best(loop)

    def _keep_best(self, loop: "Loop") -> None:
        if self.best not in self.last:
            raise ValueError(
                f"no metric {self.best!r} to keep the best by; has {sorted(self.last)}"
            )
        value, sign = self.last[self.best], 1 if self.higher_is_better else -1
        if self.best_value is None or sign * value > sign * self.best_value:
            self.best_value, self.best_step = value, loop.step
            loop.flush()  # a state whose loss or gradient is not finite is never saved
            self._checkpoints.save(loop.state)


class Checkpoint(Hook):
    """Saves every `every` steps, at a stop and at the end; restores the latest at the start.

    Where the files of the latest are damaged, the one before; see `Checkpoints.recover`.

    With `at_end=False` the last state is not saved: for runs that keep their result otherwise.
    Parts of the model in `unsaved` are not saved while they are frozen, see `Checkpoints`.
    """

    name, order = "checkpoint", 90  # behind all hooks whose metadata it saves

    def __init__(
        self,
        every: int = 0,
        keep_last: int = 1,
        at_end: bool = True,
        unsaved: Collection[str] = (),
    ):
        checks.check({"every": every}, {"every": checks.integer(0)}, "Checkpoint")
        self.every, self.keep_last, self.at_end, self.unsaved = every, keep_last, at_end, unsaved
        self._checkpoints: checkpoints_lib.Checkpoints | None = None

    def restore(self, loop: "Loop") -> None:
        folder = loop.need_folder("Checkpoint") / "checkpoints"
        self._checkpoints = checkpoints_lib.Checkpoints(folder, self.keep_last, self.unsaved)
        if self._checkpoints.recover() is None:
            return
        saved = self._checkpoints.extra()
        # Without them, a run that was killed after its last step would end without metrics.
        loop.last_metrics |= saved["metrics"]
        # Before the arrays: a hook that changed shapes builds them again, for the arrays to fit.
        for hook in loop.hooks:
            if hook.name in saved["hooks"]:
                hook.load_state_dict(loop, saved["hooks"][hook.name])
        loop.replace(state=self._checkpoints.restore(loop.state))
        logging.info("restored step %d from %s", int(loop.state.step), folder)

    def after_step(self, loop: "Loop") -> None:
        if self.every and loop.step % self.every == 0:
            self._save(loop)

    def end(self, loop: "Loop") -> None:
        if self.at_end or loop.step < loop.steps:
            self._save(loop)
        self._checkpoints.wait()

    def close(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _save(self, loop: "Loop") -> None:
        with loop.untimed():
            loop.sync()  # metrics up to here are kept; loss and gradient are finite
            metadata = {hook.name: hook.state_dict() for hook in loop.hooks if hook.name}
            self._checkpoints.save(loop.state, {"hooks": metadata, "metrics": loop.last_metrics})


class StopOnSignal(Hook):
    """SIGTERM or Ctrl-C ends the run after the current step, saved; a second one ends it at once.

    In a run of several processes, jax.distributed catches SIGTERM itself and makes all processes
    agree on the step.
    """

    name, order = "stop_on_signal", 80

    def __init__(self):
        self._received: str | None = None
        self._previous: dict[int, Any] = {}

    def begin(self, loop: "Loop") -> None:
        if jax.process_count() > 1:
            return
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:
            logging.warning("not the main thread: a signal will end this run without saving")

    def after_step(self, loop: "Loop") -> None:
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(loop.step):
                loop.request_stop("preempted")
        elif self._received is not None:
            loop.request_stop(self._received)

    def end(self, loop: "Loop") -> None:
        if self._received is not None:
            loop.request_stop(self._received)

    def close(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _receive(self, number: int, frame: Any) -> None:
        self._received = signal.Signals(number).name
        logging.warning(
            "%s: stopping after this step, saved; a second one ends the run at once, unsaved",
            self._received,
        )
        self.close()


class Progress(Hook):
    """A progress bar with remaining time on a terminal, elsewhere a log line now and then.

    Process 0 only.

    Args:
      description: what is going on, e.g. "dense, seed 0".
      every_seconds: between two lines where there is no terminal.
    """

    name, order = "progress", 100

    def __init__(self, description: str = "training", every_seconds: float = 15.0):
        self.description, self.every_seconds = description, every_seconds
        self._shown = contextlib.ExitStack()

    def begin(self, loop: "Loop") -> None:
        shown = progress_lib.progress(
            self.description, done=loop.step, every_seconds=self.every_seconds
        )
        self._advance = self._shown.enter_context(shown)

    def after_step(self, loop: "Loop") -> None:
        loss = loop.last_metrics.get("loss")
        text = "" if loss is None else f"loss {loss:.4f}"
        self._advance(loop.step, loop.steps, text)

    def close(self) -> None:
        self._shown.close()


class Call(Hook):
    """Calls a function `(loop)` every `every` steps: the short way to a hook of one's own."""

    def __init__(self, function: Callable[["Loop"], None], every: int = 1):
        checks.check({"every": every}, {"every": checks.integer(1)}, "Call")
        self.function, self.every = function, every

    def after_step(self, loop: "Loop") -> None:
        if loop.step % self.every == 0:
            self.function(loop)


def restore_best(
    folder: Any, state: state_lib.TrainState, name: str = "dev"
) -> state_lib.TrainState:
    """The state that `Evaluate(name, ..., best=...)` kept in a run's folder."""
    with checkpoints_lib.Checkpoints(f"{folder}/best-{name}") as saved:
        return saved.restore(state)
