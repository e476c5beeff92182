"""Checkpoints: Orbax behind one small class."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mpojax import files
from mpojax.training import sharding as sharding_lib
from mpojax.training import state as state_lib


class Checkpoints:
    """Numbered checkpoints of a training state in one folder; use as a context manager, or close.

    A save is atomic: killed in the middle, it leaves the step before as the latest. Saving runs in
    the background; the state may be donated as soon as `save` returns.

    Args:
      folder: made if absent; any path (it is made absolute, which Orbax needs).
      keep_last: how many of the latest steps are kept.
    """

    def __init__(self, folder: str | pathlib.Path, keep_last: int = 1):
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last} must be at least 1")
        self.folder = pathlib.Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep_last),
            # The training loop decides when to save.
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            # Two folders saved at the same step must not share the names of their barriers.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=self.folder.name
            ),
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, handler_registry=_handlers()
            )
        except OSError as error:
            raise files.explain(error, self.folder) from error

    def save(self, state: state_lib.TrainState, extra: Mapping[str, Any] | None = None) -> None:
        """Saves the state under its step number, unless that step is there already.

        Args:
          extra: JSON-able facts that must survive with the state.

        Raises:
          OSError: this save, or an earlier one in the background, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state.arrays()), extra=ocp.args.JsonSave(dict(extra or {}))
        )
        self._guarded(lambda: self._manager.save(step, args=arguments, force=True))

    def wait(self) -> None:
        """Waits for saves in the background; raises what went wrong in them."""
        self._guarded(self._manager.wait_until_finished)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def extra(self, step: int | None = None) -> dict:
        """The JSON-able facts saved with a step (default: the latest)."""
        step = self._known(step)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(extra=ocp.args.JsonRestore())
        )
        return dict(restored["extra"])

    def restore(
        self,
        state: state_lib.TrainState,
        shardings: state_lib.TrainState | None = None,
        step: int | None = None,
    ) -> state_lib.TrainState:
        """A saved state, on any mesh.

        Args:
          state: a state of the same structure; gives names, shapes, dtypes and the model's
            definition.
          shardings: where each leaf goes; default: where the leaves of `state` are.
          step: default: the latest.

        Raises:
          ValueError: the checkpoint holds other names, shapes or dtypes; lists them.
          FileNotFoundError: there is no such step.
        """
        step = self._known(step)
        if shardings is None:
            shardings = jax.tree.map(lambda x: x.sharding, state)
        wanted = sharding_lib.abstract(state, shardings).arrays()
        self._check(wanted, step)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        )
        return state.with_arrays(restored["state"])

    def close(self) -> None:
        """Waits for saves in the background and frees the manager."""
        self._guarded(self._manager.close)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def _known(self, step: int | None) -> int:
        steps = self.all_steps()
        if not steps or (step is not None and step not in steps):
            raise FileNotFoundError(f"no checkpoint {step or ''} in {self.folder}; has {steps}")
        return steps[-1] if step is None else step

    def _check(self, wanted: Mapping, step: int) -> None:
        saved = self._manager.item_metadata(step)["state"]
        saved = state_lib.flatten(getattr(saved, "tree", saved))
        wanted = state_lib.flatten(wanted)
        problems = [f"{path}: only in the checkpoint" for path in sorted(set(saved) - set(wanted))]
        problems += [f"{path}: not in the checkpoint" for path in sorted(set(wanted) - set(saved))]
        for path in sorted(set(saved) & set(wanted)):
            there = (tuple(saved[path].shape), str(saved[path].dtype))
            here = (tuple(wanted[path].shape), str(wanted[path].dtype))
            if there != here:
                problems.append(f"{path}: {there} in the checkpoint, {here} in this model")
        if problems:
            more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(
                f"checkpoint {step} in {self.folder} belongs to another model or optimizer:\n  "
                + "\n  ".join(problems[:8])
                + more
                + "\nUse the config it was made with, or another folder."
            )

    def _guarded(self, action) -> Any:
        try:
            return action()
        except OSError as error:
            raise files.explain(error, self.folder) from error
        except ValueError as error:  # how the array writer reports errors of the file system
            number = re.search(r"os_error_code='(\d+)'", str(error))
            if number is None:
                raise
            cause = OSError(int(number[1]), os.strerror(int(number[1])))
            raise files.explain(cause, self.folder) from error


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Says beforehand what the items are, so that a fresh process can look into a checkpoint."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    tree, facts = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
    registry.add("state", ocp.args.StandardSave, tree)
    registry.add("state", ocp.args.StandardRestore, tree)
    registry.add("extra", ocp.args.JsonSave, facts)
    registry.add("extra", ocp.args.JsonRestore, facts)
    return registry
