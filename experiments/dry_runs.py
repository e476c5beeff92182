"""What a run would cost: on the devices at hand, or on TPU slices that are only described."""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from absl import logging

from experiments import cells, runs
from mpojax import devices, training
from mpojax.training.aot import topology
from mpojax.training.aot.estimate import DoesNotFitError

# What is tried in turn where a step does not fit; each is compiled.
_SMALLER = (
    {"remat": True},
    # -1: all chips
    {"mesh.data": 1, "mesh.fsdp": -1},
    {"remat": True, "mesh.data": 1, "mesh.fsdp": -1},
    *({"remat": True, "grad_accum_steps": count} for count in (2, 4, 8)),
    *({"remat": True, "mesh.data": 1, "mesh.fsdp": -1, "grad_accum_steps": n} for n in (4, 16)),
)


def texts(config: ml_collections.ConfigDict, topologies: str = "") -> Iterator[str]:
    """Reports on the step of a config, one for each topology.

    Args:
      topologies: names with commas, such as "v5e:4x8,v6e:2x4"; empty: the devices at hand.

    Raises:
      ValueError: an unknown topology, before anything is compiled; see `runs.dry_run`.
      ImportError: the TPU compiler is not installed.
    """
    if not topologies:
        yield runs.dry_run(config).text()
        return
    names = [name.strip() for name in topologies.split(",")]
    for name in names:
        topology.chip(name)
    for name in names:
        logging.info("compiling for %s, which takes minutes for large models", name)
        yield f"topology: {name}\n{_text(config, name)}"


def of_topology(config: ml_collections.ConfigDict, name: str) -> training.Report:
    """The report on the step of a config on a slice; see `runs.dry_run` and `topology.describe`."""
    with devices.described(topology.describe(name)):
        return runs.dry_run(config)


def _text(config: ml_collections.ConfigDict, name: str) -> str:
    try:
        return of_topology(config, name).text()
    except DoesNotFitError as problem:
        return f"{problem}\n{advice(config, name)}\n"


def advice(config: ml_collections.ConfigDict, name: str) -> str:
    """A line with settings by which a step fits on a slice, found by compiling."""
    for fields in _SMALLER:
        if (changed := _changed(config, fields)) is None:
            continue
        flags = " ".join(f"--config.{field}={value}" for field, value in fields.items())
        try:
            report = of_topology(changed, name)
        except DoesNotFitError as problem:
            logging.info("with %s it %s", flags, problem)
            continue
        except ValueError as problem:  # such as a batch that does not divide
            logging.info("%s: %s", flags, problem)
            continue
        memory = report.estimate.peak_bytes / 2**30
        return f"It fits with {flags}: {memory:.2f} GiB of a chip."
    return "Neither remat, fsdp over all chips, nor micro-batches make it fit: take a larger slice."


def _changed(
    config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> ml_collections.ConfigDict | None:
    """The config with other values; None where that changes nothing, or it lacks a field."""
    changed = config.copy_and_resolve_references()
    for field, value in fields.items():
        outer, _, last = field.rpartition(".")
        if last not in (changed.get(outer, {}) if outer else changed):
            return None
        cells.set_field(changed, field, value, "dry run")
    return None if changed.to_dict() == config.to_dict() else changed
