"""Checkpoints: Orbax behind one small class."""

import contextlib
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from mpojax import checks, files
from mpojax.training import sharding as sharding_lib
from mpojax.training import state as state_lib


class Checkpoints:
    """Numbered checkpoints of a training state in one folder; use as a context manager, or close.

    A save is atomic: killed in the middle, it leaves the step before as the latest. Saving runs in
    the background; the state may be donated as soon as `save` returns.

    Args:
      folder: made if absent; any path (it is made absolute, which Orbax needs), or an address on a
        store.
      keep_last: how many of the latest steps are kept.
      unsaved: parts of the model whose frozen arrays are not saved, see `TrainState.arrays`: the
        state that is restored into has them, such as the teacher of a student.
    """

    def __init__(
        self, folder: str | pathlib.Path, keep_last: int = 1, unsaved: Collection[str] = ()
    ):
        checks.check_value("keep_last", keep_last, checks.integer(1))
        self.folder, self.unsaved = files.at(folder).absolute(), unsaved
        self._intact: set[int] = set()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep_last),
            # The training loop decides when to save.
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            # Two folders saved at the same step must not share the names of their barriers.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=self.folder.name
            ),
        )
        if files.is_remote(self.folder):
            _let_orbax_write_to_stores()
        self._manager = self._guarded(lambda: self._opened(options))

    def save(self, state: state_lib.TrainState, extra: Mapping[str, Any] | None = None) -> None:
        """Saves the state under its step number, unless that step is there already.

        Args:
          extra: JSON-able metadata that must survive with the state.

        Raises:
          OSError: this save, or an earlier one in the background, could not be written.
        """
        # Waits for the device: the state of this step exists.
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state.arrays(self.unsaved)),
            extra=ocp.args.JsonSave(dict(extra or {})),
        )
        self._guarded(lambda: self._manager.save(step, args=arguments, force=True))

    def wait(self) -> None:
        """Waits for saves in the background; raises what went wrong in them."""
        self._guarded(self._manager.wait_until_finished)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def remove(self, step: int) -> None:
        """Removes a saved step."""
        self._guarded(lambda: self._manager.delete(step))

    def recover(self, *, needed: bool = True) -> int | None:
        """The newest step whose files can all be read; later ones are set aside, with a warning.

        A folder that was copied while a run saved, or not to its end, holds such steps. They are
        renamed to `damaged-<step>`, for a run would else never get past them. Reads the files of
        one step once, on process 0.

        Args:
          needed: whether it is an error when none can be read; else all are set aside.

        Returns:
          None where nothing was saved, or none can be read.

        Raises:
          ValueError: no step can be read; says why. Nothing is changed then.
        """
        self.wait()
        steps = self.all_steps()
        if not steps:
            return None
        intact, problem = -1, "see the message of process 0"
        if jax.process_index() == 0:
            intact, problem = self._first_intact(steps[::-1], needed)
        if jax.process_count() > 1:
            # All processes resume from the step that process 0 could read.
            intact = int(multihost_utils.broadcast_one_to_all(np.int32(intact)))
        if intact < 0 and needed:
            raise ValueError(
                f"no checkpoint in {self.folder} can be read, of {steps}: {problem}. Copy the "
                "folder again from where it is whole, or remove it to start from the first step"
            )
        if intact != steps[-1]:
            # Orbax keeps a list of steps, in which those set aside still are.
            self._manager.reload()
        if intact < 0:
            return None
        self._intact.add(intact)
        return intact

    def extra(self, step: int | None = None) -> dict:
        """The JSON-able metadata saved with a step (default: the latest)."""
        self.wait()
        step = self._known(step)
        with self._reading(step):
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
        """A saved state, on any mesh; waits for saves in the background.

        Args:
          state: a state of the same structure; gives names, shapes, dtypes and the model's
            definition.
          shardings: where each leaf goes; default: where the leaves of `state` are.
          step: default: the latest.

        Raises:
          ValueError: the checkpoint holds other names, shapes or dtypes; lists them. Or its files
            cannot be read.
          FileNotFoundError: there is no such step.
        """
        self.wait()
        step = self._known(step)
        if shardings is None:
            shardings = jax.tree.map(lambda x: x.sharding, state)
        wanted = sharding_lib.abstract(state, shardings).arrays(self.unsaved)
        with self._reading(step):
            saved = self._manager.item_metadata(step)["state"]
        self._check(state_lib.flatten(getattr(saved, "tree", saved)), wanted, step)
        with self._reading(step):
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
            which = "checkpoint" if step is None else f"checkpoint {step}"
            raise FileNotFoundError(f"no {which} in {self.folder}; has {steps}")
        return steps[-1] if step is None else step

    def _first_intact(self, steps: list[int], needed: bool) -> tuple[int, str]:
        """The first of the steps that can be read, those before it set aside; else -1 and why."""
        problems = {}
        for step in steps:
            problem = _damage(self.folder / str(step))
            if not problem:
                self._set_aside(problems, f"Going on from {step}")
                return step, ""
            problems[step] = problem
        if not needed:
            self._set_aside(problems, "There is no other one")
        return -1, problems[steps[0]]

    def _set_aside(self, problems: Mapping[int, str], then: str) -> None:
        for step, problem in problems.items():
            logging.warning(
                "checkpoint %d in %s is damaged and set aside: %s. %s",
                *(step, self.folder, problem, then),
            )
            names = (f"damaged-{step}{'-' * bool(n)}{n or ''}" for n in range(10_000))
            target = next(self.folder / name for name in names if not (self.folder / name).exists())
            with files.explained(target):
                files.move(self.folder / str(step), target)

    @contextlib.contextmanager
    def _reading(self, step: int):
        """Errors of several libraries, which come as long texts, in one line.

        Damaged files are blamed where they are damaged: other things can fail, too.
        """
        try:
            if step not in self._intact and (problem := _damage(self.folder / str(step))):
                raise ValueError(problem)
            self._intact.add(step)
            yield
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(self._explained(step, error)) from error

    def _explained(self, step: int, error: Exception) -> str:
        problem = _damage(self.folder / str(step))
        text = f"checkpoint {step} in {self.folder} cannot be read"
        if not problem:
            return f"{text}, though its files are whole: {_one_line(error)}"
        before = [other for other in self.all_steps() if other < step]
        advice = f", or remove it to resume from {before[-1]}" if before else ""
        return (
            f"{text}, its files are damaged or incomplete: {problem}. Copy it again from where it "
            f"is whole{advice}"
        )

    def _check(self, saved: Mapping, wanted: Mapping, step: int) -> None:
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

    def _opened(self, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = epath.Path(os.fspath(self.folder))
        return ocp.CheckpointManager(folder, options=options, handler_registry=_handlers())

    def _guarded(self, action) -> Any:
        if files.is_remote(self.folder):
            return self._guarded_on_store(action)
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

    def _guarded_on_store(self, action) -> Any:
        try:
            return action()
        except Exception as error:
            from mpojax import stores

            raise stores.explain(error, self.folder) from error


def _let_orbax_write_to_stores() -> None:
    """Sees to it that Orbax's array writer finds stores, and gives up where they do not answer.

    By itself it knows gs:// alone, and tries for a quarter of an hour. To everything else in Orbax,
    s3:// is the same as gs://: steps that a file says are whole, since nothing can be renamed.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    from mpojax import stores

    changed = (
        (gcs_utils, "_GCS_PATH_PREFIX", tuple(f"{scheme}://" for scheme in stores.SCHEMES)),
        (gcs_utils, "get_kvstore_for_gcs", stores.array_store),
        (tensorstore_utils, "_use_gcs_driver", files.is_remote),
        (tensorstore_utils, "_normalize_path", _normalized),
    )
    for module, name, value in changed:
        if not hasattr(module, name):
            raise ImportError(
                f"orbax-checkpoint {ocp.__version__} is not known to write to stores as 0.12 does; "
                "pip install 'orbax-checkpoint==0.12.8', or use a --workdir of a file system"
            )
        setattr(module, name, value)


def _normalized(path: str) -> str:
    return re.sub(r"^(\w+):/+", r"\1://", os.path.normpath(path))


# Where Orbax keeps them.
_EXTRA, _TREE, _ARRAYS = "extra/metadata", "state/_METADATA", "state/manifest.ocdbt"


def _damage(folder: pathlib.Path) -> str:
    """Damage of the files of a saved step, in words; empty where all of them can be read.

    Raises:
      ConnectionError, PermissionError: of a store, which is no damage.
    """
    try:
        for name in (_EXTRA, _TREE):
            checks.read_json(folder / name)
        (folder / _ARRAYS).stat()  # without it the store is empty, which is no error
        base = files.array_store(folder / "state")
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        for key in store.list().result():
            store.read(key).result()  # one at a time: a state may not fit into the memory of a host
    except (OSError, ValueError) as error:
        if files.is_remote(folder):
            _raise_outage(error, folder)
        return _one_line(error)
    return ""


def _raise_outage(error: Exception, folder: pathlib.Path) -> None:
    from mpojax import stores

    if stores.is_outage(error):
        raise stores.explain(error, folder) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0]
    return text if len(text) <= 300 else f"{text[:300]}..."


# Bytes above which the replicas of an array write a slice of it each. Every slice is a program of
# its own, by shape and replica: of small arrays, compiling them takes longer than all of the save.
_SLICE_BYTES = 2**20


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Says beforehand what the items are, so that a fresh process can look into a checkpoint."""
    of_arrays = ocp.type_handlers.get_type_handler(jax.Array)
    of_arrays._min_slice_bytes_for_replica_parallel = _SLICE_BYTES
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    tree, metadata = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
    registry.add("state", ocp.args.StandardSave, tree)
    registry.add("state", ocp.args.StandardRestore, tree)
    registry.add("extra", ocp.args.JsonSave, metadata)
    registry.add("extra", ocp.args.JsonRestore, metadata)
    return registry
