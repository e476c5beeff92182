"""A run in its folder: what its config asks for, what it is recognised by, what it leaves there."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from experiments import config_fields, tasks
from experiments.render import runs as figures
from experiments.tasks import loading
from mpojax import checks, data, files, io, training
from mpojax.checks import check_value
from mpojax.data import pipeline
from mpojax.methods import mpop, protocol
from mpojax.methods import options as options_lib
from mpojax.methods.mpoe import router_statistics

# Of use to unfinished runs.
_LEFTOVERS = (
    *("checkpoints", "best-dev", "squeezing/accepted"),
    *("search/checkpoints", "retrain/checkpoints"),
)
# Fields that only one of the methods reads: set with another, they would be lost in silence.
_READ_BY = {
    "squeeze": "squeezing",
    "search.budget": "pet_search",
    "teacher": "distillation",
    "scoring_checkpoint": "opf",
    "healing": "healing",
    "deep_lora": "deep_lora",
    "branches": "branches",
}


def read(
    config: ml_collections.ConfigDict,
) -> tuple[protocol.Task, protocol.Method, options_lib.Options]:
    """Task, method and options of a config, checked as far as possible without weights or data.

    Raises:
      ValueError: a field that is wrong whatever model and data are.
    """
    config_fields.check(config)
    options = options_lib.read_all(config)
    name = config.get("method") or "tuning"
    task, kind = tasks.read(config), protocol.find(name)
    if not (task.can_only_evaluate and kind.can_only_evaluate):
        check_value("config.steps", options.training.steps, options_lib.COUNT)
    mpop.check_trainable(options.training.trainable)
    method = kind.read(config)
    _check_is_read(config, name)
    task.check(options)
    method.check(options)
    return task, method, options


def _check_is_read(config: ml_collections.ConfigDict, method: str) -> None:
    """Raises ValueError for a field that another of the methods here reads."""
    for field, owner in _READ_BY.items():
        section, _, name = field.partition(".")
        given = config.get(section) or {}
        given = options_lib.plain(given.get(name) if name else given)
        # With ":" it is a method of the user's own, which may read any field.
        if given and method != owner and ":" not in method:
            raise ValueError(
                f"config.{field}={given!r} has no meaning with config.method={method!r}: set "
                f"config.method={owner!r}, or leave config.{field} empty."
            )


def set_up(
    task: protocol.Task, method: protocol.Method, options: options_lib.Options
) -> protocol.Setup:
    """Loads data and model, as the method needs them; finds what is wrong with the optimizer."""
    setup = dataclasses.replace(task.setup(method.for_task(options)), options=options)
    setup = method.setup(setup)
    setup.make_optimizer(setup.model)
    return setup


def with_task_names(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with each of `config.tasks` by itself, however it is written.

    A command line gives several as one text; a run is the same either way.
    """
    if not config.get("tasks"):
        return config
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.tasks = data.task_names(config.tasks)
    return config


def fingerprints(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fingerprints that `training.Workdir.check_data` compares.

    Args:
      parts: batches by name, or {task: batches}; None for what a run does not have.
    """
    found = {}
    for name, part in parts.items():
        by_task = part if isinstance(part, Mapping) else {"": part}
        for task, batches in by_task.items():
            if batches is not None:
                entry = {"examples": batches.num_examples, "fingerprint": batches.fingerprint()}
                found[f"{name}/{task}" if task else name] = entry
    return found


def of_arrays(**parts: Any) -> dict[str, dict[str, Any]]:
    """As `fingerprints`, of arrays in any structure."""
    found = {}
    for name, tree in parts.items():
        leaves = {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(tree))}
        examples = sum(np.size(leaf) for leaf in leaves.values())
        found[name] = {"examples": examples, "fingerprint": pipeline.fingerprint(leaves)}
    return found


def known(folder: str | pathlib.Path, config: ml_collections.ConfigDict) -> training.Workdir | None:
    """The folder, if there is a run in it; None if it is new."""
    there = (files.at(folder) / "config.json").is_file()
    return training.Workdir(folder, config) if there else None


def kept(path: pathlib.Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A record that an earlier start of the run has left, or what `make` gives, which is left."""
    if not path.is_file():
        files.write_atomic(path, json.dumps(make(), indent=1) + "\n")
    return checks.read_json(path)


def claim(
    workdir: training.Workdir | None,
    folder: str | pathlib.Path,
    config: ml_collections.ConfigDict,
    setup: protocol.Setup,
) -> training.Workdir:
    """Claims the folder of a run, if it is new, and notes data and compression there."""
    workdir = workdir or training.Workdir(folder, config)
    names = ("train", "dev", "held_out", "test")
    workdir.check_data(fingerprints({name: getattr(setup, name) for name in names}))
    if setup.report is not None and jax.process_index() == 0:
        setup.report.to_csv(workdir.path / "compression.csv")
    return workdir


def dry_run(config: ml_collections.ConfigDict) -> training.Report:
    """Cost of one step of plain training; of pre-training no array of the model is made.

    Raises:
      ValueError: what is wrong with the config, before anything is compiled.
    """
    config = with_task_names(config)
    task, method, options = read(config)
    is_abstract = hasattr(task, "dry_setup")
    setup = task.dry_setup(options) if is_abstract else set_up(task, method, options)
    model, trainable = mpop.with_trainable(setup.model, options.training.trainable)
    if setup.train is None:
        raise ValueError("config.steps=0 only evaluates: no step has a cost.")
    optimizer = setup.make_optimizer(model)
    state = training.abstract_state(model, trainable, optimizer)
    return training.dry_run(
        state,
        setup.loss,
        setup.train[0],
        optimizer=optimizer,
        mesh=setup.mesh,
        rules=training.model_rules(model),
        grad_accum_steps=options.training.grad_accum_steps,
        precompute=setup.precompute(bool(model.shapes)),
        model_flops=task.model_flops(setup) if is_abstract else None,
    )


def finish(
    workdir: training.Workdir,
    method: protocol.Method,
    setup: protocol.Setup,
    result: protocol.Result,
    seconds: float,
) -> None:
    """Writes what a finished run leaves in its folder, `result.json` last."""
    task, folder = setup.task, workdir.path
    found = {
        **entries(setup, result),
        **task.report(setup, result),
        **method.report(setup, result),
        **result.extra,
        "seconds": seconds,
    }
    if setup.options.training.save_model:
        save(setup, result.state, folder / "model")
    if jax.process_index() == 0:
        draw(setup, found, folder)
        lines = [*task.summary(found), *method.summary(found)]
        files.write_atomic(folder / "summary.txt", "\n".join(lines) + "\n")
    workdir.write_result(found)
    if jax.process_index() == 0:
        for name in _LEFTOVERS:
            files.remove_tree(folder / name)


def entries(setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
    """Entries of `result.json` that all runs have."""
    model, own = result.state.model(), setup.options
    counts = mpop.parameter_counts(model, result.trainable)
    return {
        "task": setup.name,
        "variant": own.training.variant,
        "architecture": own.model.architecture,
        "model": loading.sizes(model.config),
        "seed": own.training.seed,
        "metric_name": setup.metric,
        "metric": result.metrics[setup.metric],
        "total": counts["total"],
        "trained": counts["trainable"],
        "counts": counts,
        "relative_error": setup.report.relative_error if setup.report else 0.0,
        "kept_dense": len(setup.report.kept_dense) if setup.report else 0,
        "train_examples": 0 if setup.train is None else setup.train.num_examples,
        "dev_examples": setup.num_dev_examples,
        "label_names": getattr(model.config, "label_names", ()),
        "steps": int(result.state.step),
        "metrics": result.metrics,
    }


def save(setup: protocol.Setup, state: training.TrainState, folder: pathlib.Path) -> None:
    """The model with its tokenizer; all processes must call it, process 0 gathers and writes."""
    if jax.process_count() > 1:
        state = training.sharding.replicated(state, setup.mesh)
    if jax.process_index() == 0:
        files.remove_tree(folder)  # of a start killed while saving
        io.save_pretrained(state.model(), folder, tokenizer_from=setup.tokenizer_folder)
        setup.task.save(setup, folder)


def draw(setup: protocol.Setup, result: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Tables and figures of what a method or the routers of experts did."""
    if squeezed := result.get("squeeze"):
        label = setup.metric if setup.held_out is None else f"held-out {setup.metric}"
        figures.write_trajectory(folder, squeezed["phases"], label)
    if searched := result.get("search"):
        kept = searched["kept"], searched["history"]
        figures.write_kept(folder, *kept, setup.options.training.variant)
    if (folder / router_statistics.NAME).is_file():
        figures.write_router(folder)


def show(folder: str | pathlib.Path, status: int) -> None:
    """Says how a run ended."""
    if status:
        logging.info("stopped; start the same command again to resume")
    elif jax.process_index() == 0:
        print((files.at(folder) / "summary.txt").read_text(encoding="utf-8"))
        logging.info("everything is in %s", folder)
