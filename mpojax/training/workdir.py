"""Folder of one run: its config, the versions that it ran with, and its result."""

import datetime
import hashlib
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from mpojax import checks, files, locks

_PACKAGES = ("mpojax", "jax", "jaxlib", "flax", "numpy", "optax", "orbax-checkpoint", "grain")
_DATA = "data.json"  # what a run is trained and evaluated on
# On how many devices a run works does not make it another: checkpoints resume on any mesh.
# Sweeps of older versions named what runs their cells.
_NOT_COMPARED = ("mesh", "runner")
# Where data lie: not compared where `data.json` says which data they are.
_PLACES = ("data_dir", "corpus")
# Fields that configs got later: in an older one, each stands for this value.
_ADDED = {
    **dict.fromkeys(("tokenizer", "init_checkpoint"), ""),
    **dict.fromkeys(("budget", "bond"), None),
    **dict.fromkeys(("matrices", "rules", "adapters"), ()),
    "dtype": "float32",
    "remat": False,
    "keep_dense": True,
    "settings": {},
    "calibration_examples": 0,
    "allocation": "error",
    "adapter_phase": "fine_tuning",
    "trainable": "all",
    "squeeze": {},
    "search": {},
}
# What a config was run by before it said so: (a field that is not empty, method); see `method_of`.
_METHODS = (("after_search", "pet_search"), ("opf", "opf"), ("squeeze", "squeezing"))
# Fields that configs had earlier: with these values an older one says what absence says.
_REMOVED = {
    "schedule_unit": "steps",
    "budget_seconds": 0.0,
    "schedule": "geometric",
    "central_mask": {"rate": None, "mode": "skip", "granularity": "step"},
}

# Fields that were called otherwise in configs of older versions: {old name: name now}.
RENAMED = {
    "accumulate": "grad_accum_steps",
    "dev_texts": "dev_dataset",
    "finalise": "after_search",
    "fresh": "model_config",
    "host": "distillation",
    "keep_layers": "num_layers_kept",
    "optimizer.central_mask.draw": "optimizer.central_mask.granularity",
    "opdf.lam": "opdf.alignment_weight",
    "opdf.sides": "opdf.factor_overrides",
    "opdf.units": "opdf.num_inner_cores",
    "opf.each": "opf.num_per_round",
    "opf.every": "opf.interval",
    "opf.number": "opf.num_per_role",
    "opf.units": "opf.num_inner_cores",
    "scored_by": "scoring_checkpoint",
    "squeeze.gap": "squeeze.max_metric_drop",
    "start.adapter_deviation": "start.adapter_stddev",
    "start.deviation": "start.stddev",
    "start.draw": "start.init",
    "start.taught_layers": "start.num_teacher_layers",
    "start_from": "init_checkpoint",
    "test_texts": "test_dataset",
    "texts": "dataset",
}


class Workdir:
    """A run's folder, checked and claimed before any work starts.

    Holds `config.json`, `versions.json` (an entry per start), `data.json` (fingerprints of the data
    that it began with), `metrics.jsonl`, TensorBoard events,
    `checkpoints/` and, once finished, `result.json`. The same config on the same folder resumes.
    The folder is locked until the result is written or the process ends, so that no second run can
    work in it meanwhile; the processes of one distributed run are one run. Temporary files of
    killed starts are removed. Folders in it, such as `checkpoints`, may be links to another disk; a
    file that is a link is replaced or refused, never written through.

    Args:
      path: absent, empty, or the folder of the same run; of a file system that all processes share,
        or on an object store: gs://..., s3://...
      config: the run's whole config, which tells experiments apart; see `changes`. Once
        `data.json` is there, data may lie elsewhere.

    Raises:
      ValueError: the folder holds another experiment; says what differs and how to fix it. Or
        another process is at work in it, or its lock is a link. Or it is an unknown address.
      OSError: it cannot be written.
    """

    def __init__(self, path: str | pathlib.Path, config: Mapping[str, Any]):
        self.path = files.at(path).absolute()
        self.config = plain(config)
        self.resuming = False
        self._agree_on(self._claim)

    @property
    def finished(self) -> bool:
        """True if `result.json` is there, thus nothing is left to do."""
        return (self.path / "result.json").is_file()

    def check_data(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Checks that a run resumes with the data that it began with, noted in `data.json`.

        A run without that file, begun by an older version, gets it now.

        Args:
          parts: of each part, such as train and dev: its number of `examples` and `fingerprint`.

        Raises:
          ValueError: the data have changed; says which part and what to do.
        """
        self._agree_on(lambda: self._compare_data(plain(parts)))

    def _compare_data(self, parts: dict[str, dict]) -> None:
        path = self.path / _DATA
        if not path.is_file():
            self.write_json(_DATA, parts)
            return
        there = checks.read_json(path)
        if there == parts:
            return
        locks.release(self.path)
        changed = [name for name in {**there, **parts} if there.get(name) != parts.get(name)]
        lines = [
            f"{name} ({_examples(there, name)} then, {_examples(parts, name)} now)"
            for name in changed
        ]
        raise ValueError(
            f"workdir {self.path} holds a run on other data. Changed since it began: "
            f"{checks.listed(lines)}. Put the files of the data (and the tokenizer) back as they "
            "were, or start anew in another --workdir."
        )

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`, by which a run counts as finished (process 0 only)."""
        if jax.process_index() == 0:
            self.write_json("result.json", result)
            locks.release(self.path)

    def write_json(self, name: str, content: Any) -> None:
        """Writes one JSON file of the run, whole or not at all."""
        files.write_atomic(self.path / name, json.dumps(plain(content), indent=2) + "\n")

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            present = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if "config.json" in present or not present:  # never in a folder that is not a run's
                locks.hold(self.path)
        except OSError as error:
            raise files.explain(error, self.path) from error
        if (self.path / "config.json").is_file():  # maybe written before the lock was free
            self._compare()
            self.resuming = True
        elif present:
            raise ValueError(
                f"workdir {self.path} is not empty and holds no run (it has "
                f"{sorted(present)[:5]}); choose a new or empty folder"
            )
        else:
            self.write_json("config.json", self.config)
        self._remove_leftovers()
        self.write_json("versions.json", [*self._starts(), versions()])
        if self.finished:
            logging.info("%s is finished: see %s", self.path, self.path / "result.json")
        elif self.resuming:
            logging.info("%s holds this run already: resuming", self.path)

    def _remove_leftovers(self) -> None:
        """Removes what killed starts left behind, but for runs of their own inside this folder.

        On a store they leave nothing but what Orbax removes itself.
        """
        if files.is_remote(self.path):
            return
        for parent, folders, _ in os.walk(self.path):
            # In place: `os.walk` does not enter what is taken out.
            folders[:] = [n for n in folders if not pathlib.Path(parent, n, locks.NAME).exists()]
            files.remove_leftovers(pathlib.Path(parent))

    def _compare(self) -> None:
        there = checks.read_json(self.path / "config.json")
        free = _PLACES if (self.path / _DATA).is_file() else ()
        found = changes(there, self.config, (*_NOT_COMPARED, *free))
        if found:
            locks.release(self.path)
            raise ValueError(
                f"workdir {self.path} holds another experiment; it differs in:\n  "
                + "\n  ".join(found[:10])
                + (f"\n  ... and {len(found) - 10} more" if len(found) > 10 else "")
                + "\nUse another --workdir, or the config of that run (config.json there)."
            )
        if self.finished and (moved := changes(there, self.config)):
            logging.info("a finished run's data are not read again: %s", "; ".join(moved))

    def _starts(self) -> list:
        path = self.path / "versions.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        except json.JSONDecodeError:
            logging.warning("%s is not valid JSON; starting it anew", path)
            return []

    def _agree_on(self, action: Callable[[], None]) -> None:
        """Process 0 acts; all processes continue, or none."""
        problem = None
        if jax.process_index() == 0:
            try:
                action()
            except (OSError, ValueError) as error:
                problem = error
        if jax.process_count() > 1:
            verdict = np.array([problem is None, self.resuming], np.int32)
            good, resuming = multihost_utils.broadcast_one_to_all(verdict)
            self.resuming = bool(resuming)
            if not good and problem is None:
                raise ValueError(f"process 0 refused the workdir {self.path}; see its message")
        if problem is not None:
            raise problem


def _examples(parts: Mapping[str, Any], name: str) -> str:
    entry = parts.get(name)
    return "absent" if not isinstance(entry, dict) else f"{entry.get('examples')} examples"


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config's canonical JSON."""
    text = json.dumps(plain(config), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def renamed(recorded: Mapping[str, Any], holder: str = "") -> dict[str, Any]:
    """A recorded config with the field names of now; `holder` is the dotted name of its owner."""
    holder = holder.removeprefix("cell")  # that of a sweep has the fields of a run
    found = {}
    for name, value in recorded.items():
        whole = f"{holder}.{name}" if holder else name
        name = RENAMED.get(whole, whole).rpartition(".")[2]
        found[name] = renamed(value, whole) if isinstance(value, Mapping) else value
    if "after_search" in found and "series" not in found:
        found["series"] = found.pop("method", "")
    return found


def method_of(config: Mapping[str, Any]) -> str:
    """The method of a recorded config of an older version, when entry points had one each."""
    found = [method for field, method in _METHODS if config.get(field)]
    return found[0] if found else "distillation" if "teacher" in config else "tuning"


def changes(
    recorded: Mapping[str, Any], config: Mapping[str, Any], free: Sequence[str] = _NOT_COMPARED
) -> list[str]:
    """Lines about what makes a config another experiment than a recorded one; none for the same.

    Args:
      recorded: by this version or an older one, whose configs may lack fields.
      config: of now.
      free: names of fields that may differ.
    """
    there, here = (
        {name: value for name, value in plain(each).items() if name not in free}
        for each in (recorded, config)
    )
    there = _completed(renamed(there), here)
    return [] if fingerprint(there) == fingerprint(here) else differences(there, here)


def _completed(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded config with today's fields, at any depth."""
    filled = {
        name: _completed(value, config[name])
        if isinstance(value, dict) and isinstance(config.get(name), dict)
        else value
        for name, value in recorded.items()
        if name in config or name not in _REMOVED or value != _REMOVED[name]
    }
    added = _ADDED | {"method": method_of(recorded)}
    later = {name: plain(value) for name, value in added.items() if name in config}
    return later | filled


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `key: old there, new here` for every entry in which two configs differ."""
    old, new = _leaves(plain(old)), _leaves(plain(new))
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)!r} there, {new.get(key, absent)!r} here"
        for key in sorted(set(old) | set(new))
        if old.get(key, absent) != new.get(key, absent)
    ]


def plain(value: Any) -> Any:
    """The value in JSON's own types.

    Raises:
      ValueError: it holds something that JSON cannot express.
    """
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (np.generic, jax.Array)) and np.ndim(value) == 0:
        return np.asarray(value).item()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"cannot write {value!r} of type {type(value).__name__} as JSON")


def versions() -> dict[str, Any]:
    """Versions that the results of a run depend on, besides its config."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    if packages["mpojax"] is None:
        import mpojax

        packages["mpojax"] = mpojax.__version__
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([sys.executable, *sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "revision": _revision(),
        "processes": jax.process_count(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
    }


def _revision() -> str | None:
    """Git revision of a checkout, with a mark when files were changed; None when installed."""
    folder = pathlib.Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}.{key}" if prefix else key)
    return leaves
